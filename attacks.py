"""Attacks: images inside a ball around given ones that a model gets wrong.

All of them search the l-infinity ball of radius `eps` around x, cut to [0, 1]; `eps` and `alpha`
are in pixel units of [0, 1]. The model is any callable from images [B, C, H, W] to logits [B, K].
The caller sets the mode, in two visible lines: `model.eval()` before, so that the attack neither
sees nor moves batch statistics, and `model.train()` after.

    model.eval()
    x_adv = pgd(model, x, y, eps=0.03, alpha=0.006, steps=20, random_start=True, keep_best=True)
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm


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


def expert_losses(logits: Tensor, y: Tensor) -> Tensor:
    """l_j = -ln p_y^j: logits [M, B, K], y [B] -> [M, B]."""
    return F.cross_entropy(logits.transpose(1, 2), y.expand(len(logits), -1), reduction="none")


LOSSES = {"ce": cross_entropy, "cw": cw_loss}
Loss = Callable[[Any, Tensor], Tensor]  # what the model returns, y [B] -> [B], to be raised


def _check(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}: it must be positive")


def _loss(loss: str | Loss) -> Loss:
    if isinstance(loss, str) and loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}: it must be {' or '.join(LOSSES)}")
    return LOSSES[loss] if isinstance(loss, str) else loss


def _ball(x: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    """The projection onto the l-infinity ball around x, cut to [0, 1]."""
    lower, upper = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    return lambda z: torch.minimum(torch.maximum(z, lower), upper)


class Worst:
    """The worst point seen for each image: the first misclassified, else that of highest loss."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x_adv, self.y = x.clone(), y
        self.highest = torch.full_like(y, -torch.inf, dtype=torch.float32)  # [B]
        self.fooled = torch.zeros_like(y, dtype=torch.bool)  # [B]

    def update(self, x_adv: Tensor, logits: Tensor, loss: Tensor) -> None:
        """x_adv [B, C, H, W], the logits [B, K] that decide there, and the loss [B]."""
        wrong = logits.argmax(1) != self.y
        worse = ~self.fooled & (wrong | (loss > self.highest))
        self.x_adv = torch.where(worse[:, None, None, None], x_adv, self.x_adv)
        self.highest = torch.where(worse, loss, self.highest)
        self.fooled |= wrong


def pgd(
    model: Callable[[Tensor], Any],
    x: Tensor,
    y: Tensor,
    eps: float,
    alpha: float,
    steps: int,
    loss: str | Loss = "ce",
    momentum: float = 0.0,
    random_start: bool = False,
    restarts: int = 1,
    keep_best: bool = False,
    decide: Callable[[Any], Tensor] = lambda logits: logits,
) -> Tensor:
    """Projected gradient descent, Madry et al. 2018: `steps` steps of alpha * sign(gradient).

    FGSM is one step of alpha = eps, BIM is PGD without random start, MIM (Dong et al. 2018)
    has momentum 0.9 or 1 on the gradient divided by its mean absolute value.

    x [B, C, H, W] in [0, 1], y [B] -> x_adv like x, detached. `loss` is "ce", "cw", or a function
    of what the model returns and y; `decide` then makes logits [B, K] of what the model returns.
    `restarts` > 1 keeps each image's worst end point. `keep_best`, for evaluating, takes for each
    image the first misclassified point, else the one of highest loss, over x itself and every step
    of every restart. Random starts come from torch's global generator.
    Raises ValueError for eps or alpha not positive, steps or restarts below 1, an unknown loss.
    """
    _check(eps=eps, alpha=alpha, steps=steps, restarts=restarts)
    loss, x = _loss(loss), x.detach()
    project, worst = _ball(x, eps), Worst(x, y)

    def consider(x_adv: Tensor) -> None:
        with torch.no_grad():
            output = model(x_adv)
            worst.update(x_adv, decide(output), loss(output, y))

    if keep_best and random_start:  # without it the first point is x itself
        consider(x)
    for _ in range(restarts):
        x_adv = project(x + eps * (2 * torch.rand_like(x) - 1)) if random_start else x.clone()
        velocity = torch.zeros_like(x)
        for _ in range(steps):
            x_adv.requires_grad_()
            output = model(x_adv)
            values = loss(output, y)  # [B]
            # The gradient for the input alone: weights and their .grad stay as they were.
            (grad,) = torch.autograd.grad(values.sum(), x_adv)
            x_adv = x_adv.detach()
            if keep_best:
                worst.update(x_adv, decide(output).detach(), values.detach())
            size = grad.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-30)
            velocity = momentum * velocity + grad / size
            x_adv = project(x_adv + alpha * velocity.sign())
        if keep_best or restarts > 1:
            consider(x_adv)
    return worst.x_adv if keep_best or restarts > 1 else x_adv


# ------------------------------------------------------------------------------------ AutoPGD


def targeted_dlr_loss(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2), Croce & Hein 2020, Eq. 7: [B, K], [B] -> [B].

    Needs K >= 4 classes. Unlike cross-entropy it does not vanish when the logits grow.
    """
    top = logits.topk(4, dim=1).values
    gap = (logits.gather(1, y[:, None]) - logits.gather(1, target[:, None])).squeeze(1)
    return -gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def apgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int,
    loss: str | Loss = "ce",
    random_start: bool = True,
) -> Tensor:
    """AutoPGD, Croce & Hein 2020, Algorithm 1: no step size to choose.

    The step starts at 2 eps; at checkpoints it is halved for each image whose loss rose in fewer
    than 3/4 of the steps since the last one, or whose best loss and step have not changed since,
    and the search goes on from its best point. x [B, C, H, W], y [B] -> each image's worst point.
    Raises ValueError for eps not positive, steps below 1, an unknown loss.
    """
    _check(eps=eps, steps=steps)
    loss, x = _loss(loss), x.detach()
    project, worst = _ball(x, eps), Worst(x, y)

    def ask(z: Tensor) -> tuple[Tensor, Tensor]:
        """Loss [B] and gradient at z; z is remembered where it is the worst so far."""
        z = z.detach().requires_grad_()
        logits = model(z)
        values = loss(logits, y)
        (grad,) = torch.autograd.grad(values.sum(), z)
        worst.update(z.detach(), logits.detach(), values.detach())
        return values.detach(), grad

    def where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask[:, None, None, None], a, b)

    if random_start:
        ask(x)  # the clean image is a candidate too
    z = project(x + eps * (2 * torch.rand_like(x) - 1)) if random_start else x
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
    """ceil(p_j * steps) with p = 0.22, 0.41, 0.57, .. (Croce & Hein 2020, section 3.2)."""
    checkpoints, p, gap = [], 22, 22  # in hundredths, which add up exactly
    while p < 100:
        checkpoints.append(math.ceil(p * steps / 100))
        gap = max(gap - 3, 6)
        p += gap
    return checkpoints


def auto_pgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int,
    targets: int = 9,
) -> Tensor:
    """AutoPGD with cross-entropy, then with targeted DLR (CW where there are fewer than 4 classes)
    towards each of the `targets` likeliest wrong classes: each image's worst point."""
    with torch.no_grad():
        logits = model(x)
    K = logits.shape[1]
    losses: list[str | Loss] = ["ce"]
    if K < 4:
        losses.append("cw")
    else:
        wrong = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)  # [B, K]
        for rank in range(min(targets, K - 1)):
            losses.append(partial(targeted_dlr_loss, target=wrong[:, rank]))
    worst = Worst(x.detach(), y)
    for loss in losses:
        x_adv = apgd(model, x, y, eps, steps, loss)
        with torch.no_grad():
            logits = model(x_adv)
        worst.update(x_adv, logits, cross_entropy(logits, y))
    return worst.x_adv


# ------------------------------------------------------------------------------------- Square

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries, of 10,000


@torch.no_grad()
def square(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    eps: float,
    n_queries: int,
    loss: str = "margin",
    p: float = 0.8,
    rescale: bool = False,
    batch_size: int = 250,
) -> Tensor:
    """Square Attack, Andriushchenko et al. 2020, l-infinity: black box, needs no gradient.

    Starts with vertical stripes of +-eps. Each query then sets a random square, p of the image's
    area, to x +- eps with one random sign a channel, and keeps it where the loss rises. p is halved
    after 10, 50, 200, .. queries, as in the SoE authors' code; with `rescale` after the same
    fractions of n_queries as these are of 10,000, as in Square's own. `loss` is "margin" or "ce".
    Only images that are still right are queried, gathered into full batches.

    x [N, C, H, W], y [N] -> x_adv, the last point kept. Random numbers come from torch's global
    generator. Raises ValueError for eps not positive, n_queries below 1, an unknown loss.
    """
    _check(eps=eps, n_queries=n_queries)
    if loss not in ("margin", "ce"):
        raise ValueError(f"loss is {loss!r}: it must be margin or ce")
    margin = partial(cw_loss, kappa=torch.inf)  # above 0 where the model is wrong

    def ask(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss [n], and whether the model is wrong [n]."""
        logits = torch.cat([model(part) for part in z.split(batch_size)])
        value = margin(logits, labels) if loss == "margin" else cross_entropy(logits, labels)
        return value, logits.argmax(1) != labels

    def signs(*shape: int) -> Tensor:
        return eps * (2.0 * torch.randint(0, 2, shape, device=x.device) - 1)

    (_, C, H, W), x_adv = x.shape, x.clone()
    highest, fooled = ask(x, y)
    project = _ball(x, eps)
    for query in tqdm(range(n_queries), "queries", leave=False, disable=None):
        active = (~fooled).nonzero().squeeze(1)  # [n]
        if len(active) == 0:
            break
        old, clean, n = x_adv[active], x[active], len(active)
        if query == 0:
            new = project(x + signs(len(x), C, 1, W))[active]  # vertical stripes
        else:
            now = query * 10_000 / n_queries if rescale else query
            area = p / 2 ** sum(now > after for after in HALVED_AFTER)
            side = min(max(round((area * H * W) ** 0.5), 1), H, W)
            top = torch.randint(0, H - side + 1, (n, 1, 1, 1), device=x.device)
            left = torch.randint(0, W - side + 1, (n, 1, 1, 1), device=x.device)
            row = torch.arange(H, device=x.device)[:, None] - top  # [n, 1, H, 1]
            column = torch.arange(W, device=x.device) - left  # [n, 1, 1, W]
            inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)  # [n, 1, H, W]
            change = signs(n, C, 1, 1)
            new = torch.where(inside, (clean + change).clamp(0, 1), old)
            same = (new == old).flatten(1).all(1)[:, None, None, None]  # then turn the signs round
            change = torch.where(same, -change, change)
            new = torch.where(inside, (clean + change).clamp(0, 1), old)
        value, wrong = ask(new, y[active])
        better = value > highest[active] if query else torch.ones_like(wrong)
        better |= wrong
        x_adv[active] = torch.where(better[:, None, None, None], new, old)
        highest[active] = torch.where(better, value, highest[active])
        fooled[active] = wrong
    return x_adv


# ------------------------------------------------------- attacks that know how the model decides


def soft_routing_loss(output: tuple[Tensor, Tensor], y: Tensor, T: float) -> Tensor:
    """-ln sum_j softmax_j(score / T) p_y^j: (logits [M, B, K], score [M, B]), y [B] -> [B].

    Algorithm 1's argmax hides the E heads from a gradient; a softmax shows them.
    """
    logits, score = output
    return -torch.logsumexp(F.log_softmax(score / T, 0) - expert_losses(logits, y), 0)


def hijack_loss(output: tuple[Tensor, Tensor], y: Tensor, j: int) -> Tensor:
    """l_j + ln softmax_j(score): expert j is to be wrong and to answer, [B]."""
    logits, score = output
    return expert_losses(logits, y)[j] + F.log_softmax(score, 0)[j]


def reweighing_loss(output: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    """sum_j w_j l_j, w_j falling with expert j's distance from its decision border: -> [B].

    After MORA (Yu et al., NeurIPS 2022): no gradient is spent on experts that have long failed, or
    that are far from it. No gradient flows through w = softmax_j(-|margin_j|).
    """
    logits, _ = output
    margin = torch.stack([cw_loss(of_expert, y, kappa=torch.inf) for of_expert in logits])  # [M, B]
    return (torch.softmax(-margin.abs().detach(), 0) * expert_losses(logits, y)).sum(0)


def adaptive(model: Any, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int) -> Tensor:
    """PGD by someone who has read the paper, for any model with `all_experts` and `combine`.

    Runs plain PGD, soft routing at T = 0.1 and 1, a hijack by each of the M experts, and
    reweighing, M + 4 attacks of `steps` steps: an image is robust only if every one fails.
    x [B, C, H, W], y [B] -> each image's worst point. Raises ValueError as `pgd`.
    """

    def plain(output: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        return cross_entropy(model.combine(*output), y)

    losses = [plain, *(partial(soft_routing_loss, T=T) for T in (0.1, 1.0)), reweighing_loss]
    losses += [partial(hijack_loss, j=j) for j in range(len(model.experts))]
    worst = Worst(x.detach(), y)
    for loss in losses:
        x_adv = pgd(
            model.all_experts,
            x,
            y,
            eps,
            alpha,
            steps,
            loss,
            random_start=True,
            keep_best=True,
            decide=lambda output: model.combine(*output),
        )
        with torch.no_grad():
            logits = model(x_adv)
        worst.update(x_adv, logits, cross_entropy(logits, y))
    return worst.x_adv
