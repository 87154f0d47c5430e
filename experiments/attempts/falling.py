"""Soft synergy whose temperature falls: ten times T for half of the epochs, then T.

The experts learn nearly as one vote first, and only then to leave images to one another.

    python -m experiments.attempts.falling --eps 0.03 --n 3 --depth 2
"""

from argparse import Namespace
from support import runs

from torch import Tensor, nn

import infer
from experiments.soft_synergy import check, soft_loss, soft_parser
from train_submodel import train


def hot_loss(model: nn.Module, x: Tensor, y: Tensor, settings: Namespace) -> Tensor:
    """`soft_loss` at 10 T: x [B, C, H, W], y [B] -> scalar."""
    model.T = 10 * settings.temperature
    loss = soft_loss(model, x, y, settings)
    model.T = settings.temperature
    return loss


def main(argv: list[str] | None = None) -> None:
    parser = soft_parser(__doc__, "-m experiments.attempts.falling")
    with runs.start(parser, argv, "soft-falling", "soft", stages=(1, 2), check=check) as run:
        train(run, 1, hot_loss)
        train(run, 2, soft_loss)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
