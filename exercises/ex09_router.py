"""Exercise 9: what is left?
70 minutes; appendix 4.2, Table 3

exercises/model.pt is an SoE trained at sigma = 1 with g alone: three experts of depth 2, on the
digits. `infer.load` reads it, and `all_experts`, `combine` and the experts themselves are yours to
look at. Of 180 test images it has correct, at eps 0.1:

    clean                                        55.6 %
    on images that PGD made for other networks   52.2 %
    under PGD, 20 steps                          21.1 %
    under Square, 1,000 queries                  18.9 %

First predict what the strongest attack leaves, and write that down in words before you go on. Then
write that attack. It has 20 seconds for all images.

In words: your prediction, and its reason, before you have attacked anything. Afterwards: which of
the table's figures is the model's robustness, and what made the others look like it?
"""

import torch
from torch import Tensor, nn

import data
import infer
from exercises import HERE, Answers, networks, shaped

USES = """import infer
from attacks import Worst, ball, cross_entropy, expert_losses, margin_loss, pgd, worst_of
from models import Collaboration"""
CUT = """
soft_routing_loss | attacks
misroute_loss | attacks
misled | attacks
"""
TASKS = """
prediction | () -> float | The % of these images that the strongest attack leaves correct, at a
    guess. What you have found out later is no reason to change it.
my_attack | (model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor | x_adv [B, C, H, W]
    within eps of x and in [0, 1], at which the model, a Collaboration, is wrong as often as
    possible. x, y and the model stay as they are.
"""
EPS, SECONDS, MODEL = 0.1, 40, HERE / "model.pt"
PREDICTION, ATTACK = "your prediction", "your attack"


def test_set() -> tuple[Tensor, Tensor]:
    dataset = data.load("digits")
    return dataset.test_images("cpu", dataset.choose_test_images(180))


def attacked(own: object) -> Tensor:
    torch.manual_seed(0)
    x, y = test_set()
    return shaped(own.my_attack(infer.load(MODEL), x.clone(), y.clone(), EPS), x.shape)


def left(answers: Answers) -> float:
    """% that the model has correct on what the attack has made."""
    return networks.left(infer.load(MODEL), answers[ATTACK][""], *test_set(), EPS)


def no_share(mine: Answers, right: Answers) -> str | None:
    value = mine[PREDICTION][""]
    return None if value.size == 1 and 0 <= value <= 100 else "a share in %, from 0 to 100"


def at_most(most: float | None):
    def test(mine: Answers, right: Answers) -> str | None:
        share, bound = left(mine), most or left(right) + 2  # points
        return None if share <= bound else f"yours leaves {share:.1f} %: at most {bound:.1f} %"

    return test


PROPERTIES = {
    ("prediction", 1, "a prediction", no_share): {PREDICTION: lambda own: float(own.prediction())},
    ("my_attack", 3, "your attack takes more than Square does", at_most(18.0)): {ATTACK: attacked},
    ("my_attack", 3, "and half of what that leaves", at_most(10.0)): {ATTACK: attacked},
    ("my_attack", 3, "and as much as ours", at_most(None)): {ATTACK: attacked},
}

# -------------------------------------------------------------------------- for the judge alone

from functools import partial  # noqa: E402

import attacks  # noqa: E402


def prediction() -> float:
    return 5.0


def my_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    how = {"alpha": eps / 5, "steps": 20, "random_start": True, "keep_best": True}
    return attacks.adaptive(model, x, y, partial(attacks.pgd, eps=eps, **how))


WHY = """Why so little is left. Inference is wrong where some expert is wrong and answers. PGD
follows the answering expert's logits alone; who answers is an argmax, which has no gradient, so
PGD never tries to make another expert answer. attacks.misroute_loss does, for each expert in turn,
and attacks.soft_routing_loss has a softmax in the argmax's place; attacks.adaptive does both."""
