"""Exercise 12: who hides?
75 minutes; appendix 4.2

networks.load("C"), ("D") and ("E") of exercises.networks are three small networks, each with 52 to
66 % of the 360 test digits correct. One has learned adversarial images. One masks its gradients.
One is neither robust nor hides. Find out which is which, at eps 0.1, from evidence: attack each of
them with many steps along its gradient; with one; without any gradient; and with a ball so large
that any image is allowed. `attacks.pgd` and `attacks.square` are there.

The check makes the table of what each attack leaves, and draws it: your verdict comes after that.

In words: for each network, which two figures of the table give it away, and what could each of them
alone have made you believe? How do you make the one that hides show its gradient?
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import data
from exercises import Answers, hidden, networks, shaped

USES = "import data\nfrom attacks import cw_loss, pgd, square\nfrom exercises import networks"
KINDS = ("robust", "masked", "neither")
TASKS = """
many_steps | (model: Callable, x: Tensor, y: Tensor, eps: float) -> Tensor | x_adv by at least 20
    steps along the gradient of the cross-entropy: x [B, C, H, W], y [B] -> x_adv like x, in the
    ball and in [0, 1]. The model maps images to logits.
one_step | (model: Callable, x: Tensor, y: Tensor, eps: float) -> Tensor | The same by one step of
    eps.
black_box | (model: Callable, x: Tensor, y: Tensor, eps: float) -> Tensor | The same by an attack
    that asks for no gradient of this model: it gets none.
verdict | () -> dict[str, str] | {"C": .., "D": .., "E": ..}: "robust", "masked" or "neither".
"""
EPS, SECONDS = 0.1, 60
ASKED = {  # {name: (whose attack, eps, points)}
    "one step of eps": ("one_step", EPS, 1),
    "many steps in the ball": ("many_steps", EPS, 2),
    "an attack without a gradient": ("black_box", EPS, 3),
    "many steps where any image is allowed": ("many_steps", 1.0, 2),
}


def test_set() -> tuple[Tensor, Tensor]:
    return data.load("digits").test_images("cpu")


def images(function: str, eps: float) -> Callable:
    """What an attack makes of the images, for each network."""

    def probe(own: object) -> dict[str, Tensor]:
        (x, y), told = test_set(), {}
        for letter in "CDE":
            torch.manual_seed(0)
            model = networks.load(letter)
            ask = torch.no_grad()(model.forward) if function == "black_box" else model
            told[letter] = shaped(getattr(own, function)(ask, x.clone(), y, eps), x.shape)
        return told

    return probe


def left(answers: Answers, name: str) -> dict[str, float]:
    """% that each network has correct on what an attack has made."""
    asked = *test_set(), ASKED[name][1]
    return {k: networks.left(networks.load(k), answers[name][k], *asked) for k in "CDE"}


def weaker(name: str) -> Callable:
    """The student's attack against ours: at most 4 points weaker on each network."""

    def test(mine: Answers, right: Answers) -> str | None:
        ours, theirs = left(mine, name), left(right, name)
        for letter in "CDE":
            if ours[letter] > theirs[letter] + 4:
                told = f"yours leaves {ours[letter]:.1f} % of network {letter}"
                return f"{name}: {told}, it could leave {theirs[letter]:.1f} %"
        return None

    return test


def spoken(own: object) -> dict[str, int]:
    return {letter: KINDS.index(kind) for letter, kind in own.verdict().items()}


HINT = "look at the picture again, and at what each attack can know"
PROPERTIES = {
    (function, points, name, weaker(name)): {name: images(function, eps)}
    for name, (function, eps, points) in ASKED.items()
}
PROPERTIES[("verdict", 2, "the verdict", hidden("verdict", HINT))] = {"verdict": spoken}


def draw(axes, answers: dict, style: dict) -> None:
    """What the student's attacks leave of each network."""
    if style["label"] == "right":
        return
    for i, name in enumerate(ASKED):
        if not isinstance(answers[name], str):
            shares = left(answers, name)
            axes.bar(np.arange(3) + 0.2 * i, shares.values(), 0.18, label=name)
    axes.set_xticks(np.arange(3) + 0.3, [f"network {letter}" for letter in "CDE"])
    axes.set(ylabel="left correct (%)", ylim=(0, 100))


# -------------------------------------------------------------------------- for the judge alone

from attacks import pgd, square  # noqa: E402


def many_steps(model: Callable, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return pgd(model, x, y, eps, eps / 5, 20, random_start=True, keep_best=True)


def one_step(model: Callable, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return pgd(model, x, y, eps, eps, 1)


def black_box(model: Callable, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return square(model, x, y, eps, 200, rescale=True)


def verdict() -> dict[str, str]:
    return {letter: networks.name_of(letter) for letter in "CDE"}
