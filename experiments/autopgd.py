"""AutoPGD: projected gradient descent that finds its own step size.

Croce and Hein, *Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks*, ICML 2020. As in attacks.py the model is any callable from images
[B, C, H, W] to logits [B, K], in eval mode; eps is in pixel units of [0, 1].

    x_adv = auto_pgd(model, x, y, eps=0.03, steps=20)
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from attacks import (
    Loss,
    Worst,
    ball,
    check,
    cross_entropy,
    cw_loss,
    far_and_near,
    margin_loss,
    misled,
    takes_gradients,
    worst_of,
)


def targeted_dlr_loss(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2), their Eq. 7: [B, K], [B], [B] -> [B].

    Needs K >= 4 classes. Unlike cross-entropy it does not vanish when the logits grow.
    """
    top = logits.topk(4, dim=1).values
    gap = (logits.gather(1, y[:, None]) - logits.gather(1, target[:, None])).squeeze(1)
    return -gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


@takes_gradients
def apgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int,
    loss: Loss = cross_entropy,
) -> Tensor:
    """AutoPGD, their Algorithm 1, from a random start: no step size to choose.

    The step starts at 2 eps. A checkpoint halves it, and restarts from the best point, for each
    image whose loss rose in fewer than 3/4 of the steps since the last checkpoint, or whose best
    loss and step have not changed since.
    x [B, C, H, W], y [B] -> each image's worst point, which maximises `loss` as in `pgd`.
    For the errors see `attacks.check`.
    """
    x, y = check(x, y, eps, steps=steps)
    project, worst = ball(x, eps), Worst(x, y)

    def ask(z: Tensor) -> tuple[Tensor, Tensor]:
        """Loss [B] and gradient at z; `worst` learns of z."""
        z = z.detach().requires_grad_()
        logits = model(z)
        values = loss(logits, y)
        (grad,) = torch.autograd.grad(values.sum(), z)
        worst.update(z.detach(), logits.detach(), values.detach())
        return values.detach(), grad.nan_to_num(nan=0)

    def where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask[:, None, None, None], a, b)

    ask(x)  # the clean image is a candidate too
    z = project(x + eps * (2 * torch.rand_like(x) - 1))
    before, (value, grad) = z, ask(z)
    best, best_z, best_grad = value, z, grad
    eta = torch.full_like(value, 2 * eps)  # [B]
    eta_then, best_then, rises, since = eta, best, torch.zeros_like(value), 0
    for k in range(1, steps + 1):
        a = 1.0 if k == 1 else 0.75
        ascent = project(z + eta[:, None, None, None] * grad.sign())
        z, before = project(z + a * (ascent - z) + (1 - a) * (z - before)), z
        last, (value, grad) = value, ask(z)
        rises, since = rises + (value > last), since + 1
        better = value > best
        best, best_z = torch.where(better, value, best), where(better, z, best_z)
        best_grad = where(better, grad, best_grad)
        if k in apgd_checkpoints(steps):
            stuck = (eta == eta_then) & (best == best_then)
            halve = (rises < 0.75 * since) | stuck
            eta_then, best_then = eta, best
            eta = torch.where(halve, eta / 2, eta)
            z, grad = where(halve, best_z, z), where(halve, best_grad, grad)
            value = torch.where(halve, best, value)
            rises, since = torch.zeros_like(rises), 0
    return worst.x_adv


def apgd_checkpoints(steps: int) -> list[int]:
    """ceil(p_j * steps) with p = 0.22, 0.41, 0.57, .. (their section 3.2)."""
    checkpoints, p, gap = [], 22, 22  # in hundredths, which add up exactly
    while p < 100:
        checkpoints.append(math.ceil(p * steps / 100))
        gap = max(gap - 3, 6)
        p += gap
    return checkpoints


@takes_gradients
def auto_pgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int,
    targets: int = 9,
) -> Tensor:
    """AutoPGD with cross-entropy, then with targeted DLR (CW where there are fewer than 4 classes)
    towards each of the `targets` likeliest wrong classes; each run takes the images still correct.

    x [B, C, H, W], y [B] -> each image's worst point. Raises ValueError as `apgd`.
    """
    ask, x_adv = torch.no_grad()(model), x.detach().clone()
    logits = ask(x)  # [B, K]
    K = logits.shape[1]
    wrong = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)  # [B, K]
    for run in range(1 + (min(targets, K - 1) if K >= 4 else 1)):
        left = logits.argmax(1) == y  # [B]
        if not left.any():
            break
        if run == 0:
            loss = cross_entropy
        elif K >= 4:
            loss = partial(targeted_dlr_loss, target=wrong[left, run - 1])
        else:
            loss = cw_loss
        before, labels = x_adv[left], y[left]
        after = apgd(model, x[left], labels, eps, steps, loss)
        x_adv[left] = worst_of(model, before, labels, [before, after])
        logits = ask(x_adv)
    return x_adv


@takes_gradients
def adaptive_auto_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """AutoPGD on the answer, with cross-entropy and towards the likeliest wrong class; then, twice,
    `far_and_near` on the answer's margin and on who answers. 6 + 2 M runs.

    x [B, C, H, W], y [B] -> each image's worst point. Raises ValueError as `apgd`.
    """
    search = far_and_near(eps, steps)

    def attempts() -> Iterator[Tensor]:
        yield auto_pgd(model, x, y, eps, steps, targets=1)
        for _ in range(2):
            yield search(model, x, y, loss=margin_loss)
            yield from misled(model, x, y, search)

    return worst_of(model, x, y, attempts())
