"""MoRE, a mixture of robust experts: a gate weighs the experts, and all of it is trained together.

After Cheng et al., *Mixture of Robust Experts (MoRE)*, 2021, but not as published: there experts
are first trained each against one kind of perturbation, then a gate and the last layers. As in the
SoE authors' comparison there is one kind here, l-infinity, and the M experts and a linear gate on
their features learn jointly from clean images and PGD against the mixture.

    python -m baselines.more --eps 0.03 --n 3
"""

from argparse import Namespace
from support import options, runs

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infer
from models import Experts
from train_submodel import clean_and_attacked, train


class Mixture(nn.Module):
    """A mixture of experts: sum_j softmax(gate)_j * logits_j, [B, K]. Ignores the E heads.

    The gate maps the features of all experts, [B, M * F], to a logit for each, [B, M].
    """

    row = "mixture"

    def __init__(self, experts: list[nn.Module]):
        super().__init__()
        self.experts = Experts(experts)
        features = sum(expert.p_head.in_features for expert in experts)
        self.gate = nn.Linear(features, len(experts))

    def all_experts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] -> (logits [M, B, K], score [M, B], the gate's logits)."""
        features = [expert.features(x) for expert in self.experts.side_by_side()]
        with torch.autocast(x.device.type, enabled=False):
            logits = [expert.p_head(f) for expert, f in zip(self.experts, features)]
            return torch.stack(logits), self.gate(torch.cat(features, 1)).T

    def combine(self, logits: Tensor, score: Tensor) -> Tensor:
        """logits [M, B, K], score [M, B] -> [B, K]."""
        return (torch.softmax(score, 0)[:, :, None] * logits).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(*self.all_experts(x))


def more_loss(model: nn.Module, x: Tensor, y: Tensor, settings: Namespace) -> Tensor:
    """CE of sum_j softmax(gate)_j * logits_j, on clean images and on PGD against it.

    Without the factor M of stage1_loss: at M times the rate the gate, linear on all features, gives
    everything to one untrained expert in its first steps. Even so it comes to favour one, as
    the expert that answers most learns most; the published method guards against that only by
    training the experts first.
    """
    batches = clean_and_attacked(model, x, y, settings)
    return sum(F.cross_entropy(model(batch), y) for batch in batches)


def parser() -> options.Parser:
    return options.training_parser(__doc__, "-m baselines.more", options.radius_or_0)


def main(argv: list[str] | None = None) -> None:
    with runs.start(parser(), argv, "more", model="mixture") as run:
        train(run, 1, more_loss)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
