"""Exercise 8: XOR, its trap, and the trap in the large
45 minutes; appendix 3.1, Figure 1, Table 2

Two linear functions cannot solve XOR by their average; with a linear g each, that says who answers,
they can. Write the three losses of xor_demo.py: the ensemble's, the collaboration's, and the one
that the appendix words, which is a trap (`python xor_demo.py --trap` draws it). Then look for the
trap in the large: networks.load("A") and ("B") of exercises.networks are two trained SoEs of three
experts, on the digits; one was trained with Eq. 7's sigma = 1, the other with 10. Find out which
expert knows which class, and say which model is which.

In words: what does one of the two models do with the labels, and what has that to do with f_1 = +1,
f_2 = -1 on XOR, and with your cross-entropy of the vote in exercise 4? Who answers well, and why?
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import data
from exercises import constant, hidden, networks, randn, with_gradients
from models import ask_experts

USES = "import data\nfrom exercises import networks\nfrom models import ask_experts"
TASKS = """
vote_loss | xor_demo | The ensemble: the mean square error of (f_1 + f_2) / 2. f [B, 2], y [B] of -1
    and +1; g counts for nothing.
collaboration_loss | xor_demo | The mean over the batch of sum_j softmax_j(g) (f_j - y)^2: f and
    g [B, 2] learn together.
trap_loss | xor_demo | The mean of min_j (f_j - y)^2, plus the cross-entropy of g, as logits,
    towards the j of that minimum.
who_knows | (logits: Tensor, y: Tensor) -> Tensor | The share of each class's images that each
    expert has correct: logits [M, N, K], y [N] -> [M, K]; 0 for a class without images.
sigma_of | () -> dict[str, float] | {"A": .., "B": ..}: the sigma that each was trained with, 1 or
    10.
"""
F_, G, Y = constant(1) * randn(40, 2), randn(40, 2, seed=1), torch.arange(40).double() % 2 * 2 - 1
LOGITS, LABELS = 2 * randn(3, 60, 6, seed=2), torch.arange(60) ** 2 % 5


def known(own: object) -> dict[str, Tensor]:
    """By the students' function, of both models."""
    x, y = data.load("digits").test_images("cpu")
    return {name: own.who_knows(ask_experts(networks.load(name), x)[0], y) for name in "AB"}


TABLES, CHOICE = "who knows which class, in A and B", "sigma of A and B"
HINT = "one has sigma 1, the other 10: look at the picture again"
PROPERTIES = {
    ("vote_loss", 2, "the ensemble learns by the error of its average"): {
        "the vote's loss": with_gradients("vote_loss", Y, f=F_, g=G)
    },
    ("collaboration_loss", 2, "the collaboration pays for what g cannot route"): {
        "the collaboration's loss": with_gradients("collaboration_loss", Y, f=F_, g=G)
    },
    ("trap_loss", 2, "the trap is the best one's error, and g's cross-entropy"): {
        "the trap's loss": with_gradients("trap_loss", Y, f=F_, g=G)
    },
    ("who_knows", 2, "which expert knows which class"): {
        "three experts, 60 images of 5 of 6 classes": lambda own: own.who_knows(LOGITS, LABELS),
        TABLES: known,
    },
    ("sigma_of", 1, "which of the models is in the trap", hidden(CHOICE, HINT)): {
        CHOICE: lambda own: own.sigma_of()
    },
}


def draw(axes, answers: dict, style: dict) -> None:
    """The tables of both models: the darker, the more of a class an expert knows."""
    if style["label"] == "right":  # of the student's own alone
        return
    both = np.concatenate([answers[TABLES]["A"], np.full((1, 10), np.nan), answers[TABLES]["B"]])
    axes.imshow(both, cmap="Reds", vmin=0, vmax=1, label="yours")
    axes.set_yticks([0, 1, 2, 4, 5, 6], [f"{name}, expert {j}" for name in "AB" for j in (1, 2, 3)])
    axes.set(xlabel="class", xticks=range(10))


# -------------------------------------------------------------------------- for the judge alone


def who_knows(logits: Tensor, y: Tensor) -> Tensor:
    correct = (logits.argmax(-1) == y).double()  # [M, N]
    classes = F.one_hot(y, logits.shape[-1]).double()  # [N, K]
    return correct @ classes / classes.sum(0).clamp(min=1)


def sigma_of() -> dict[str, float]:
    return {name: float(networks.name_of(name).split()[1]) for name in "AB"}
