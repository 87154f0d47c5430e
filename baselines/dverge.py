"""DVERGE: each member learns what deceives the others.

Yang, Zhang, Dong, Inkawhich, Gardner, Touchet, Wilkes, Berry and Li, *DVERGE: Diversifying
Vulnerabilities for Enhanced Robust Generation of Ensembles*, NeurIPS 2020. An image x is moved, by
no more than 0.07, until member j sees in it the features of another image x_t, at some layer: what
it then holds are member j's non-robust features of x_t. The other members learn that its label is
still x's. So the members come to rely on different features.

Two stages, as in train_collab.py: first plain members (baselines/plain.py, at the same eps), then
DVERGE from there. Every member also learns from PGD against itself, unless eps is 0.

    python -m baselines.dverge --eps 0.03 --n 3
    python -m baselines.dverge --eps 0 --n 3     # as first published: distilled images alone
"""

if not __package__:
    import __init__  # noqa: F401, says how to start it

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infer
from attacks import pgd
from baselines.plain import plain_loss, sum_of_own_losses
from support import options, ranks, runs
from support.options import option
from train_submodel import Settings, attack_each_expert, train


@dataclass
class DvergeSettings(Settings):
    """the images that members learn from each other"""

    distill_eps: float = option(
        0.07, options.radius, "how far an image is moved towards another's features"
    )
    distill_alpha: float = option(0.007, options.positive, "size of a step of that move")
    distill_steps: int = option(10, options.count, "steps of that move")


def features_at(expert: nn.Module, layer: int) -> Callable[[Tensor], Tensor]:
    """h^l: what comes into the l-th ReLU, l = 1 .. depth - 1; the logits where l is the depth.

    A function of images [B, C, H, W]. Raises ValueError for another layer.
    """
    relus = [m for m in expert.modules() if isinstance(m, (nn.ReLU, nn.LeakyReLU))]
    depth = len(relus) + 1
    if not 1 <= layer <= depth:
        raise ValueError(f"layer is {layer}: it must lie between 1 and {depth}")

    def features(x: Tensor) -> Tensor:
        if layer == depth:
            return expert.logits(x)
        seen = []
        handle = relus[layer - 1].register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
        try:
            expert(x)
        finally:
            handle.remove()
        return seen[0].float()

    return features


def feature_distance(h: Tensor, h_target: Tensor) -> Tensor:
    """mean (h - h_target)^2 of each image: [B, ...], [B, ...] -> [B]."""
    return (h - h_target).square().flatten(1).mean(1)


def distill(
    expert: nn.Module, layer: int, x: Tensor, x_target: Tensor, s: DvergeSettings
) -> Tensor:
    """x' = argmin_z mean (h^l(z) - h^l(x_target))^2 over |z - x| <= distill_eps.

    x, x_target [B, C, H, W] -> [B, C, H, W].
    """
    features = features_at(expert, layer)
    with torch.no_grad():
        h_target = features(x_target)
    return pgd(
        features,
        x,
        torch.zeros(len(x), dtype=torch.long, device=x.device),  # labels do not matter here
        s.distill_eps,
        s.distill_alpha,
        s.distill_steps,
        loss=lambda h, _: -feature_distance(h, h_target),
        momentum=1.0,
        trusted=True,
    )


class DvergeLoss:
    """sum_i sum_{j != i} CE_i(x'_j, y), x'_j being distilled from member j; and sum_i CE_i on PGD
    against member i.

    Unlike the other losses it has a state: the layer, drawn at random once an epoch.
    """

    def __init__(self):
        self.step, self.layer = 0, 1

    def draw(self, settings: DvergeSettings) -> int:
        """The layer of the next step."""
        if self.step % settings.steps_per_epoch == 0:
            self.layer = int(torch.randint(1, settings.depth + 1, ()))
        self.step += 1
        return self.layer

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, settings: DvergeSettings) -> Tensor:
        model.eval().requires_grad_(False)
        x_target = x.roll(1, 0)  # images come in random order, so any other one is a random one
        distilled = [distill(expert, self.layer, x, x_target, settings) for expert in model.experts]
        x_adv = attack_each_expert(model, x, y, settings).chunk(settings.n) if settings.eps else []
        model.train().requires_grad_(True)
        own = sum_of_own_losses(model, x_adv, y)
        losses = [
            F.cross_entropy(expert.logits(x_j), y)
            for i, expert in enumerate(model.experts)
            for j, x_j in enumerate(distilled)
            if j != i
        ]
        return sum(losses, own)


def check(settings: DvergeSettings) -> None:
    if settings.n < 2:
        raise ValueError(f"--n is {settings.n}: DVERGE needs 2 or more, to learn from each other")
    if settings.batch_size < 2 * ranks.count():
        raise ValueError(
            f"--batch-size is {settings.batch_size}: an image's target is another one of its batch"
        )


def main(argv: list[str] | None = None) -> None:
    parser = options.training_parser(DvergeSettings, __doc__, "-m baselines.dverge")
    with runs.start(parser, argv, "dverge", "ensemble", stages=(1, 2), check=check) as run:
        train(run, 1, plain_loss)
        loss = DvergeLoss()
        train(run, 2, loss, compilable=False, draw=loss.draw)  # hooks would not be compiled
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
