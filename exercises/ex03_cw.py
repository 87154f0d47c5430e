"""Exercise 3: the margin of Carlini and Wagner

Where a network is sure, the gradient of its cross-entropy is nearly 0; that of the margin, the best
wrong logit less the true one, is not. `margin_loss` returns it, and `cw_loss` cuts it off at kappa,
as an image that is wrong by kappa needs no more attacking. Then the same attack with a target: the
answer shall be one certain label.

In words: the authors' code takes the maximum of mask * logits, where the mask has 0 at the true
class. Which figures in a paper would this flatter, and why do they look like robustness?
"""

from collections.abc import Callable

import torch
from torch import Tensor

from exercises import Property, shaped

MINUTES, PAPER = 15, "appendix 4: the attacks"
IMPORTS = "import torch\nfrom torch import Tensor"
REBUILD = {
    "margin_loss": (
        "attacks",
        "max_{k != y} z_k - z_y of logits z [B, K] and labels y [B] -> [B]: above 0 exactly where "
        "the answer is wrong.",
    ),
    "cw_loss": ("attacks", "The margin, but no more than kappa: [B, K], [B] -> [B]."),
}
TWIST = {
    "targeted_loss": "z_t - max_{k != t} z_k for the wanted labels t [B], but no more than kappa: "
    "logits [B, K] -> [B]. To be raised, like the others."
}


def targeted_loss(logits: Tensor, target: Tensor, kappa: float = 0.1) -> Tensor:
    wanted = logits.gather(1, target[:, None]).squeeze(1)
    others = logits.scatter(1, target[:, None], -torch.inf).max(1).values
    return (wanted - others).clamp(max=kappa)


NEGATIVE = torch.tensor([[-1.0, -3.0, -5.0]], dtype=torch.float64)
SEVERAL = torch.tensor([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [3.0, -1.0, 0.5]], dtype=torch.float64)
Y = torch.tensor([0, 0, 1])


FAR = torch.tensor([[-1e6, -3e6, -2e6]], dtype=torch.float64)


def with_gradient(name: str, logits: Tensor, y: Tensor, **how) -> Callable:
    """The loss, and its gradient."""

    def probe(own: object) -> tuple[Tensor, Tensor]:
        z = logits.clone().requires_grad_()
        values = shaped(getattr(own, name)(z, y, **how), len(y))
        if not values.requires_grad:  # a constant, as past kappa
            return values, torch.zeros_like(z)
        return values, torch.autograd.grad(values.sum(), z)[0]

    return probe


PROBES = {
    "margin of (2, 1, 0), (0, 2, 1), (3, -1, .5); y = 0, 0, 1": with_gradient(
        "margin_loss", SEVERAL, Y
    ),
    "margin of (-1, -3, -5); y = 0": with_gradient("margin_loss", NEGATIVE, Y[:1]),
    "margin of -1e6, -3e6, -2e6; y = 0": with_gradient("margin_loss", FAR, Y[:1]),
    "cw of (-1, -3, -5); y = 0": with_gradient("cw_loss", NEGATIVE, Y[:1]),
    "cw of (0, 2, 1), kappa .1; y = 0": with_gradient("cw_loss", SEVERAL[1:2], Y[:1]),
    "cw of (0, 2, 1), kappa 1.5; y = 0": with_gradient("cw_loss", SEVERAL[1:2], Y[:1], kappa=1.5),
    "target 1 in (2, 1, 0), (0, 2, 1), (3, -1, .5)": with_gradient(
        "targeted_loss", SEVERAL, torch.tensor([1, 1, 1])
    ),
    "target 1 in the same, kappa 0.5": with_gradient(
        "targeted_loss", SEVERAL, torch.tensor([1, 1, 1]), kappa=0.5
    ),
    "target 1 in (-1, -3, -5)": with_gradient("targeted_loss", NEGATIVE, torch.tensor([1])),
}
NAMES = list(PROBES)
PROPERTIES = [
    Property("the margin is above 0 exactly where the answer is wrong", 1, NAMES[:1]),
    Property("it sees wrong logits that are all negative", 2, NAMES[1:3]),
    Property("past kappa there is nothing left to gain", 1, NAMES[3:6]),
    Property("with a target it is the target that must lead", 1, NAMES[6:]),
]
MISTAKES = {
    "masked by 0": "With 0 in the true class's place the maximum is 0 where all wrong logits are "
    "negative: a constant, without a gradient.",
    "the sign": "The sign is turned round: raising this helps whom it should hurt.",
    "not cut": "kappa is the most that there is to gain: clamp(max=kappa).",
    "kappa fixed": "kappa is an argument: 0.1 is only its default.",
    "a finite mask": "Logits may lie below any finite number in the true class's place: -infinity.",
    "of probabilities": "The margin is that of the logits: a softmax flattens it where it is sure.",
    "less the cut loss": "-cw_loss cuts the wrong end: first the sign, then the cut.",
    "Carlini and Wagner's own sign": "They minimise max(z_y - max z_k, -kappa); here losses are "
    "raised, so it is min(max z_k - z_y, kappa).",
    "cut at 0, too": "Below 0 the margin must stay: there the attack has its way to go.",
    "kappa as a floor": "clamp(min=kappa) keeps nothing but what is beyond kappa.",
    "the true class among the wrong ones": "The maximum runs over all classes.",
}


def variant(wrong: frozenset[str]) -> dict[str, Callable]:
    def margin_loss(logits, y):
        true = logits.gather(1, y[:, None]).squeeze(1)
        masked = logits
        if "the true class among the wrong ones" not in wrong:
            fill = 0.0 if "masked by 0" in wrong else -torch.inf
            masked = logits.scatter(1, y[:, None], fill)
        margin = masked.max(1).values - true
        return -margin if "the sign" in wrong else margin

    def cw_loss(logits, y, kappa=0.1):
        if "Carlini and Wagner's own sign" in wrong:
            return (-margin_loss(logits, y)).clamp(min=-kappa)
        how = {"min": kappa} if "kappa as a floor" in wrong else {"max": kappa}
        return margin_loss(logits, y).clamp(**how)

    def targeted(logits, target, kappa=0.1):
        how = {"min": kappa} if "kappa as a floor" in wrong else {"max": kappa}
        return (-margin_loss(logits, target)).clamp(**how)

    return {"margin_loss": margin_loss, "cw_loss": cw_loss, "targeted_loss": targeted}


def more() -> dict[str, dict[str, Callable]]:
    right = variant(frozenset())
    margin_loss, cw_loss = right["margin_loss"], right["cw_loss"]

    def masked(logits, y):
        true = logits.gather(1, y[:, None]).squeeze(1)
        return logits.scatter(1, y[:, None], -1e4).max(1).values - true

    return {
        "not cut": {
            "cw_loss": lambda z, y, kappa=0.1: margin_loss(z, y),
            "targeted_loss": lambda z, t, kappa=0.1: -margin_loss(z, t),
        },
        "kappa fixed": {
            "cw_loss": lambda z, y, kappa=0.1: cw_loss(z, y),
            "targeted_loss": lambda z, t, kappa=0.1: targeted_loss(z, t),
        },
        "cut at 0, too": {"cw_loss": lambda z, y, kappa=0.1: cw_loss(z, y, kappa).clamp(min=0)},
        "a finite mask": {"margin_loss": masked},
        "of probabilities": {"margin_loss": lambda z, y: margin_loss(z.softmax(1), y)},
        "less the cut loss": {"targeted_loss": lambda z, t, kappa=0.1: -cw_loss(z, t, kappa)},
    }
