"""Exercise 4: the smooth minimum, Eq. 7

Whichever expert handles an image best is to learn it: min_j l_j. Eq. 7 makes the minimum smooth, so
that the others learn a little, too. First prove on paper that it lies within the bounds of Eq. 7.
Then write it, and find out who learns how much, and where the two bounds are reached.

In words: why may this loss be negative, though no cross-entropy is? And what is it at sigma = 1?
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from exercises import Answers, Property, shaped

MINUTES, PAPER = 45, "Eq. 7, appendix 1"
IMPORTS = "import torch\nfrom torch import Tensor"
REBUILD = {
    "best_expert_loss": (
        "train_submodel",
        "Eq. 7's smooth minimum over the experts' losses: [M, B] -> [B]. It must stay finite where "
        "all losses are large.",
    )
}
TWIST = {
    "expert_weights": "The weight with which each expert learns each image, that is the gradient "
    "of Eq. 7 to the experts' losses, in closed form: [M, B] -> [M, B].",
    "cases_of_equality": "Losses of M experts, [M] each, float64, at which Eq. 7's lower bound, "
    "min_j l_j - sigma ln M, is reached, and at which its upper bound, min_j l_j, is reached to "
    "within 1e-9, for any sigma up to 1.",
}


def expert_weights(losses: Tensor, sigma: float) -> Tensor:
    return torch.softmax(-losses / sigma, 0)


def cases_of_equality(M: int) -> tuple[Tensor, Tensor]:
    equal = torch.ones(M, dtype=torch.float64)
    one_alone = torch.full((M,), 1e6, dtype=torch.float64)
    one_alone[0] = 1.0
    return equal, one_alone


LOSSES = torch.tensor([[1.0, 0.2], [2.0, 0.2], [3.0, 5.0]], dtype=torch.float64)
SIGMAS = torch.linspace(0.1, 5, 50, dtype=torch.float64)


def gradient(sigma: float) -> Callable:
    def probe(own: object) -> Tensor:
        losses = LOSSES.clone().requires_grad_()
        return torch.autograd.grad(own.best_expert_loss(losses, sigma).sum(), losses)[0]

    return probe


def distances(own: object) -> list[float]:
    """How far the student's own loss is from the bounds in the two cases."""
    found = []
    for M in (2, 5):
        for losses, bound in zip(own.cases_of_equality(M), (M, 1)):
            shaped(losses, M)
            for sigma in (0.3, 1.0):
                smooth = float(own.best_expert_loss(losses[:, None], sigma))
                found.append(abs(smooth - float(losses.min()) + sigma * math.log(bound)))
    return found


PROBES = {
    "losses 1, 2, 3 and .2, .2, 5; sigma 1": lambda own: own.best_expert_loss(LOSSES.clone(), 1.0),
    "losses 1, 2, 3 and .2, .2, 5; sigma .3": lambda own: own.best_expert_loss(LOSSES.clone(), 0.3),
    "losses 1, 2, 3 and .2, .2, 5; sigma 3": lambda own: own.best_expert_loss(LOSSES.clone(), 3.0),
    "gradient at sigma 1": gradient(1.0),
    "gradient at sigma .3": gradient(0.3),
    "losses 1300, 1301; sigma 1": lambda own: own.best_expert_loss(
        torch.tensor([[1300.0], [1301.0]], dtype=torch.float64), 1.0
    ),
    "weights at sigma 1": lambda own: own.expert_weights(LOSSES.clone(), 1.0),
    "weights of losses 1300, 1301; sigma 1": lambda own: own.expert_weights(
        torch.tensor([[1300.0], [1301.0]], dtype=torch.float64), 1.0
    ),
    "weights at sigma .3": lambda own: own.expert_weights(LOSSES.clone(), 0.3),
    "weights of 1, 2, 3 by sigma": lambda own: torch.stack(
        [own.expert_weights(LOSSES[:, :1].clone(), float(sigma))[:, 0] for sigma in SIGMAS]
    ),
    "distance of your own loss from the bounds, M = 2 and 5": distances,
}
NAMES = list(PROBES)


def outside_the_bounds(mine: Answers, right: Answers) -> str | None:
    low = LOSSES.min(0).values.numpy()
    for name, sigma in zip(NAMES, (1.0, 0.3, 3.0)):
        for b, value in enumerate(mine[name].ravel()):
            least = low[b % len(low)] - sigma * math.log(3)
            if not least - 1e-9 <= value <= low[b % len(low)] + 1e-9:
                bounds = f"[{least:.4f}, {low[b % len(low)]:.4f}]"
                return f"{name}, image {b + 1}: {value:.4f} is outside {bounds}"
    return None


def not_finite(mine: Answers, right: Answers) -> str | None:
    value = mine[NAMES[5]].item()
    return None if abs(value - 1300) < 2 else f"{NAMES[5]}: yours is {value:.6g}, far from 1300"


def too_far(mine: Answers, right: Answers) -> str | None:
    value = mine[NAMES[10]].max()
    return None if value < 1e-9 else f"{NAMES[10]}: {value:.3g}"


PROPERTIES = [
    Property("it lies within Eq. 7's bounds", 2, NAMES[:3], outside_the_bounds),
    Property("its gradient shares each image among the experts", 4, NAMES[:5]),
    Property("it is finite where no expert knows the image", 1, NAMES[5:6], not_finite),
    Property("the weights are its gradient", 1, NAMES[6:10]),
    Property("both bounds are reached", 2, NAMES[10:], too_far),
]
MISTAKES = {
    "the inner minus lost": "exp(l / sigma) finds the worst expert: a smooth maximum, upside down.",
    "the outer minus lost": "The value has the wrong sign: training would make it worse.",
    "a mean for the sum": "Eq. 7 has a sum; with the mean the value rises by sigma ln M and leaves "
    "the bounds.",
    "sigma lost inside": "exp(-l) instead of exp(-l / sigma).",
    "sigma lost outside": "ln without the factor sigma.",
    "overflow": "The logarithm of a sum of exponentials that are all 0: torch.logsumexp avoids it.",
    "over the batch": "The sum runs over the images (axis 1): the experts' is axis 0.",
    "the hard minimum": "min_j l_j lies within the bounds, and is not smooth: the gradient goes to "
    "one expert alone.",
    "times sigma": "losses * sigma instead of losses / sigma.",
    "the mean of the batch": "Each image has a minimum of its own: [M, B] -> [B].",
    "detached": "No gradient arrives at the losses: something on the way was detached.",
    "a mean by the weights": "sum_j w_j l_j, with w_j = softmax(-l / sigma), is not Eq. 7.",
    "the mean of the losses": "That is Eq. 7 at an infinite sigma, up to a constant.",
    "naive weights": "exp(-l / sigma) / sum is 0 / 0 where all losses are large: torch.softmax.",
    "not normalised": "The weights of an image sum to 1.",
    "the best alone": "The weights are those of the smooth minimum, not of the hard one.",
    "the gap too small": "The other losses are not far enough above the least.",
    "the cases swapped": "First comes the lower bound, min_j l_j - sigma ln M, then the upper one.",
}


def variant(wrong: frozenset[str]) -> dict[str, Callable]:
    def best_expert_loss(losses, sigma):
        axis = 1 if "over the batch" in wrong else 0
        if "the hard minimum" in wrong:
            return losses.min(axis).values
        inside = losses if "sigma lost inside" in wrong else losses / sigma
        inside = inside if "the inner minus lost" in wrong else -inside
        if "overflow" in wrong:
            result = inside.exp().sum(axis).log()
        else:
            result = torch.logsumexp(inside, axis)
        if "a mean for the sum" in wrong:
            result = result - torch.tensor(float(losses.shape[axis])).double().log()
        outside = 1.0 if "sigma lost outside" in wrong else sigma
        return (1 if "the outer minus lost" in wrong else -1) * outside * result

    def expert_weights(losses, sigma):
        axis = 1 if "over the batch" in wrong else 0
        inside = losses if "sigma lost inside" in wrong else losses / sigma
        return torch.softmax(inside if "the inner minus lost" in wrong else -inside, axis)

    def cases(M):
        lower, upper = cases_of_equality(M)
        return (upper, lower) if "the cases swapped" in wrong else (lower, upper)

    own = {"best_expert_loss": best_expert_loss, "expert_weights": expert_weights}
    return own | {"cases_of_equality": cases}


def more() -> dict[str, dict[str, Callable]]:
    def smooth(losses, sigma):
        return -sigma * torch.logsumexp(-losses / sigma, 0)

    def naive(losses, sigma):
        weights = (-losses / sigma).exp()
        return weights / weights.sum(0)

    def hard(losses, sigma):
        return torch.nn.functional.one_hot(losses.argmin(0), len(losses)).T.double()

    def close(M):
        return torch.ones(M, dtype=torch.float64), torch.linspace(1, 1 + 5 * (M - 1), M).double()

    return {
        "times sigma": {"best_expert_loss": lambda l, s: -s * torch.logsumexp(-l * s, 0)},
        "the mean of the batch": {"best_expert_loss": lambda l, s: smooth(l, s).mean()},
        "detached": {"best_expert_loss": lambda l, s: smooth(l.detach(), s)},
        "a mean by the weights": {
            "best_expert_loss": lambda l, s: ((-l / s).softmax(0) * l).sum(0),
        },
        "the mean of the losses": {"best_expert_loss": lambda l, s: l.mean(0)},
        "naive weights": {"expert_weights": naive},
        "not normalised": {"expert_weights": lambda l, s: (-l / s).exp()},
        "the best alone": {"expert_weights": hard},
        "the gap too small": {"cases_of_equality": close},
    }


def draw(axes, answers: dict, style: dict) -> None:
    """The weights of three experts whose losses are 1, 2 and 3, against sigma."""
    weights = answers["weights of 1, 2, 3 by sigma"]
    label = style.pop("label")
    for j, line in enumerate(("-", "--", ":")):
        axes.plot(SIGMAS, weights[:, j], line, **style, label=f"{label}: loss {j + 1}")
    axes.set(xlabel="sigma", ylabel="weight", ylim=(0, 1))
