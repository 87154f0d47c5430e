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


def network(*hidden: int) -> nn.Sequential:
    """Three classes on 1 x 2 x 2 images, in float64: linear, or with hidden tanh units."""
    sizes, random, layers = [4, *hidden, 3], generator(1), [nn.Flatten()]
    for width, out in zip(sizes, sizes[1:]):
        layers += [nn.Linear(width, out), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    for weights in model.parameters():
        weights.data = 3 * torch.randn(weights.shape, generator=random, dtype=torch.float64)
    return model


def attacked(steps: int, *hidden: int, **how) -> Callable:
    return lambda own: own.pgd(network(*hidden), X.clone(), Y, EPS, ALPHA, steps, **how)


def changed(own: object) -> dict[str, Tensor | float]:
    """1 where something is not as it was."""
    told = {}
    for train in (True, False):
        model, x = network(8).train(train), X.clone()
        first, *rest = model.parameters()
        first.grad = torch.ones_like(first)  # of a training step
        x_adv = own.pgd(model, x, Y, EPS, ALPHA, 2)
        told |= {
            f"its mode, {train}": model.training != train,
            "x": not torch.equal(x, X) or x.requires_grad,
        }
        told["a gradient in the weights"] = first.grad is None or not (first.grad == 1).all()
        told["a gradient where there was none"] = any(w.grad is not None for w in rest)
        told["weights that ask for no gradient"] = not all(w.requires_grad for w in (first, *rest))
        told["a result that asks for a gradient"] = x_adv.requires_grad
    return told


def minus_p_y(logits: Tensor, y: Tensor) -> Tensor:
    return -logits.softmax(1).gather(1, y[:, None]).squeeze(1)


PROPERTIES = {
    ("pgd", 2, "one step moves every pixel by alpha, uphill, as far as the ball lets it"): {
        "a linear network, 1 step": attacked(1),
        "a tanh network, 1 step": attacked(1, 8),
    },
    ("pgd", 2, "ten steps on a linear network reach the worst corner of the ball"): {
        "a linear network, 10 steps": attacked(10)
    },
    ("pgd", 2, "several steps on a curved loss end where they should, also on another loss"): {
        "a tanh network, 2 steps": attacked(2, 8),
        "a tanh network, 7 steps": attacked(7, 8),
        "a tanh network, 3 steps on -p_y": attacked(3, 8, loss=minus_p_y),
    },
    ("pgd", 2, "the network is left as it was, and x_adv detached"): {"1 where changed": changed},
    ("l2_step", 2, "in l2 every image moves by alpha, a flat one not at all"): {
        "l2": lambda own: own.l2_step(FROM.clone(), GRAD.clone(), 0.5)
    },
}


def draw(axes, answers: dict, style: dict) -> None:
    """The loss of the tanh network's images, step by step."""
    points = {0: X} | {
        steps: torch.from_numpy(answers[f"a tanh network, {steps} step{'s' * (steps > 1)}"][""])
        for steps in (1, 2, 7)
    }
    losses = [cross_entropy(network(8)(x_adv), Y).mean().item() for x_adv in points.values()]
    axes.plot(list(points), losses, "o-", **style)
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
    "pgd": """    step_of, project, worst = yours(2, "pgd"), ball(x, eps), Worst(x.detach(), y)
    x_adv = project(x + eps * (2 * torch.rand_like(x) - 1)) if random_start else x.detach()
    points = [x.detach(), x_adv]
    for step in range(steps):
        size = alpha * (1 + math.cos(math.pi * step / steps)) / 2 if falling else alpha
        x_adv = project(step_of(model, x_adv, y, size, size, 1, loss))
        points.append(x_adv)
    for point in points if keep_best else ():
        with torch.no_grad():
            output = model(point)
        worst.update(point, decide(output), loss(output, y))
    return worst.x_adv if keep_best else x_adv"""
}
