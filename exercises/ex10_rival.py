"""Exercise 10: a fair rival

A method is worth what it adds to the simplest thing of the same cost: the same networks, trained on
adversarial images of their vote. Write that ensemble's loss, with `sum_of_losses` of
baselines/plain.py and `clean_and_attacked` of train_submodel.py; then count what a batch costs in
each method.

In words: Table 1 compares hours. What does it count, and what would be a fair budget instead?
"""

from argparse import Namespace
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.plain import sum_of_losses
from exercises import Property
from models import Ensemble, ResNet
from train_submodel import attack_each_expert, clean_and_attacked, training_attack

MINUTES, PAPER = 50, "Tables 1 and 3"
TOLERANCE = 1e-4
IMPORTS = """import torch
from torch import Tensor, nn

from baselines.plain import PlainSettings, sum_of_losses
from train_submodel import clean_and_attacked"""
REBUILD = {
    "together_loss": (
        "baselines.plain",
        "Every member's cross-entropy on the clean images, and on PGD against the vote of all, "
        "summed over members: x [B, C, H, W], y [B] -> scalar. First comes the attack, in eval "
        "mode; then, in train mode, the clean batch, and last the attacked one.",
    )
}
TWIST = {
    "passes": "How many forward passes of one expert with its backward pass, to the image or to "
    "the weights (both together count as 1), a batch of the training images takes; SoE has the "
    "mean of its two stages. `method` is 'plain' (each member attacked alone), 'together', "
    "'soe-stage1' or 'soe'; M experts, S steps of PGD."
}


def passes(method: str, M: int, S: int) -> float:
    attack = M * S
    stage1, others = attack + M + M**2, attack + 2 * M
    return {"soe-stage1": stage1, "soe": (stage1 + others) / 2}.get(method, others)


SETTINGS = Namespace(n=3, eps=0.1, alpha=0.05, steps=2, random_start=False)


def batch() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Ensemble([ResNet(2, 1, 4, 8) for _ in range(3)])
        return model, torch.rand(6, 1, 8, 8), torch.randint(4, (6,))


def gradients(own: object) -> list[Tensor]:
    model, x, y = batch()
    own.together_loss(model, x, y, SETTINGS).backward()
    return [w.grad if w.grad is not None else torch.zeros_like(w) for w in model.parameters()]


def kept_by_batch_norm(own: object) -> list[Tensor]:
    """100 times the means that batch norm keeps, in which the last batch counts most."""
    model, x, y = batch()
    own.together_loss(model, x, y, SETTINGS)
    return [100 * m.running_mean for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def counted(method: str) -> Callable:
    return lambda own: [own.passes(method, M, S) for M, S in ((1, 10), (3, 10), (5, 7))]


PROBES = {
    "the loss of three members on six images": lambda own: own.together_loss(*batch(), SETTINGS),
    "its gradients for all weights": gradients,
    "100 times the means that batch norm keeps": kept_by_batch_norm,
    "plain: M, S = 1, 10; 3, 10; 5, 7": counted("plain"),
    "together": counted("together"),
    "soe-stage1": counted("soe-stage1"),
    "soe": counted("soe"),
}
NAMES = list(PROBES)
PROPERTIES = [
    Property("every member learns its own cross-entropy on attacks against the vote", 4, NAMES[:3]),
    Property("the two ensembles cost the same", 2, NAMES[3:5]),
    Property("stage 1 is quadratic in M, and SoE the mean of its stages", 2, NAMES[5:]),
]
MISTAKES = {
    "each member attacked": "Here the vote is attacked, and all members learn the same images.",
    "the vote's cross-entropy": "Members are to be correct each for itself: the vote's loss lets "
    "them rely on each other.",
    "M times the vote's cross-entropy": "Members are to be correct each for itself: the vote's "
    "loss lets them rely on each other.",
    "a mean over members": "The losses are summed: with the mean each moves 1/M as far.",
    "no clean half": "The clean batch is learned as well.",
    "the mean of the two": "The losses on clean and on attacked images are summed.",
    "the clean half twice": "The second batch is the attacked one.",
    "the attacked batch first": "The clean batch comes first: in batch norm the last counts most.",
    "one joined batch": "Clean and attacked images are two batches, each with its statistics.",
    "forward and backward counted apart": "A forward pass with its backward pass counts as one.",
    "SoE is stage 1": "SoE's epochs are half stage 1, half stage 2: a batch costs their mean.",
    "one attack for all": "Each step of the attack asks all M members: M S.",
    "M^2 forgotten": "In stage 1 every expert learns from every expert's attack, so that equal "
    "epochs are not equal cost.",
    "the attack in train mode": "Batch norm then sees the attack's images, and its gradients are "
    "of another network: clean_and_attacked takes care of it.",
    "the stages summed": "SoE's epochs are half stage 1, half stage 2: a batch costs their mean.",
    "the attack not counted": "The steps of the attack are most of the cost.",
}


def variant(wrong: frozenset[str]) -> dict[str, Callable]:
    def together_loss(model, x, y, settings):
        batches = clean_and_attacked(model, x, y, settings)
        if "the attack in train mode" in wrong:
            batches = [x, training_attack(model, x, y, settings).detach()]
        share = 1 / settings.n if "a mean over members" in wrong else 1
        if "each member attacked" in wrong:
            model.eval()
            parts = attack_each_expert(model, x, y, settings).chunk(settings.n)
            model.train()
            own = sum(F.cross_entropy(e.logits(p), y) for e, p in zip(model.experts, parts))
            return share * (own + (0 if "no clean half" in wrong else sum_of_losses(model, x, y)))
        batches = batches[1:] if "no clean half" in wrong else batches
        if "the vote's cross-entropy" in wrong:
            return share * sum(F.cross_entropy(model(b), y) for b in batches)
        return share * sum(sum_of_losses(model, b, y) for b in batches)

    def count(method, M, S):
        attack = 0 if "the attack not counted" in wrong else M * S
        stage1 = attack + M + (M if "M^2 forgotten" in wrong else M**2)
        others = attack + 2 * M
        stages = 1 if "the stages summed" in wrong else 2
        return {"soe-stage1": stage1, "soe": (stage1 + others) / stages}.get(method, others)

    return {"together_loss": together_loss, "passes": count}


def more() -> dict[str, dict[str, Callable]]:
    right = variant(frozenset())["together_loss"]

    def twice(model, x, y, settings):
        clean, _ = clean_and_attacked(model, x, y, settings)
        return sum_of_losses(model, clean, y) + sum_of_losses(model, clean, y)

    def turned(model, x, y, settings):
        clean, attacked = clean_and_attacked(model, x, y, settings)
        return sum_of_losses(model, attacked, y) + sum_of_losses(model, clean, y)

    def of_vote(model, x, y, settings):
        batches = clean_and_attacked(model, x, y, settings)
        return settings.n * sum(F.cross_entropy(model(b), y) for b in batches)

    def joined(model, x, y, settings):
        batches = torch.cat(clean_and_attacked(model, x, y, settings))
        return 2 * sum_of_losses(model, batches, y.repeat(2))

    def stage1(method, M, S):
        return passes("soe-stage1" if method == "soe" else method, M, S)

    return {
        "the mean of the two": {"together_loss": lambda *of: right(*of) / 2},
        "the clean half twice": {"together_loss": twice},
        "the attacked batch first": {"together_loss": turned},
        "M times the vote's cross-entropy": {"together_loss": of_vote},
        "one joined batch": {"together_loss": joined},
        "forward and backward counted apart": {"passes": lambda *of: 2 * passes(*of)},
        "SoE is stage 1": {"passes": stage1},
        "one attack for all": {"passes": lambda method, M, S: passes(method, M, S) - M * S + S},
    }
