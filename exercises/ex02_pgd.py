"""Exercise 2: projected gradient descent

The attack on which everything rests: `steps` times, move every pixel by alpha in the direction
that raises the loss, then back into the ball. Use `ball` and `cross_entropy` of attacks.py, and
leave the network as it was: its mode, what asks for gradients, the gradients in its weights. Then
its step in l2.

In words: a sum and a mean of the batch's losses give the same step here. When would the mean hurt?
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks import ball, cross_entropy
from exercises import Property

MINUTES, PAPER = 40, "appendix 4: the attacks"
IMPORTS = """from collections.abc import Callable

import torch
from torch import Tensor

from attacks import ball, cross_entropy"""
CUT = [("attacks", "pgd")]  # in a handout, too
REBUILD: dict = {}
TWIST = {
    "pgd": "Projected gradient descent, from x itself and without momentum: x [B, C, H, W] in "
    "[0, 1], y [B] -> the last point, like x, detached. The model maps images to logits [B, K].",
    "l2_step": "One step of length alpha along the gradient, for each image of its own: x_adv and "
    "grad [B, C, H, W]. An image whose gradient is 0 stays where it is. Nothing is projected.",
}


def pgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    eps: float,
    alpha: float,
    steps: int,
) -> Tensor:
    project, x_adv = ball(x, eps), x.clone()
    for _ in range(steps):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(model(x_adv), y).sum(), x_adv)
        x_adv = project(x_adv.detach() + alpha * grad.sign())
    return x_adv


def l2_step(x_adv: Tensor, grad: Tensor, alpha: float) -> Tensor:
    length = grad.flatten(1).norm(dim=1)[:, None, None, None]
    return x_adv + alpha * grad / length.clamp(min=1e-12)


def network(linear: bool) -> nn.Module:
    """Three classes on 1 x 2 x 2 images, in float64."""
    generator = torch.Generator().manual_seed(1)
    layers = [nn.Flatten(), nn.Linear(4, 3 if linear else 8)]
    if not linear:
        layers += [nn.Tanh(), nn.Linear(8, 3)]
    model = nn.Sequential(*layers).double()
    for weights in model.parameters():
        weights.data = 3 * torch.randn(weights.shape, generator=generator, dtype=torch.float64)
    return model


def images() -> Tensor:
    return torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(2)).double()


Y = torch.tensor([0, 1, 2])
HOW = {"eps": 0.3, "alpha": 0.12}  # so large that gradients turn round on the way


def left_behind(own: object) -> list[float]:
    """Is the weights' gradient another than before? Is the network in another mode, do its weights
    ask for no gradient? Is x changed, or does it ask for one?"""
    found = []
    for train in (True, False):
        model, x = network(linear=False).train(train), images()
        weights = list(model.parameters())
        weights[0].grad = torch.ones_like(weights[0])
        own.pgd(model, x, Y, **HOW, steps=2)
        kept = [w.grad is None or (w.grad == 1).all() for w in weights]
        found += [not all(kept), weights[0].grad is None, model.training != train]
        found += [not all(w.requires_grad for w in weights)]
        found += [not torch.equal(x, images()), x.requires_grad]
    return list(map(float, found))


def attacked(linear: bool, steps: int) -> Callable:
    return lambda own: own.pgd(network(linear), images(), Y, **HOW, steps=steps)


GRAD = torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=torch.float64).view(1, 2, 1, 2)
GRAD = torch.cat([GRAD, GRAD / 100, GRAD * 0])
FROM = torch.linspace(-0.1, 1, 12, dtype=torch.float64).view(3, 2, 1, 2)
PROBES = {
    "a linear network, 1 step": attacked(True, 1),
    "a linear network, 10 steps: the corner": attacked(True, 10),
    "a tanh network, 1 step": attacked(False, 1),
    "a tanh network, 2 steps": attacked(False, 2),
    "a tanh network, 7 steps": attacked(False, 7),
    "0 where gradients, mode, requires_grad, and x are as before (twice)": left_behind,
    "the result asks for no gradient": lambda own: float(
        own.pgd(network(True), images(), Y, **HOW, steps=2).requires_grad
    ),
    "l2: gradients (1, 2, 2, 4), a hundredth of it, 0": lambda own: own.l2_step(
        FROM.clone(), GRAD, 0.5
    ),
}
NAMES = list(PROBES)
PROPERTIES = [
    Property("the first step raises the loss, by alpha in every pixel", 2, NAMES[:1]),
    Property("on a linear network it reaches the worst corner of the ball", 2, NAMES[1:2]),
    Property("each step starts where the last one ended", 2, NAMES[2:5]),
    Property("the network is left as it was, and x_adv detached", 2, NAMES[5:7]),
    Property("in l2 every image moves by alpha, a flat one not at all", 2, NAMES[7:]),
]
MISTAKES = {
    "no projection": "After some steps the image has left the ball: eps counts for nothing.",
    "descends": "The loss is lowered: that makes images easier.",
    "no sign": "The raw gradient is tiny where the network is sure: the attack hardly moves.",
    "alpha = eps": "Every step crosses the whole ball, so it jumps between corners.",
    "the predicted label": "Where the network errs already, its error is attacked, not the truth.",
    "always the gradient at x": "Each step needs the gradient where it stands, not where the first "
    "one stood, nor the sum of all so far (x.grad not set to zero, or momentum).",
    "projection at the end alone": "Each step must come back into the ball: what is outside has "
    "other gradients.",
    "random start": "This one starts from x itself.",
    "the worst point on the way": "The last point is asked for, whatever came before.",
    "a step short": "One step fewer than asked for.",
    ".grad filled": "loss.backward() leaves gradients in the weights, and the next training step "
    "adds its own to them. torch.autograd.grad gives that of the input alone.",
    "a step too many": "One step more than asked for.",
    "not detached": "The result asks for a gradient: its whole history stays in memory.",
    "x in place": "x itself was changed: the next attack starts elsewhere.",
    "[0, 1] left": "Pixels are cut to [0, 1], too: `ball` does both.",
    "no ball": "Nothing keeps the image near x, nor in [0, 1].",
    "the mode changed": "The caller has put the network into a mode: it must be in it afterwards.",
    "weights frozen": "The weights ask for no gradient afterwards: training would stop.",
    "earlier gradients lost": "zero_grad wipes gradients that were there before.",
    "a flat image divides by 0": "0 / 0 is NaN: an image without a gradient is to stay.",
    "x_adv forgotten": "The step alone is returned, not the point that it leads to.",
    "a length for each channel": "The length is taken over all channels and pixels of an image.",
    "the sign in l2": "sign() is the step of l-infinity.",
    "a length for the whole batch": "In l2 the norm was taken over all images together.",
    "no length": "In l2 the gradient is divided by its length; else a sure image hardly moves.",
    "the l1 length": "The length is the root of the sum of squares, not the sum of magnitudes.",
}


def variant(wrong: frozenset[str]) -> dict[str, Callable]:
    def pgd(model, x, y, eps, alpha, steps):
        alpha = eps if "alpha = eps" in wrong else alpha
        project, x_adv = ball(x, eps), x.clone()
        if "random start" in wrong:
            generator = torch.Generator().manual_seed(0)
            x_adv = project(x + eps * (2 * torch.rand(x.shape, generator=generator).double() - 1))
        points = [x_adv]
        for _ in range(steps - ("a step short" in wrong)):
            x_adv.requires_grad_()
            at = x.clone().requires_grad_() if "always the gradient at x" in wrong else x_adv
            logits = model(at)
            label = logits.argmax(1) if "the predicted label" in wrong else y
            loss = cross_entropy(logits, label).sum()
            if ".grad filled" in wrong:
                loss.backward()
                grad = at.grad
            else:
                (grad,) = torch.autograd.grad(loss, at)
            step = alpha * (grad if "no sign" in wrong else grad.sign())
            x_adv = x_adv.detach() + (-step if "descends" in wrong else step)
            if "no projection" in wrong:
                x_adv = x_adv.clamp(0, 1)
            elif "projection at the end alone" not in wrong:
                x_adv = project(x_adv)
            points.append(x_adv)
        if "the worst point on the way" in wrong:
            losses = torch.stack([cross_entropy(model(z), y) for z in points])
            x_adv = torch.stack(points)[losses.argmax(0), torch.arange(len(y))].detach()
        return project(x_adv) if "projection at the end alone" in wrong else x_adv

    def l2_step(x_adv, grad, alpha):
        length = grad.flatten(1).norm(dim=1)[:, None, None, None]
        length = grad.norm() if "a length for the whole batch" in wrong else length
        if "the l1 length" in wrong:
            length = grad.abs().sum((1, 2, 3), keepdim=True)
        if "no length" in wrong:
            return x_adv + alpha * grad
        return x_adv + alpha * grad / length.clamp(min=1e-12)

    return {"pgd": pgd, "l2_step": l2_step}


def more() -> dict[str, dict[str, Callable]]:
    def before(change: Callable) -> dict[str, Callable]:
        def attack(model, *rest):
            change(model)
            return pgd(model, *rest)

        return {
            "pgd": lambda model, x, y, eps, alpha, steps: attack(model, x, y, eps, alpha, steps)
        }

    def not_detached(model, x, y, eps, alpha, steps):
        return pgd(model, x, y, eps, alpha, steps).requires_grad_()

    def in_place(model, x, y, eps, alpha, steps):
        return x.copy_(pgd(model, x, y, eps, alpha, steps))

    def within(eps_of: Callable) -> dict[str, Callable]:
        def attack(model, x, y, eps, alpha, steps):
            z, around = x, eps_of(eps)
            for _ in range(steps):
                z = z.detach().requires_grad_()
                (grad,) = torch.autograd.grad(cross_entropy(model(z), y).sum(), z)
                z = (z.detach() + alpha * grad.sign()).clamp(x - around, x + around)
            return z

        return {"pgd": attack}

    def by(length: Callable) -> dict[str, Callable]:
        return {"l2_step": lambda x_adv, grad, alpha: x_adv + alpha * grad / length(grad)}

    each = {"dim": (1, 2, 3), "keepdim": True}
    return {
        "a step too many": {
            "pgd": lambda model, x, y, e, a, steps: pgd(model, x, y, e, a, steps + 1)
        },
        "not detached": {"pgd": not_detached},
        "x in place": {"pgd": in_place},
        "[0, 1] left": within(lambda eps: eps),
        "no ball": within(lambda eps: torch.inf),
        "the mode changed": before(lambda model: model.eval()),
        "weights frozen": before(lambda model: model.requires_grad_(False)),
        "earlier gradients lost": before(lambda model: model.zero_grad()),
        "a flat image divides by 0": by(lambda grad: grad.norm(**each)),
        "x_adv forgotten": {"l2_step": lambda x, grad, alpha: l2_step(x, grad, alpha) - x},
        "a length for each channel": by(
            lambda g: g.norm(dim=(2, 3), keepdim=True).clamp(min=1e-12)
        ),
        "the sign in l2": {"l2_step": lambda x_adv, grad, alpha: x_adv + alpha * grad.sign()},
    }


def draw(axes, answers: dict, style: dict) -> None:
    """The loss of the tanh network's three images, step by step."""
    losses = []
    for steps, name in ((1, NAMES[2]), (2, NAMES[3]), (7, NAMES[4])):
        x_adv = torch.from_numpy(answers[name])
        losses.append((steps, cross_entropy(network(linear=False)(x_adv), Y).mean().item()))
    start = cross_entropy(network(linear=False)(images()), Y).mean().item()
    axes.plot(*zip((0, start), *losses), "o-", **style)
    axes.set(xlabel="steps", ylabel="loss of the tanh network")
