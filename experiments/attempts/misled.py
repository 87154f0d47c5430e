"""SoE whose stage 2 is attacked by someone who knows the router.

Stage 2 attacks what inference returns, and its argmax hides the E heads from the gradient; so no
expert ever learns from an image that was made to reach it. Here each batch is attacked in one of
2 + M ways, drawn anew: the answer, as in stage 2, soft routing, or misrouting to one expert
(`attacks.misled`). All else is SoE.

    python -m experiments.attempts.misled --eps 0.03 --n 3
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from support import runs

import torch
from torch import Tensor, nn

import infer
from attacks import misled, pgd
from train_submodel import sample_loss, soe_parser, stage1_loss, train


def misled_loss(model: nn.Module, x: Tensor, y: Tensor, settings: Namespace) -> Tensor:
    """As `train_collab.stage2_loss`, but for the attack: x [B, C, H, W], y [B] -> scalar."""
    model.eval().requires_grad_(False)

    def later(model: Callable, x: Tensor, y: Tensor, **how) -> Callable[[], Tensor]:
        ball = {name: getattr(settings, name) for name in ("eps", "alpha", "steps", "random_start")}
        return partial(pgd, model, x, y, **ball, **how)

    ways = [later(model, x, y), *misled(model, x, y, search=later)]
    x_adv = ways[torch.randint(len(ways), ())]()
    model.train().requires_grad_(True)
    clean, attacked = (sample_loss(model, batch, y, settings).mean() for batch in (x, x_adv))
    return settings.n * (clean + attacked)


def check(settings: Namespace) -> None:
    if settings.eps == 0:
        raise ValueError("with --eps 0 nothing is attacked, so nobody is misled")


def main(argv: list[str] | None = None) -> None:
    parser = soe_parser(__doc__, "-m experiments.attempts.misled")
    with runs.start(parser, argv, "soe-misled", "collaboration", (1, 2), check) as run:
        train(run, 1, stage1_loss)
        train(run, 2, misled_loss, compilable=False)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
