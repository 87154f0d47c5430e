"""The networks: a CIFAR ResNet with two heads, and two ways to make one model of M of them.

Every expert j has one backbone and two heads on the same features: the P head gives the label
probabilities f_j(x), the E head a number g_j(x). The confidence, max_k f_j,k * g_j or g_j alone,
learns the probability that f_j gives to the true label, so that an answering expert can be picked
without labels. `Collaboration` is the appendix's Algorithm 1, inference: the expert with the
highest confidence answers. `Ensemble` is the vote that it is compared with. Both map images in
[0, 1] to logits, so whatever attacks a classifier attacks them.

    model = Collaboration([ResNet(depth=20) for _ in range(3)])
    logits = model(x)  # x [B, C, H, W] in [0, 1] -> [B, K]
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIDENCES = ("ehead", "rectified")


class Block(nn.Module):
    """relu(residual(x) + shortcut(x)), He et al. 2016; halves the sides where stride is 2."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),  # not in place, here and below: hooks read what comes in
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))


class ResNet(nn.Module):
    """One expert: ResNet of depth 6n + 2 (Table 4: 2, 8, 14, 20) with a P head and an E head.

    `image_size` is the side of square images, or (height, width). Depth 2 has no block: one
    convolution, then averages over 8 x 8 pixels (more, where a side is no multiple of 8). Raises
    ValueError for another depth.
    """

    def __init__(
        self,
        depth: int = 20,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int | tuple[int, int] = 32,
    ):
        super().__init__()
        if depth < 2 or (depth - 2) % 6:
            low = depth - (depth - 2) % 6
            nearest = "2" if depth < 2 else f"{low} or {low + 6}"
            raise ValueError(f"depth is {depth}: it must be 6n + 2; the nearest is {nearest}")
        layers = [
            nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        ]
        width = 16
        if depth > 2:
            for channels in (16, 32, 64):
                for block in range((depth - 2) // 6):
                    stride = 2 if channels > 16 and block == 0 else 1
                    layers.append(Block(width, channels, stride))
                    width = channels
        self.backbone = nn.Sequential(*layers)
        height_width = (image_size, image_size) if isinstance(image_size, int) else image_size
        pooled = [max(side // 8, 1) for side in height_width] if depth == 2 else [1, 1]
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
        """Images [B, C, H, W] in [0, 1] -> (logits [B, K], g_logit [B]), float32; g = sigmoid."""
        features = self.features(x)
        # Heads in float32: confidences rounded to bfloat16 would tie, and argmax prefers expert 0.
        with torch.autocast(x.device.type, enabled=False):
            e = self.e_head(features)  # [B, 2]
            return self.p_head(features), e[:, 1] - e[:, 0]

    def features(self, x: Tensor) -> Tensor:
        """What both heads see: [B, C, H, W] -> [B, F], float32."""
        return self.pool(self.backbone((x - 0.5) / 0.25).float()).flatten(1)

    def logits(self, x: Tensor) -> Tensor:
        """The expert as a classifier: [B, C, H, W] -> [B, K]."""
        return self(x)[0]


def rectified_score(logits: Tensor, g_logit: Tensor, y: Tensor | None = None) -> Tensor:
    """The logit of max_k f_k * g, the confidence of the authors' code: it joins P and E head.

    logits [..., B, K], g_logit [..., B] -> [..., B]. With labels y [B], as in training, no gradient
    flows through max_k f_k where the prediction is correct.
    """
    log_p_max, prediction = F.log_softmax(logits, -1).max(-1)
    if y is not None:
        log_p_max = torch.where(prediction == y, log_p_max.detach(), log_p_max)
    log_score = (log_p_max + F.logsigmoid(g_logit)).clamp(max=-1e-7)
    return log_score - torch.log(-torch.expm1(log_score))  # logit(exp(log_score))


class Experts(nn.ModuleList):
    """M >= 1 experts. Raises ValueError for none."""

    def __init__(self, experts: Iterable[nn.Module]):
        super().__init__(experts)
        if not len(self):
            raise ValueError("a model needs at least one expert")

    def side_by_side(self) -> Iterable[nn.Module]:
        """The experts, for a loop whose turns do not depend on each other: on a GPU
        support/speed.py lets them work at the same time."""
        return self


class Collaboration(nn.Module):
    """The appendix's Algorithm 1: the expert with the highest score answers, for M >= 1 experts.

    The score is the logit of a `confidence`: "rectified", max_k f_j,k * g_j, as in the authors'
    code, or "ehead", g_j alone, as in the paper. Raises ValueError for another rule or no expert.
    """

    row = "collaboration"  # its row in the table

    def __init__(self, experts: list[nn.Module], confidence: str = "rectified"):
        super().__init__()
        if confidence not in CONFIDENCES:
            raise ValueError(f"confidence is {confidence!r}: it must be {' or '.join(CONFIDENCES)}")
        self.experts, self.confidence = Experts(experts), confidence

    def all_experts(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] -> (logits [M, B, K], score [M, B]), the confidence being
        sigmoid(score). For y [B] see `rectified_score`."""
        outputs = [expert(x) for expert in self.experts.side_by_side()]
        logits, g_logit = map(torch.stack, zip(*outputs))
        if self.confidence == "rectified":
            return logits, rectified_score(logits, g_logit, y)
        return logits, g_logit

    def combine(self, logits: Tensor, score: Tensor) -> Tensor:
        """Line 4 of that algorithm, the answering expert's logits: [M, B, K], [M, B] -> [B, K]."""
        answering = score.argmax(0)[None, :, None]  # [1, B, 1]
        return logits.take_along_dim(answering, 0).squeeze(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(*self.all_experts(x))


class Ensemble(nn.Module):
    """The vote: log of the mean of the experts' probabilities, [B, K]. Ignores the E heads."""

    row = "vote"

    def __init__(self, experts: list[nn.Module]):
        super().__init__()
        self.experts = Experts(experts)

    def all_experts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] -> (logits [M, B, K], score [M, B], all 0: nobody is preferred)."""
        logits = torch.stack([expert.logits(x) for expert in self.experts.side_by_side()])
        return logits, logits.new_zeros(logits.shape[:2])

    def combine(self, logits: Tensor, score: Tensor) -> Tensor:
        """logits [M, B, K] -> [B, K]; the score counts for nothing."""
        return vote(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(*self.all_experts(x))


def vote(logits: Tensor) -> Tensor:
    """log mean_j softmax(logits_j): [M, B, K] -> [B, K], exact where a probability underflows."""
    return torch.logsumexp(F.log_softmax(logits, -1), 0) - math.log(len(logits))


@torch.no_grad()
def ask_experts(model: nn.Module, x: Tensor, batch_size: int = 250) -> tuple[Tensor, Tensor]:
    """`model.all_experts`, a batch at a time: x [N, C, H, W] -> logits [M, N, K], score [M, N]."""
    logits, score = zip(*map(model.all_experts, x.split(batch_size)))
    return torch.cat(logits, 1), torch.cat(score, 1)
