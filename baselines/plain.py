"""Plain ensembles: M members, each adversarially trained against itself, and a vote at the end.

The obvious rival of SoE, and one that the paper leaves out. Every member i minimises its own
CE_i(x) + CE_i(x~_i), x~_i = PGD against member i alone; nothing makes the members differ but their
random start. With --together the vote is attacked instead, and all members learn the same x~.

    python -m baselines.plain --eps 0.03 --n 3
    python -m baselines.plain --eps 0.03 --n 3 --together
    python -m baselines.plain --eps 0 --n 3     # clean data alone: the transfer attacks' surrogates
"""

import sys
from argparse import Namespace

import torch.nn.functional as F
from torch import Tensor, nn

from attacks import expert_losses
from infer import first_output
from support import options
from train_submodel import Loss, run, training_attack


def sum_of_losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """sum_i CE_i, the mean over the batch: x [B, C, H, W], y [B] -> scalar."""
    logits, _ = model.all_experts(x)  # [M, B, K]
    return expert_losses(logits, y).mean(1).sum()


def own_adversarial_loss(
    model: nn.Module, x: Tensor, y: Tensor, settings: Namespace
) -> list[Tensor]:
    """CE_i(x~_i) of each member i, x~_i = PGD against member i: a list of M scalars."""
    model.eval()
    alone = [first_output(expert) for expert in model.experts]
    x_adv = [training_attack(member, x, y, settings) for member in alone]
    model.train()
    return [F.cross_entropy(member(x_i), y) for member, x_i in zip(alone, x_adv)]


def plain_loss(model: nn.Module, settings: Namespace) -> Loss:
    """Each member on clean images and on PGD against itself; clean images alone where eps is 0."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        adversarial = own_adversarial_loss(model, x, y, settings) if settings.eps else []
        model.train()
        return sum_of_losses(model, x, y) + sum(adversarial)

    return loss


def together_loss(model: nn.Module, settings: Namespace) -> Loss:
    """Every member on clean images and on PGD against the vote of all."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        x_adv = training_attack(model, x, y, settings)
        model.train()
        return sum_of_losses(model, x, y) + sum_of_losses(model, x_adv, y)

    return loss


def method_loss(model: nn.Module, settings: Namespace) -> Loss:
    if settings.together and settings.eps == 0:
        raise ValueError("--together says what is attacked: with --eps 0 nothing is")
    return (together_loss if settings.together else plain_loss)(model, settings)


PARSER = options.baseline_parser(
    __doc__,
    "-m baselines.plain",
    own={"together": (False, bool, "attack the vote, not each member alone")},
)


def main(argv: list[str] | None = None) -> int:
    return run(PARSER, argv, "plain", {1: method_loss})


if __name__ == "__main__":
    sys.exit(main())
