"""Exercise 4: the smooth minimum, Eq. 7
45 minutes; Eq. 7, appendix 1

Whichever expert handles an image best is to learn it: min_j l_j. Eq. 7 makes the minimum smooth, so
that the others learn a little, too. First prove on paper that it lies within the bounds of Eq. 7.
Then write it, find out who learns how much and where the two bounds are reached, and compute, from
the same losses, the cross-entropy of the vote.

In words: print Eq. 7 and the vote's cross-entropy of the same losses, at several sigma. What do
you find, and what does "the best expert learns it" mean there?
"""

import math

import torch
from torch import Tensor

from exercises import Answers, constant, rand, shaped, with_gradients

TASKS = """
best_expert_loss | train_submodel | Eq. 7's smooth minimum over the experts' losses: [M, B] -> [B].
    sigma is above 0 and finite. It must stay finite where all losses are large.
expert_weights | (losses: Tensor, sigma: float) -> Tensor | The weight with which each expert learns
    each image, that is the gradient of Eq. 7 to the experts' losses, in closed form: [M, B] ->
    [M, B].
cases_of_equality | (M: int) -> tuple[Tensor, Tensor] | Losses of M experts, [M] each, float64, at
    which Eq. 7's lower bound, min_j l_j - sigma ln M, is reached, and at which its upper bound,
    min_j l_j, is reached to within 1e-9, for any sigma up to 1.
vote_cross_entropy | (losses: Tensor) -> Tensor | -ln of the mean of the experts' probabilities for
    the true label, from their losses l_j = -ln p_y^j alone: [M, B] -> [B].
"""
SMALL, LARGE = constant(0.3), constant(10)
LOSSES = torch.cat(
    [torch.tensor([[1.0, 0.2], [2.0, 0.2], [3.0, 5.0]]).double(), 4 * rand(3, 10)], 1
)
HUGE = 1300 + 3 * rand(3, 4, seed=1)
SIGMAS = torch.linspace(0.1, 15, 30).double()


def cases(own: object) -> dict[str, Tensor]:
    told = {}
    for M in (2, 5):
        for name, losses in zip(("lower", "upper"), own.cases_of_equality(M)):
            told[f"{name} bound, M = {M}"] = shaped(losses, (M,))
    return told


def outside(mine: Answers, right: Answers) -> str | None:
    for sigma in (1.0, SMALL, LARGE):
        values = mine[f"sigma {sigma:g}"]["the value"]
        for losses, value in zip(LOSSES.T.tolist(), values, strict=True):
            most, least = min(losses), min(losses) - sigma * math.log(3)
            if not least - 1e-9 <= value <= most + 1e-9:
                told = f"{value:.4f} is outside [{least:.4f}, {most:.4f}]"
                return f"sigma {sigma:g}, losses {losses}: {told}"
    return None


def not_reached(mine: Answers, right: Answers) -> str | None:
    for name, losses in mine["the cases"].items():
        for sigma in (0.3, 1.0):
            l_m = -sigma * torch.logsumexp(-torch.from_numpy(losses) / sigma, 0).item()
            gap = l_m - losses.min() + sigma * math.log(len(losses)) * name.startswith("lower")
            if not abs(gap) < 1e-9:
                return f"{name}, sigma {sigma}: Eq. 7 is {gap:.3g} away from it"
    return None


OF_LOSSES = {
    f"sigma {sigma:g}": with_gradients("best_expert_loss", sigma, losses=LOSSES)
    for sigma in (1.0, SMALL, LARGE)
}
PROPERTIES = {
    ("best_expert_loss", 1, "it lies within Eq. 7's bounds", outside): OF_LOSSES,
    ("best_expert_loss", 3, "its value and its gradient, also where no expert knows the image"): {
        **OF_LOSSES,
        "losses of 1300 and more": with_gradients("best_expert_loss", 1.0, losses=HUGE),
    },
    ("expert_weights", 2, "the weights are its gradient"): {
        "weights at sigma 1": lambda own: own.expert_weights(LOSSES.clone(), 1.0),
        f"weights at sigma {SMALL}": lambda own: own.expert_weights(LOSSES.clone(), SMALL),
        "weights of 1300 and more": lambda own: own.expert_weights(HUGE.clone(), 1.0),
        "weights of losses 1, 2, 3, by sigma": lambda own: torch.stack(
            [own.expert_weights(LOSSES[:, :1].clone(), float(s))[:, 0] for s in SIGMAS]
        ),
    },
    ("cases_of_equality", 2, "both bounds are reached", not_reached): {"the cases": cases},
    ("vote_cross_entropy", 1, "the vote's cross-entropy"): {
        "the vote of 12 images": lambda own: own.vote_cross_entropy(LOSSES.clone()),
        "the vote, losses of 1300 and more": lambda own: own.vote_cross_entropy(HUGE.clone()),
    },
}


def draw(axes, answers: dict, style: dict) -> None:
    """The weights of three experts whose losses are 1, 2 and 3, against sigma."""
    weights, label = answers["weights of losses 1, 2, 3, by sigma"][""], style.pop("label")
    for j, line in enumerate(("-", "--", ":")):
        axes.plot(SIGMAS, weights[:, j], line, **style, label=f"{label}: loss {j + 1}")
    axes.set(xlabel="sigma", ylabel="weight", ylim=(0, 1))


# -------------------------------------------------------------------------- for the judge alone


def expert_weights(losses: Tensor, sigma: float) -> Tensor:
    return torch.softmax(-losses / sigma, 0)


def cases_of_equality(M: int) -> tuple[Tensor, Tensor]:
    one_alone = torch.full((M,), 1e6, dtype=torch.float64)
    one_alone[0] = 1.0
    return torch.ones(M, dtype=torch.float64), one_alone


def vote_cross_entropy(losses: Tensor) -> Tensor:
    return math.log(len(losses)) - torch.logsumexp(-losses, 0)
