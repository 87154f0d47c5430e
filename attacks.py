"""Attacks: images that a model gets wrong, inside a ball around given ones.

All of them search the l-infinity ball of radius `eps` around x, cut to [0, 1]; `eps` and `alpha`
are in pixel units of [0, 1]. The model is any callable from images [B, C, H, W] to logits [B, K].
The caller sets the mode, in two visible lines: `model.eval()` before, so that the attack neither
sees nor moves batch statistics, and `model.train()` after.

    model.eval()
    x_adv = pgd(model, x, y, eps=0.03, alpha=0.006, steps=20, random_start=True, keep_best=True)
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial, wraps
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

Loss = Callable[[Any, Tensor], Tensor]  # what the model returns, y [B] -> [B], to be raised
Attack = Callable[[Any, Tensor, Tensor], Tensor]  # model, x [N, C, H, W], y [N] -> x_adv


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-ln p_y, [B, K] -> [B]."""
    return F.cross_entropy(logits, y, reduction="none")


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k != y} z_k - z_y, [B, K] -> [B]: above 0 exactly where the answer is wrong.

    The true class is masked by -inf, not by 0, so that wrong logits count when all are negative.
    """
    true = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).max(1).values - true


def cw_loss(logits: Tensor, y: Tensor, kappa: float = 0.1) -> Tensor:
    """The margin, up to kappa, [B, K] -> [B]: Carlini & Wagner 2017."""
    return margin_loss(logits, y).clamp(max=kappa)


def expert_losses(logits: Tensor, y: Tensor) -> Tensor:
    """l_j = -ln p_y^j: logits [M, B, K], y [B] -> [M, B]."""
    return F.cross_entropy(logits.transpose(1, 2), y.expand(len(logits), -1), reduction="none")


def check(
    x: Tensor, y: Tensor, eps: float, trusted: bool = False, **positive: float
) -> tuple[Tensor, Tensor]:
    """The door of every attack: x detached, and y as long integers. Raises ValueError for a number
    that is not positive, eps above 1, and images that are not finite or not in [0, 1]: of `trusted`
    ones no value is looked at, for which a GPU would have to wait."""
    for name, value in {"eps": eps, **positive}.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}: it must be positive")
    if eps > 1:
        raise ValueError(f"eps is {eps}: it must be at most 1, as pixels are in [0, 1]: 8/255, say")
    if not x.is_floating_point() or not (trusted or ((x >= 0) & (x <= 1)).all()):
        raise ValueError("an attack takes images in [0, 1], floating and finite, not normalised")
    return x.detach(), y.long()


def takes_gradients(attack: Attack) -> Attack:
    """The same attack, also within torch.no_grad() and torch.inference_mode(). It works on clones,
    as the tensors of inference mode have no gradients."""

    @wraps(attack)
    def anywhere(model: Any, x: Tensor, y: Tensor, *rest: Any, **named: Any) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            return attack(model, x.clone(), y.long().clone(), *rest, **named)

    return anywhere


def ball(x: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    """The projection onto the l-infinity ball of radius eps around x, cut to [0, 1]."""
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


def worst_of(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, candidates: Iterable[Tensor]
) -> Tensor:
    """The worst of several x_adv for each image: restarts of one attack, or different attacks."""
    worst = Worst(x.detach(), y)
    for x_adv in candidates:
        with torch.no_grad():
            logits = model(x_adv)
        worst.update(x_adv, logits, cross_entropy(logits, y))
    return worst.x_adv


@takes_gradients
def pgd(
    model: Callable[[Tensor], Any],
    x: Tensor,
    y: Tensor,
    eps: float,
    alpha: float,
    steps: int,
    loss: Loss = cross_entropy,
    momentum: float = 0.0,
    random_start: bool = False,
    keep_best: bool = False,
    falling: bool = False,
    trusted: bool = False,
    decide: Callable[[Any], Tensor] = lambda logits: logits,
) -> Tensor:
    """Projected gradient descent, Madry et al. 2018: `steps` steps of alpha * sign(gradient).

    FGSM is one step of alpha = eps, BIM is PGD without random start, MIM (Dong et al. 2018)
    has momentum 0.9 or 1 on the gradient divided by its mean absolute value.

    x [B, C, H, W] in [0, 1], y [B] -> x_adv like x, detached. `loss` is a function of what the
    model returns and y; `decide` makes logits [B, K] of what the model returns. `keep_best`, for
    evaluating, takes for each image the first misclassified point, else the one of highest loss,
    over x itself and every step. With `falling`, alpha falls to 0 as half a cosine wave does. A
    random start comes from torch's global generator. Where a gradient is not a number, it adds
    nothing. For the errors, and `trusted` images, see `check`.
    """
    x, y = check(x, y, eps, trusted, alpha=alpha, steps=steps)
    project, worst = ball(x, eps), Worst(x, y)

    @torch.no_grad()
    def consider(x_adv: Tensor) -> None:
        output = model(x_adv)
        worst.update(x_adv, decide(output), loss(output, y))

    if keep_best and random_start:  # without it the first point is x itself
        consider(x)
    x_adv = project(x + eps * (2 * torch.rand_like(x) - 1)) if random_start else x.clone()
    velocity = torch.zeros_like(x)
    for step in range(steps):
        x_adv.requires_grad_()
        output = model(x_adv)
        values = loss(output, y)  # [B]
        # The gradient for the input alone: weights and their .grad stay as they were.
        (grad,) = torch.autograd.grad(values.sum(), x_adv)
        grad = grad.nan_to_num(nan=0, posinf=1e30, neginf=-1e30)  # else momentum would keep it
        x_adv = x_adv.detach()
        if keep_best:
            worst.update(x_adv, decide(output).detach(), values.detach())
        if momentum:  # on gradients of size 1, in the mean over pixels
            grad = grad / grad.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-30)
        velocity = momentum * velocity + grad
        size = alpha * (1 + math.cos(math.pi * step / steps)) / 2 if falling else alpha
        x_adv = project(x_adv + size * velocity.sign())
    if keep_best:
        consider(x_adv)
        return worst.x_adv
    return x_adv


# ------------------------------------------------------------------------------------- Square

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries, of 10,000


@torch.no_grad()
def square(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    eps: float,
    n_queries: int,
    p: float = 0.8,
    rescale: bool = False,
    batch_size: int = 250,
) -> Tensor:
    """Square Attack, Andriushchenko et al. 2020, l-infinity: black box, needs no gradient.

    Starts with vertical stripes of +-eps. Each query then sets a random square, p of the image's
    area, to x +- eps with one random sign a channel, and keeps it where the margin rises. p is
    halved after 10, 50, 200, .. queries, as in the SoE authors' code; with `rescale` after the same
    fractions of n_queries as these are of 10,000, as in Square's own. Only images that are still
    classified correctly are queried, gathered into full batches.

    x [N, C, H, W], y [N] -> x_adv, the last point kept. Random numbers come from torch's global
    generator. For the errors see `check`.
    """
    x, y = check(x, y, eps, n_queries=n_queries)

    def ask(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The margin [n], and whether the model is wrong [n]."""
        logits = torch.cat([model(part) for part in z.split(batch_size)])
        return margin_loss(logits, labels), logits.argmax(1) != labels

    def signs(*shape: int) -> Tensor:
        return eps * (2.0 * torch.randint(0, 2, shape, device=x.device) - 1)

    (_, C, H, W), x_adv = x.shape, x.clone()
    highest, fooled = ask(x, y)
    project = ball(x, eps)
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
        better = wrong | (value > highest[active] if query else torch.ones_like(wrong))
        x_adv[active] = torch.where(better[:, None, None, None], new, old)
        highest[active] = torch.where(better, value, highest[active])
        fooled[active] = wrong
    return x_adv


# ------------------------------------------------------- attacks that know how the model decides


def soft_routing_loss(output: tuple[Tensor, Tensor], y: Tensor, T: float) -> Tensor:
    """The margin of ln sum_j softmax_j(score / T) f_j: (logits [M, B, K], score [M, B]), y [B]
    -> [B].

    The argmax of who answers hides the scores from a gradient; a softmax shows them. Unlike the
    cross-entropy, the margin has a gradient where the mixture is sure of the true label.
    """
    logits, score = output
    log_mixture = torch.logsumexp((score / T)[..., None] + F.log_softmax(logits, -1), 0)
    return margin_loss(log_mixture, y)  # a constant in it, as softmax has, would cancel


def misroute_loss(output: tuple[Tensor, Tensor], y: Tensor, j: int, scale: float) -> Tensor:
    """min(margin_j, scale * gap_j): expert j is to be wrong and to answer, [B].

    margin_j = max_{k != y} z_jk - z_jy, gap_j = s_j - max_{i != j} s_i. Inference is wrong
    exactly where both are above 0 for some j.
    """
    logits, score = output
    others = torch.cat([score[:j], score[j + 1 :]])  # [M - 1, B]
    return torch.minimum(margin_loss(logits[j], y), scale * (score[j] - others.max(0).values))


def routes(model: nn.Module) -> bool:
    """Do scores say which expert answers, or weighs most, so that an attack may lead to another?"""
    return model.row != "vote" and len(model.experts) > 1


def misled(model: nn.Module, x: Tensor, y: Tensor, search: Callable) -> Iterator[Tensor]:
    """1 + M attempts on who answers: x_adv by soft routing, and by misrouting to each expert.

    `search` is `pgd` or its like, with arguments `loss` and `decide`. T and the gap's scale fit
    these images, x [B, C, H, W]: where scores differ by many T the softmax is an argmax again.
    No attempt at all where no score counts.
    """
    if not routes(model):
        return
    logits, score = (part.detach() for part in model.all_experts(x))
    first, second = score.topk(2, 0).values
    gap = (first - second).mean().item() + 1e-12
    margin = margin_loss(logits.flatten(0, 1), y.repeat(len(logits))).abs().mean().item()
    losses = [partial(soft_routing_loss, T=gap)]
    losses += [partial(misroute_loss, j=j, scale=margin / gap) for j in range(len(logits))]
    for loss in losses:
        yield search(model.all_experts, x, y, loss=loss, decide=lambda out: model.combine(*out))


@takes_gradients
def adaptive(model: nn.Module, x: Tensor, y: Tensor, search: Callable) -> Tensor:
    """An attack by someone who has read the paper, on the answer and on who answers: 2 + M runs.

    x [B, C, H, W], y [B] -> each image's worst point. For `search` see `misled`.
    """
    return worst_of(model, x, y, chain([search(model, x, y)], misled(model, x, y, search)))


def far_and_near(eps: float, steps: int) -> Attack:
    """PGD from 2 eps down, from a random start, with momentum: crosses the ball, then settles."""
    search = partial(pgd, eps=eps, alpha=2 * eps, steps=steps, momentum=0.75, falling=True)
    return partial(search, random_start=True, keep_best=True)


def in_batches(attack: Attack, batch_size: int = 250) -> Attack:
    """The same attack, a batch at a time; on a terminal a bar says how far it is."""

    def of_all(model: Any, x: Tensor, y: Tensor) -> Tensor:
        pairs = tqdm([*zip(x.split(batch_size), y.split(batch_size))], leave=False, disable=None)
        return torch.cat([attack(model, *pair) for pair in pairs])

    return of_all


def attacks_at(eps: float, steps: int = 20, queries: int = 1000) -> dict[str, Attack]:
    """{name: fn(model, x, y) -> x_adv, each image's worst point}.

    Steps are eps / 5 as in the authors' evaluation, eps in FGSM, a tenth of eps in MIM, and fall
    from 2 eps in `adaptive`.
    """
    pgd_, alpha = partial(pgd, eps=eps, keep_best=True), eps / 5
    from_anywhere = partial(pgd_, alpha=alpha, steps=steps, random_start=True)
    gradient_attacks = {
        "pgd": from_anywhere,
        "fgsm": partial(pgd_, alpha=eps, steps=1),
        "bim": partial(pgd_, alpha=alpha, steps=steps),
        "mim": partial(pgd_, alpha=eps / 10, steps=steps, momentum=0.9),
        "cw": partial(from_anywhere, loss=cw_loss),
        "adaptive": partial(adaptive, search=far_and_near(eps, steps)),
    }
    attacks = {name: in_batches(attack) for name, attack in gradient_attacks.items()}
    attacks["square"] = partial(square, eps=eps, n_queries=queries, rescale=True)
    return attacks  # Square fills its batches itself


ATTACKS = tuple(attacks_at(eps=1.0))  # their names
