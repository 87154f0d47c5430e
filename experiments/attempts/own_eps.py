"""Soft synergy whose experts each have an eps of their own.

A third of each batch (with M experts, an M-th) is attacked at eps / 2, another at eps, the last at
3/2 eps, and one expert each learns it on its own account, too.

    python -m experiments.attempts.own_eps --eps 0.03 --n 3 --depth 2 --lr 0.03 --temperature 3
"""

from argparse import Namespace
from support import options, runs

import torch
from torch import Tensor, nn

import infer
from attacks import expert_losses, pgd
from baselines import weights
from experiments import soft_synergy
from experiments.soft_synergy import mixture_loss, soft_parser
from train_submodel import train


def own_eps_loss(model: nn.Module, x: Tensor, y: Tensor, settings: Namespace) -> Tensor:
    """M times: `mixture_loss` on clean images, and on those attacked at eps_j, where the mean of
    their own expert's loss l_j is added `own` times. x [B, C, H, W], y [B] -> scalar."""
    M, x_adv = settings.n, []
    model.eval().requires_grad_(False)
    for j, images in enumerate(zip(x.tensor_split(M), y.tensor_split(M))):
        ratio = 0.5 + j / (M - 1)  # eps_j / eps
        ball = ratio * settings.eps, ratio * settings.alpha, settings.steps
        x_adv.append(pgd(model, *images, *ball, random_start=settings.random_start))
    model.train().requires_grad_(True)

    total = 0
    for weight, batch in zip(weights(settings), (x, torch.cat(x_adv))):
        logits, score = model.all_experts(batch)
        losses = expert_losses(logits, y)  # l_j, [M, B]
        total = total + weight * mixture_loss(losses, score, settings)
    own = torch.cat([part[j] for j, part in enumerate(losses.tensor_split(M, 1))])  # [B]
    return M * (total + settings.own * own.mean())


def parser() -> options.Parser:
    parser = soft_parser(__doc__, "-m experiments.attempts.own_eps")
    what = "the weight of an expert's loss on the images attacked at its own eps"
    parser.method.add_argument("--own", type=options.not_negative, default=1.0, help=what)
    return parser


def check(settings: Namespace) -> None:
    """Raises ValueError for one expert alone, or an eps_j of 0 or above 1."""
    soft_synergy.check(settings)
    if settings.n < 2:
        raise ValueError(f"--n {settings.n}: two experts or more have an eps of their own")
    if not 0 < settings.eps <= 2 / 3:
        raise ValueError(f"--eps {settings.eps:g}: half of it and 3/2 of it must lie in (0, 1]")


def main(argv: list[str] | None = None) -> None:
    with runs.start(parser(), argv, "soft-own-eps", model="soft", check=check) as run:
        train(run, 1, own_eps_loss)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
