"""Soft synergy with one head for all weights: it sees the features of every expert at once.

An E head knows its own expert's features alone, so none can tell that another is better.

    python -m experiments.attempts.joint --eps 0.03 --n 3 --depth 2 --lr 0.03 --temperature 3
"""

from support import runs

import torch
from torch import Tensor, nn

import infer
from experiments.soft_synergy import SoftCollaboration, check, soft_loss, soft_parser
from train_submodel import train


class JointCollaboration(SoftCollaboration):
    """A mixture whose scores come from one linear head on the M experts' features, side by side;
    the E heads stay untrained."""

    def __init__(self, experts: list[nn.Module], T: float = 1.0):
        super().__init__(experts, T=T)
        M, F = len(experts), experts[0].p_head.in_features
        self.router = nn.Linear(M * F, M, bias=False)

    def all_experts(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] -> (logits [M, B, K], score / T [M, B])."""
        features = [expert.features(x) for expert in self.experts.side_by_side()]  # [B, F] each
        with torch.autocast(x.device.type, enabled=False):  # the heads in float32, as in ResNet
            logits = [expert.p_head(f) for expert, f in zip(self.experts, features)]
            return torch.stack(logits), self.router(torch.cat(features, 1)).T / self.T


def main(argv: list[str] | None = None) -> None:
    parser = soft_parser(__doc__, "-m experiments.attempts.joint")
    with runs.start(parser, argv, "soft-joint", model="joint", check=check) as run:
        train(run, 1, soft_loss)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
