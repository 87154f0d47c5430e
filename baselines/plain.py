"""Plain ensembles: M members, each adversarially trained against itself, and a vote at the end.

The obvious rival of SoE, and one that the paper leaves out. Every member i minimises its own
CE_i(x) + CE_i(x~_i), x~_i = PGD against member i alone; nothing makes the members differ but their
random start. With --together the vote is attacked instead, and all members learn the same x~. With
--jointly the vote's own cross-entropy is trained, so that members may rely on each other. That is
SoE's loss at sigma = 1 without E heads, without the switch, and without stage 1's attack on each
expert alone: the control that shows what these three contribute together.

    python -m baselines.plain --eps 0.03 --n 3
    python -m baselines.plain --eps 0.03 --n 3 --together
    python -m baselines.plain --eps 0.03 --n 3 --jointly
    python -m baselines.plain --eps 0 --n 3     # clean data alone: the transfer attacks' surrogates
"""

if not __package__:
    import __init__  # noqa: F401, says how to start it

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

import infer
from attacks import expert_losses
from support import options, runs
from support.options import option
from train_submodel import Settings, attack_each_expert, clean_and_attacked, train


@dataclass
class PlainSettings(Settings):
    """what is attacked, and learned"""

    together: bool = option(False, bool, "attack the vote, not each member")
    jointly: bool = option(False, bool, "and train its own cross-entropy")


def sum_of_losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """sum_i CE_i, the mean over the batch: x [B, C, H, W], y [B] -> scalar."""
    logits, _ = model.all_experts(x)  # [M, B, K]
    return expert_losses(logits, y).mean(1).sum()


def sum_of_own_losses(model: nn.Module, x_adv: Sequence[Tensor], y: Tensor) -> Tensor | float:
    """sum_i CE_i(x~_i), the mean over the batch: M batches x~_i [B, C, H, W], y [B] -> scalar."""
    pairs = zip(model.experts.side_by_side(), x_adv)
    losses = [F.cross_entropy(e.logits(x_i), y) for e, x_i in pairs]
    return sum(losses)


def plain_loss(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> Tensor:
    """Each member on clean images and on PGD against itself; clean images alone where eps is 0."""
    model.eval().requires_grad_(False)
    x_adv = attack_each_expert(model, x, y, settings).chunk(settings.n) if settings.eps else []
    model.train().requires_grad_(True)
    return sum_of_losses(model, x, y) + sum_of_own_losses(model, x_adv, y)


def together_loss(model: nn.Module, x: Tensor, y: Tensor, settings: PlainSettings) -> Tensor:
    """Every member on clean images and on PGD against the vote of all."""
    batches = clean_and_attacked(model, x, y, settings)
    return sum(sum_of_losses(model, b, y) for b in batches)


def jointly_loss(model: nn.Module, x: Tensor, y: Tensor, settings: PlainSettings) -> Tensor:
    """M * CE of the vote, on clean images and on PGD against it. For the M see stage1_loss."""
    batches = clean_and_attacked(model, x, y, settings)
    return settings.n * sum(F.cross_entropy(model(b), y) for b in batches)


def check(settings: PlainSettings) -> None:
    if settings.together and settings.jointly:
        raise ValueError("--together and --jointly: one of the two")
    if settings.together and settings.eps == 0:
        raise ValueError("--together says what is attacked: with --eps 0 nothing is")


def main(argv: list[str] | None = None) -> None:
    parser = options.training_parser(PlainSettings, __doc__, "-m baselines.plain")
    with runs.start(parser, argv, "plain", model="ensemble", check=check) as run:
        loss = plain_loss
        if run.settings.together:
            loss = together_loss
        if run.settings.jointly:
            loss = jointly_loss
        train(run, 1, loss)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
