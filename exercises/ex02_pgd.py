"""Exercise 2: projected gradient descent
40 minutes; appendix 4: the attacks

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
from exercises import constant, generator, rand

USES = "from attacks import Loss, ball, cross_entropy"
CUT = "pgd | attacks"
TASKS = """
pgd | (model: Callable, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int,
    loss: Loss = cross_entropy) -> Tensor | Projected gradient descent, from x itself and without
    momentum: x [B, C, H, W] in [0, 1], y [B] -> the last point, like x, detached. What it raises
    is loss(model(x), y), [B].
l2_step | (x_adv: Tensor, grad: Tensor, alpha: float) -> Tensor | One step of length alpha along
    the gradient, for each image of its own: x_adv, grad [B, C, H, W]. An image whose gradient is 0
    stays where it is. Nothing is projected.
"""
EPS, ALPHA = constant(0.3), constant(0.12)  # so large that gradients turn round on the way
X, Y = rand(8, 1, 2, 2, seed=2), torch.arange(8) % 3
GRAD = torch.tensor([[1.0, 2, 2, 4], [0.01, 0.02, 0.02, 0.04], [0, 0, 0, 0]]).double()
GRAD = torch.cat([GRAD, rand(1, 4, seed=3)]).view(4, 2, 1, 2)
FROM = torch.linspace(-0.1, 1, 16, dtype=torch.float64).view(4, 2, 1, 2)


def network(curved: bool) -> nn.Sequential:
    """Three classes on 1 x 2 x 2 images, in float64: linear, or with eight tanh units."""
    layers = [nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)] if curved else [nn.Linear(4, 3)]
    model, random = nn.Sequential(nn.Flatten(), *layers).double(), generator(1)
    for weights in model.parameters():
        weights.data = 3 * torch.randn(weights.shape, generator=random, dtype=torch.float64)
    return model


def attacked(steps: int, curved: bool, **how) -> Callable:
    return lambda own: own.pgd(network(curved), X.clone(), Y, EPS, ALPHA, steps, **how)


def changed(own: object) -> dict[str, bool]:
    """What is not as it was."""
    told = {}
    for mode in ("train", "eval"):
        model, x = network(curved=True).train(mode == "train"), X.clone()
        first, *rest = model.parameters()
        first.grad = torch.ones_like(first)  # of a training step
        x_adv = own.pgd(model, x, Y, EPS, ALPHA, 2)
        told |= {
            f"its {mode} mode": model.training != (mode == "train"),
            f"x, {mode}": not torch.equal(x, X) or x.requires_grad,
            f"a gradient in the weights, {mode}": first.grad is None or (first.grad != 1).any(),
            f"a gradient where there was none, {mode}": any(w.grad is not None for w in rest),
            f"weights without gradients, {mode}": not all(w.requires_grad for w in (first, *rest)),
            f"a result that asks for a gradient, {mode}": x_adv.requires_grad,
        }
    return told


def minus_p_y(logits: Tensor, y: Tensor) -> Tensor:
    return -logits.softmax(1).gather(1, y[:, None]).squeeze(1)


PROPERTIES = {
    ("pgd", 2, "one step moves every pixel by alpha, uphill, as far as the ball lets it"): {
        "a linear network, 1 step": attacked(1, curved=False),
        "a tanh network, 1 step": attacked(1, curved=True),
    },
    ("pgd", 2, "ten steps on a linear network reach the worst corner of the ball"): {
        "a linear network, 10 steps": attacked(10, curved=False)
    },
    ("pgd", 2, "several steps on a curved loss end where they should, also on another loss"): {
        "a tanh network, 2 steps": attacked(2, curved=True),
        "a tanh network, 7 steps": attacked(7, curved=True),
        "a tanh network, 3 steps on -p_y": attacked(3, curved=True, loss=minus_p_y),
    },
    ("pgd", 2, "the network is left as it was, and x_adv detached"): {"1 where changed": changed},
    ("l2_step", 2, "in l2 every image moves by alpha, a flat one not at all"): {
        "l2": lambda own: own.l2_step(FROM.clone(), GRAD.clone(), 0.5)
    },
}


def draw(axes, answers: dict, style: dict) -> None:
    """The loss of the tanh network's images, step by step."""
    steps = (1, 2, 7)
    of_steps = [answers[f"a tanh network, {n} step{'s' * (n > 1)}"][""] for n in steps]
    points, model = [X, *map(torch.from_numpy, of_steps)], network(curved=True)
    losses = [cross_entropy(model(x_adv), Y).mean().item() for x_adv in points]
    axes.plot([0, *steps], losses, "o-", **style)
    axes.set(xlabel="steps", ylabel="loss of the tanh network")


# -------------------------------------------------------------------------- for the judge alone


def pgd(model, x, y, eps, alpha, steps, loss=cross_entropy):
    project, x_adv = ball(x, eps), x.clone()
    for _ in range(steps):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(loss(model(x_adv), y).sum(), x_adv)
        x_adv = project(x_adv.detach() + alpha * grad.sign())
    return x_adv


def l2_step(x_adv: Tensor, grad: Tensor, alpha: float) -> Tensor:
    length = grad.flatten(1).norm(dim=1)[:, None, None, None].clamp(min=1e-12)
    return x_adv + alpha * grad / length


STANDS_IN = {  # in a handout: the student's, a step at a time, without momentum
    "pgd": """    step_of, project, points = yours(2, "pgd"), ball(x, eps), [x.detach()]
    if random_start:
        points.append(project(x + eps * (2 * torch.rand_like(x) - 1)))
    for step in range(steps):
        size = alpha * (1 + math.cos(math.pi * step / steps)) / 2 if falling else alpha
        points.append(project(step_of(model, points[-1], y, size, size, 1, loss)))
    return worst_of(lambda z: decide(model(z)), x, y, points) if keep_best else points[-1]"""
}
