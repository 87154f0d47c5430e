"""The networks: a CIFAR ResNet with two heads, and the ways to make one model of several.

Every expert j has one backbone and two heads on the same features: the P head gives the label
probabilities f_j(x), the E head a confidence g_j(x) in (0, 1). `Collaboration` is the paper's
Algorithm 1: the expert with the highest confidence answers. `Ensemble` is the vote it is compared
with, `Mixture` weighs the experts by a gate. All of them map images in [0, 1] to logits, so
whatever attacks a classifier attacks them.

    model = Collaboration([ResNet(depth=20) for _ in range(3)])
    logits = model(x)  # x [B, C, H, W] in [0, 1] -> [B, K]
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIDENCES = ("ehead", "rectified")


def relu(slope: float) -> nn.Module:
    """Leaky where slope > 0, as GAL has it. Not in place: hooks read what comes in."""
    return nn.LeakyReLU(slope) if slope else nn.ReLU()


class Block(nn.Module):
    """relu(residual(x) + shortcut(x)), He et al. 2016; halves the sides where stride is 2."""

    def __init__(self, in_channels: int, channels: int, stride: int, slope: float = 0.0):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            relu(slope),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.relu = relu(slope)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))


class ResNet(nn.Module):
    """One expert: ResNet of depth 6n + 2 (Table 4: 2, 8, 14, 20) with a P head and an E head.

    `image_size` is the side of square images, or (height, width). Depth 2 has no block: one
    convolution, then averages over 8 x 8 pixels (more, where a side is no multiple of 8). `slope`
    is that of leaky ReLUs. Raises ValueError for another depth.
    """

    def __init__(
        self,
        depth: int = 20,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int | tuple[int, int] = 32,
        slope: float = 0.0,
    ):
        super().__init__()
        if depth < 2 or (depth - 2) % 6:
            low = max(2, depth - (depth - 2) % 6)
            nearest = "2" if depth < 2 else f"{low} or {low + 6}"
            raise ValueError(f"depth is {depth}: it must be 6n + 2; the nearest is {nearest}")
        layers = [
            nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            relu(slope),
        ]
        width = 16
        if depth > 2:
            for channels in (16, 32, 64):
                for block in range((depth - 2) // 6):
                    stride = 2 if channels > 16 and block == 0 else 1
                    layers.append(Block(width, channels, stride, slope))
                    width = channels
        self.backbone = nn.Sequential(*layers)
        height_width = (image_size, image_size) if isinstance(image_size, int) else image_size
        pooled = [side // 8 for side in height_width] if depth == 2 else [1, 1]
        self.pool = nn.AdaptiveAvgPool2d(pooled)
        features = width * math.prod(pooled)
        self.p_head = nn.Linear(features, num_classes)
        # The paper's "one-layer MLP with 128 parameters" on ResNet20's 64 features (appendix 3.2):
        # two outputs without bias, read as a two-way softmax, so g = sigmoid(e_1 - e_0).
        self.e_head = nn.Linear(features, 2, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] in [0, 1] -> (logits [B, K], confidence logit [B]), both float32."""
        features = self.features(x)
        # Heads in float32: confidences rounded to bfloat16 would tie, and argmax prefers expert 0.
        with torch.autocast(x.device.type, enabled=False):
            e = self.e_head(features)
            return self.p_head(features), e[:, 1] - e[:, 0]

    def features(self, x: Tensor) -> Tensor:
        """What both heads see: [B, C, H, W] -> [B, F], float32."""
        return self.pool(self.backbone((x - 0.5) / 0.25).float()).flatten(1)


def rectified_score(logits: Tensor, confidence: Tensor, y: Tensor | None = None) -> Tensor:
    """The logit of max_k f_k * g: the score of the authors' code, which rates P head and E head.

    logits [..., B, K], confidence logit [..., B] -> [..., B]. With labels y [B], as in training,
    no gradient flows through max_k f_k where the prediction is right.
    """
    log_p_max, prediction = F.log_softmax(logits, -1).max(-1)
    if y is not None:
        log_p_max = torch.where(prediction == y, log_p_max.detach(), log_p_max)
    log_score = (log_p_max + F.logsigmoid(confidence)).clamp(max=-1e-7)
    return log_score - torch.log(-torch.expm1(log_score))  # logit(exp(log_score))


class Collaboration(nn.Module):
    """Algorithm 1: the logits of the expert with the highest score, for M >= 1 experts.

    `confidence` says what the score is: "ehead", g_j alone as in the paper, or "rectified",
    max_k f_j,k * g_j as in the authors' code. Raises ValueError for another rule or no expert.
    """

    def __init__(self, experts: list[nn.Module], confidence: str = "ehead"):
        super().__init__()
        if not experts:
            raise ValueError("a collaboration needs at least one expert")
        if confidence not in CONFIDENCES:
            raise ValueError(f"confidence is {confidence!r}: it must be {' or '.join(CONFIDENCES)}")
        self.experts = nn.ModuleList(experts)
        self.confidence = confidence

    def score(self, logits: Tensor, confidence: Tensor, y: Tensor | None = None) -> Tensor:
        """What Algorithm 1 compares, [M, B]; sigmoid(score) is the confidence."""
        if self.confidence == "rectified":
            return rectified_score(logits, confidence, y)
        return confidence

    def all_experts(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] -> (logits [M, B, K], score [M, B])."""
        logits, confidence = map(torch.stack, zip(*(expert(x) for expert in self.experts)))
        return logits, self.score(logits, confidence, y)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, K] of the most confident expert of each image."""
        # On a CPU it pays to see first who answers, then to run the answering expert alone with
        # gradients: in eval mode an image's logits do not depend on the batch it is in. Images
        # under 32 x 32 are too small for that: the cost is then per operation, not per pixel.
        pays = len(self.experts) > 1 and x.is_cpu and x.shape[2] * x.shape[3] >= 1024
        if pays and x.requires_grad and not self.training:
            return self._forward_gathered(x)
        return self.combine(*self.all_experts(x))

    def combine(self, logits: Tensor, score: Tensor) -> Tensor:
        """Algorithm 1, line 4: logits [M, B, K], score [M, B] -> [B, K]."""
        chosen = score.argmax(0)  # [B]
        return logits[chosen, torch.arange(len(chosen), device=chosen.device)]

    def _forward_gathered(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            chosen = self.all_experts(x)[1].argmax(0)  # [B]
        groups = [(chosen == j).nonzero().squeeze(1) for j in range(len(self.experts))]
        logits = torch.cat([e(x[group])[0] for e, group in zip(self.experts, groups) if len(group)])
        return logits[torch.cat(groups).argsort()]


class Ensemble(nn.Module):
    """The vote: log of the mean of the experts' probabilities, [B, K]. Ignores the E heads."""

    def __init__(self, experts: list[nn.Module]):
        super().__init__()
        if not experts:
            raise ValueError("an ensemble needs at least one expert")
        self.experts = nn.ModuleList(experts)

    def all_experts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] -> (logits [M, B, K], score [M, B], all 0: nobody is preferred)."""
        logits = torch.stack([expert(x)[0] for expert in self.experts])
        return logits, logits.new_zeros(logits.shape[:2])

    def combine(self, logits: Tensor, score: Tensor) -> Tensor:
        """logits [M, B, K] -> [B, K]; the score counts for nothing."""
        return vote(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(*self.all_experts(x))


class Mixture(nn.Module):
    """A mixture of experts: sum_j softmax(gate)_j * logits_j, [B, K]. Ignores the E heads.

    `gate` maps the features of all experts, [B, M * F], to a logit for each, [B, M].
    """

    def __init__(self, experts: list[nn.Module], gate: nn.Module):
        super().__init__()
        if not experts:
            raise ValueError("a mixture needs at least one expert")
        self.experts, self.gate = nn.ModuleList(experts), gate

    def all_experts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] -> (logits [M, B, K], score [M, B], the gate's logits)."""
        features = [expert.features(x) for expert in self.experts]
        with torch.autocast(x.device.type, enabled=False):
            logits = [expert.p_head(f) for expert, f in zip(self.experts, features)]
            return torch.stack(logits), self.gate(torch.cat(features, 1)).T

    def combine(self, logits: Tensor, score: Tensor) -> Tensor:
        """logits [M, B, K], score [M, B] -> [B, K]."""
        return (torch.softmax(score, 0)[:, :, None] * logits).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(*self.all_experts(x))


def vote(logits: Tensor) -> Tensor:
    """log mean_j softmax(logits_j): [M, B, K] -> [B, K], exact where a probability underflows."""
    return torch.logsumexp(F.log_softmax(logits, -1), 0) - math.log(len(logits))
