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


def with_gradient(name: str, logits: Tensor, y: Tensor) -> Callable:
    """The loss, and its gradient."""

    def probe(own: object) -> tuple[Tensor, Tensor]:
        z = logits.clone().requires_grad_()
        values = shaped(getattr(own, name)(z, y), len(y))
        return values, torch.autograd.grad(values.sum(), z)[0]

    return probe


PROBES = {
    "margin of (2, 1, 0), (0, 2, 1), (3, -1, .5); y = 0, 0, 1": with_gradient(
        "margin_loss", SEVERAL, Y
    ),
    "margin of (-1, -3, -5); y = 0": with_gradient("margin_loss", NEGATIVE, Y[:1]),
    "cw of (-1, -3, -5); y = 0": with_gradient("cw_loss", NEGATIVE, Y[:1]),
    "cw of (0, 2, 1), kappa .1; y = 0": with_gradient("cw_loss", SEVERAL[1:2], Y[:1]),
    "target 1 in (2, 1, 0), (0, 2, 1), (3, -1, .5)": with_gradient(
        "targeted_loss", SEVERAL, torch.tensor([1, 1, 1])
    ),
    "target 1 in (-1, -3, -5)": with_gradient("targeted_loss", NEGATIVE, torch.tensor([1])),
}
NAMES = list(PROBES)
PROPERTIES = [
    Property("the margin is above 0 exactly where the answer is wrong", 1, NAMES[:1]),
    Property("it sees wrong logits that are all negative", 2, NAMES[1:3]),
    Property("past kappa there is nothing left to gain", 1, NAMES[3:4]),
    Property("with a target it is the target that must lead", 1, NAMES[4:]),
]
MISTAKES = {
    "masked by 0": "With 0 in the true class's place the maximum is 0 where all wrong logits are "
    "negative: a constant, without a gradient.",
    "the sign": "The true logit less the best wrong one: raising this makes the answer right.",
    "Carlini and Wagner's own sign": "They minimise max(z_y - max z_k, -kappa); here losses are "
    "raised, so it is min(max z_k - z_y, kappa).",
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
