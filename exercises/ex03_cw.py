"""Exercise 3: the margin of Carlini and Wagner
15 minutes; appendix 4: the attacks

Where a network is sure, the gradient of its cross-entropy is nearly 0; that of the margin, the best
wrong logit less the true one, is not. `margin_loss` returns it, and `cw_loss` cuts it off at kappa,
as an image that is wrong by kappa needs no more attacking. Then the same attack with a target: the
answer shall be one certain label.

In words: the picture shows the length of two gradients where a network is more and more sure. At
which point does PGD on the cross-entropy stand still? The authors' code takes the maximum of mask *
logits, the mask having 0 at the true class: which figures in a paper would that flatter?
"""

import torch
from torch import Tensor

import attacks
from exercises import constant, rand, randn, with_gradients

TASKS = """
margin_loss | attacks | max_{k != y} z_k - z_y of logits z [B, K] and labels y [B] -> [B]: above 0
    exactly where the answer is wrong.
cw_loss | attacks | The margin, but no more than kappa: [B, K], [B] -> [B].
targeted_loss | (logits: Tensor, target: Tensor, kappa: float = 0.1) -> Tensor |
    z_t - max_{k != t} z_k for the wanted labels t [B], but no more than kappa: logits [B, K] ->
    [B]. To be raised, like the others.
"""
KAPPA = constant(1.5)
Z, Y = torch.cat([3 * randn(12, 5), -1 - 8 * rand(4, 5, seed=1)]), torch.arange(16) % 5
FAR = -1e6 * (1 + rand(3, 4, seed=2))
SURE = torch.linspace(2, 120, 60).double()[:, None] * torch.tensor([2.0, 1.0, 0.0]).double()
FIRST = torch.zeros(60, dtype=torch.int64)


PICTURE = "margin of t (2, 1, 0), t = 2 .. 120, y = 0"
PROPERTIES = {
    ("margin_loss", 1, "the margin of 16 images, some with all logits negative"): {
        "margin": with_gradients("margin_loss", Y, logits=Z)
    },
    ("margin_loss", 1, "and of logits of any size"): {
        "margin of logits below -1,000,000": with_gradients("margin_loss", Y[:3], logits=FAR),
        PICTURE: with_gradients("margin_loss", FIRST, logits=SURE),
    },
    ("cw_loss", 1, "that margin, cut off at kappa"): {
        "cw": with_gradients("cw_loss", Y, logits=Z),
        f"cw, kappa {KAPPA}": with_gradients("cw_loss", Y, KAPPA, logits=Z),
    },
    ("targeted_loss", 2, "with a target it is the target that must lead"): {
        "target": with_gradients("targeted_loss", Y, logits=Z),
        f"target, kappa {KAPPA}": with_gradients("targeted_loss", Y, KAPPA, logits=Z),
    },
}


def draw(axes, answers: dict, style: dict) -> None:
    """The length of the gradients, of the cross-entropy and of the margin."""
    margin = torch.from_numpy(answers[PICTURE]["the gradient for logits"])
    entropy = with_gradients("cross_entropy", FIRST, logits=SURE.float())(attacks)
    label = style.pop("label")
    axes.semilogy(SURE[:, 1], margin.norm(dim=1), **style, label=f"margin, {label}")
    axes.semilogy(SURE[:, 1], entropy["the gradient for logits"].double().norm(dim=1), "k:")
    axes.set(xlabel="true logit less the best wrong one", ylabel="gradient (dotted: CE)")


# -------------------------------------------------------------------------- for the judge alone


def targeted_loss(logits: Tensor, target: Tensor, kappa: float = 0.1) -> Tensor:
    wanted = logits.gather(1, target[:, None]).squeeze(1)
    others = logits.scatter(1, target[:, None], -torch.inf).max(1).values
    return (wanted - others).clamp(max=kappa)
