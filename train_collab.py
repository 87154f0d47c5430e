"""The main command: stage 1, then stage 2, collaboration training (the main paper's Algorithm 2).

Stage 1 stops finding weak spots once every expert's own attack is answered. Stage 2 attacks the
collaboration itself, the logits that inference returns, and trains on what it finds.

    python train_collab.py --eps 0.03 --n 3                                # stage 1, stage 2, table
    python train_collab.py --eps 0.03 --n 3 --submodels RUN/submodels.pt   # stage 2, table

Without --submodels each stage has half of the epochs, its own schedule and fresh momentum.
"""

from dataclasses import dataclass

from torch import Tensor, nn

import infer
from support import options, runs
from support.options import option
from train_submodel import SoESettings, clean_and_attacked, sample_loss, stage1_loss, train


def stage2_loss(model: nn.Module, x: Tensor, y: Tensor, settings: SoESettings) -> Tensor:
    """The loss of collaboration training: x [B, C, H, W] in [0, 1], y [B] -> scalar."""
    batches = clean_and_attacked(model, x, y, settings)  # x, x~_c = PGD on what inference returns
    # settings.n is M: see stage1_loss
    return settings.n * sum(sample_loss(model, batch, y, settings).mean() for batch in batches)


@dataclass
class CollabSettings(SoESettings):
    """the stages"""

    stage1_epochs: int = option(
        None, options.count_or_0, "of --epochs; stage 2 gets the rest (default: half of them)"
    )
    submodels: str = option(None, str, "checkpoint of stage 1; all epochs are then stage 2's")


def main(argv: list[str] | None = None) -> None:
    parser = options.training_parser(CollabSettings, __doc__, "train_collab.py")
    with runs.start(parser, argv, "soe", model="collaboration", stages=(1, 2)) as run:
        train(run, 1, stage1_loss)
        train(run, 2, stage2_loss)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
