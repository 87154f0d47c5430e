"""The models that `settings` describe, and what those of rivals are made of.

`build` makes the method's collaboration, the vote, MoRE's mixture, and soft synergy's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import Collaboration, Ensemble, Experts, ResNet


def build(settings: dict) -> nn.Module:
    """The untrained model that `settings` describes: model, n, depth, image_shape, num_classes; a
    collaboration also by its confidence, soft synergy by its temperature, GAL by its slope.

    Raises ValueError for a model of another name.
    """
    channels, *height_width = settings["image_shape"]
    shape = (settings["depth"], channels, settings["num_classes"], tuple(height_width))
    experts = [ResNet(*shape) for _ in range(settings["n"])]
    if "slope" in settings:
        experts = [leaky(expert, settings["slope"]) for expert in experts]
    match settings["model"]:
        case "collaboration":
            return Collaboration(experts, settings["confidence"])
        case "ensemble":
            return Ensemble(experts)
        case "mixture":
            return Mixture(experts)
        case "soft":
            return SoftCollaboration(experts, T=settings["temperature"])
    raise ValueError(f"unknown model {settings['model']!r}")


def leaky(expert: nn.Module, slope: float) -> nn.Module:
    """The same expert with leaky ReLUs: where all ReLUs are 0 there is no gradient to align."""
    for module in [*expert.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.LeakyReLU(slope))
    return expert


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


class SoftCollaboration(Collaboration):
    """log sum_j w_j softmax(logits_j), [B, K], w = softmax(score): all answer.

    The scores are divided by the temperature T: T -> 0 is the hard switch, T -> infinity the vote.
    """

    row = "mixture"

    def __init__(self, experts: list[nn.Module], confidence: str = "ehead", T: float = 1.0):
        super().__init__(experts, confidence)
        self.T = T

    def all_experts(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] -> (logits [M, B, K], score / T [M, B])."""
        logits, score = super().all_experts(x, y)
        return logits, score / self.T

    def combine(self, logits: Tensor, score: Tensor) -> Tensor:
        """logits [M, B, K], score [M, B] -> [B, K]."""
        log_weights = F.log_softmax(score, 0)[:, :, None]  # [M, B, 1]
        return torch.logsumexp(log_weights + F.log_softmax(logits, -1), 0)
