"""Every method that is compared: who trains it, its options, its model, its losses.

A new one is a file beside this one, and here its import and a line of METHODS.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

import train_collab
import train_submodel
from baselines import adp, dverge, gal, more, plain
from baselines.models import build
from baselines.plain import PlainSettings, jointly_loss, plain_loss, together_loss
from support import options
from train_collab import CollabSettings, stage2_loss
from train_submodel import Settings, SoESettings, TrainingLoss, stage1_loss


class Method(NamedTuple):
    main: Callable[[list[str]], None]  # trains it
    settings: type[Settings]  # its options
    model: str  # as in baselines.models.build
    losses: tuple[TrainingLoss, ...]  # stage by stage
    flags: str = ""  # of its main
    not_compiled: tuple[int, ...] = ()  # stages whose loss torch.compile cannot take


# fmt: off
METHODS = {
    "soe": Method(train_collab.main, CollabSettings, "collaboration", (stage1_loss, stage2_loss)),
    "soe-stage1": Method(train_submodel.main, SoESettings, "collaboration", (stage1_loss,)),
    "plain": Method(plain.main, PlainSettings, "ensemble", (plain_loss,)),
    "plain-together": Method(plain.main, PlainSettings, "ensemble", (together_loss,), "--together"),
    "plain-jointly": Method(plain.main, PlainSettings, "ensemble", (jointly_loss,), "--jointly"),
    "adp": Method(adp.main, adp.AdpSettings, "ensemble", (adp.adp_loss,)),
    "gal": Method(gal.main, gal.GalSettings, "ensemble", (gal.gal_loss,), not_compiled=(1,)),
    "dverge": Method(dverge.main, dverge.DvergeSettings, "ensemble",
                     (plain_loss, dverge.DvergeLoss()), not_compiled=(2,)),
    "more": Method(more.main, Settings, "mixture", (more.more_loss,)),
}
# fmt: on


def units_of_a_batch(
    method: Method, M: int, S: int, eps: float = 1, flags: Sequence[str] = ()
) -> dict[int, int]:
    """{stage: what a batch costs}, counted while a small model takes a step of each loss.

    A unit is one member's forward pass on one batch; a backward pass to the input or to the weights
    is one more, and a second derivative (GAL's) costs as much again. M members, S steps of PGD;
    `flags` are further ones of its script.
    """
    settings, _ = options.training_parser(method.settings).parse_given(flags)
    vars(settings).update(n=M, steps=S, eps=eps, alpha=0.01, depth=8, model=method.model)
    vars(settings).update(image_shape=[1, 8, 8], num_classes=10, steps_per_epoch=1)
    units, seen = {}, []

    def count(network: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        differentiated = inputs[0].requires_grad
        cost = 3 * (1 + differentiated) if network.training else 1 + differentiated
        seen.append(cost * len(inputs[0]))

    with torch.random.fork_rng(devices=[]):
        x, y = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
        for stage, loss in enumerate(method.losses, 1):
            model = build(vars(settings))
            for expert in model.experts:
                expert.backbone.register_forward_pre_hook(count)
            loss(model, x, y, settings)
            units[stage] = sum(seen) // len(x)
            seen.clear()
    return units
