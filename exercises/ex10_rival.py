"""Exercise 10: a fair rival
50 minutes; Tables 1 and 3

A method is worth what it adds to the simplest thing of the same cost: the same networks, trained on
adversarial images of their vote. Write that ensemble's loss, with `sum_of_losses` of
baselines/plain.py and `clean_and_attacked` of train_submodel.py; then count what a batch costs in
each method.

In words: Table 1 compares hours. What does it count, and what would be a fair budget instead?
"""

from argparse import Namespace

from exercises import constant, networks
from models import Ensemble

USES = """from baselines.plain import PlainSettings, sum_of_losses
from train_submodel import clean_and_attacked"""
TASKS = """
together_loss | baselines.plain | Every member's cross-entropy on the clean images, and on PGD
    against the vote of all, summed over members: x [B, C, H, W], y [B] -> scalar. First comes the
    attack, in eval mode; then, in train mode, the clean batch, and last the attacked one.
passes | (method: str, M: int, S: int) -> float | How many forward passes of one expert with its
    backward pass, to the image or to the weights (both together count as 1), a batch of training
    images takes; SoE has the mean of its two stages. `method` is 'plain' (each member attacked
    alone), 'together', 'soe-stage1' or 'soe'; M experts, S steps of PGD.
"""
TOLERANCE = 1e-4
SETTINGS = Namespace(n=3, eps=constant(0.1), alpha=0.05, steps=3, random_start=False)
SIZES = [(1, 10), (3, 10), (5, 7), (4, int(20 * constant(1)))]


def count(*methods: str):
    return lambda own: {
        f"{method}, M = {M}, S = {S}": float(own.passes(method, M, S))
        for method in methods
        for M, S in SIZES
    }


PROPERTIES = {
    ("together_loss", 3, "every member learns its own cross-entropy on attacks against the vote"): {
        "six images": lambda own: networks.loss_and_gradients(own.together_loss, Ensemble, SETTINGS)
    },
    ("passes", 2, "what the two ensembles cost"): {"cost": count("plain", "together")},
    ("passes", 2, "what stage 1 and SoE cost"): {"cost of SoE": count("soe-stage1", "soe")},
}

# -------------------------------------------------------------------------- for the judge alone


def passes(method: str, M: int, S: int) -> float:
    stage1, others = M * S + M + M**2, M * S + 2 * M
    return {"soe-stage1": stage1, "soe": (stage1 + others) / 2}.get(method, others)
