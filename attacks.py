"""Attacks: images inside a ball around given ones that a model gets wrong.

All of them search the l-infinity ball of radius `eps` around x, cut to [0, 1]; `eps` and `alpha`
are in pixel units of [0, 1]. The model is any callable from images [B, C, H, W] to logits [B, K].
The caller sets the mode, in two visible lines: `model.eval()` before, so that the attack neither
sees nor moves batch statistics, and `model.train()` after.

    model.eval()
    x_adv = pgd(model, x, y, eps=0.03, alpha=0.006, steps=20, random_start=True, keep_best=True)
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def cw_loss(logits: Tensor, y: Tensor, kappa: float = 0.1) -> Tensor:
    """min(max_{k != y} z_k - z_y, kappa), [B, K] -> [B]: Carlini & Wagner 2017, to be raised.

    The true class is masked with -inf, so that wrong logits count when all are negative.
    """
    true = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return (others.max(1).values - true).clamp(max=kappa)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-ln p_y, [B, K] -> [B]."""
    return F.cross_entropy(logits, y, reduction="none")


LOSSES = {"ce": cross_entropy, "cw": cw_loss}


def pgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    eps: float,
    alpha: float,
    steps: int,
    loss: str = "ce",
    momentum: float = 0.0,
    random_start: bool = False,
    restarts: int = 1,
    keep_best: bool = False,
) -> Tensor:
    """Projected gradient descent, Madry et al. 2018: `steps` steps of alpha * sign(gradient).

    FGSM is one step of alpha = eps, BIM is PGD without random start, MIM (Dong et al. 2018)
    has momentum 0.9 or 1 on the gradient divided by its mean absolute value.

    x [B, C, H, W] in [0, 1], y [B] -> x_adv like x, detached. `loss` is "ce" or "cw".
    `restarts` > 1 keeps each image's worst end point. `keep_best`, for evaluating, takes for each
    image the first misclassified point, else the one of highest loss, over x itself and every step
    of every restart. Random starts come from torch's global generator.
    Raises ValueError for eps or alpha not positive, steps or restarts below 1, an unknown loss.
    """
    if not eps > 0 or not alpha > 0:
        raise ValueError(f"eps is {eps} and alpha {alpha}: both must be positive")
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps is {steps} and restarts {restarts}: both must be at least 1")
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}: it must be {' or '.join(LOSSES)}")
    x = x.detach()
    lower, upper = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    worst = Worst(x, y, LOSSES[loss])
    if keep_best and random_start:  # without it the first point is x itself
        with torch.no_grad():
            worst.update(x, model(x))
    for _ in range(restarts):
        x_adv = x.clone()
        if random_start:
            x_adv = x + eps * (2 * torch.rand_like(x) - 1)
            x_adv = torch.minimum(torch.maximum(x_adv, lower), upper)
        velocity = torch.zeros_like(x)
        for _ in range(steps):
            x_adv.requires_grad_()
            logits = model(x_adv)
            # The gradient for the input alone: weights and their .grad stay as they were.
            (grad,) = torch.autograd.grad(LOSSES[loss](logits, y).sum(), x_adv)
            x_adv = x_adv.detach()
            if keep_best:
                worst.update(x_adv, logits.detach())
            size = grad.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-30)
            velocity = momentum * velocity + grad / size
            x_adv = x_adv + alpha * velocity.sign()
            x_adv = torch.minimum(torch.maximum(x_adv, lower), upper)
        if keep_best or restarts > 1:
            with torch.no_grad():
                worst.update(x_adv, model(x_adv))
    return worst.x_adv if keep_best or restarts > 1 else x_adv


class Worst:
    """The worst point seen for each image: the first misclassified, else that of highest loss."""

    def __init__(self, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]):
        self.x_adv, self.y, self.loss = x.clone(), y, loss
        self.highest = torch.full_like(y, -torch.inf, dtype=torch.float32)  # [B]
        self.fooled = torch.zeros_like(y, dtype=torch.bool)  # [B]

    def update(self, x_adv: Tensor, logits: Tensor) -> None:
        wrong, loss = logits.argmax(1) != self.y, self.loss(logits, self.y).float()
        worse = ~self.fooled & (wrong | (loss > self.highest))
        self.x_adv = torch.where(worse[:, None, None, None], x_adv, self.x_adv)
        self.highest = torch.where(worse, loss, self.highest)
        self.fooled |= wrong
