"""Soft synergy with one head for all weights: MoRE's gate in the place of the E heads.

An E head sees its own expert's features alone, so none can tell that another expert is better; a
gate sees the features of all.

    python -m experiments.attempts.joint --eps 0.03 --n 3 --depth 2 --lr 0.03 --temperature 3
"""

from support import runs

from torch import Tensor, nn

import infer
from baselines.more import Mixture
from experiments.soft_synergy import SoftCollaboration, check, soft_loss, soft_parser
from train_submodel import train


class JointCollaboration(Mixture):
    """Soft synergy's mixture, of probabilities, weighted by MoRE's gate."""

    combine = SoftCollaboration.combine

    def __init__(self, experts: list[nn.Module], T: float = 1.0):
        super().__init__(experts)
        self.T = T

    def all_experts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] -> (logits [M, B, K], the gate's logits / T [M, B])."""
        logits, gate = super().all_experts(x)
        return logits, gate / self.T


def main(argv: list[str] | None = None) -> None:
    parser = soft_parser(__doc__, "-m experiments.attempts.joint")
    with runs.start(parser, argv, "soft-joint", model="joint", check=check) as run:
        train(run, 1, soft_loss)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
