"""Soft synergy, and the ensemble as its limit, trained as TRADES is (Zhang et al., ICML 2019).

An attacked image then has no label: what is asked of it is the answer that the clean one gets.

    python -m experiments.attempts.trades --eps 0.03 --n 3 --depth 2 --lr 0.03 --temperature 3
    python -m experiments.attempts.trades --eps 0.03 --n 3 --depth 2 --temperature 1e6    # the vote
"""

from argparse import Namespace
from support import options, runs

from torch import Tensor, nn

import infer
from attacks import cross_entropy, pgd
from experiments.soft_synergy import entropy_of_use, mixture_parser
from train_submodel import train


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q), of ln p and ln q [B, K] -> [B]."""
    return (p.exp() * (p - q)).sum(1)


def trades_loss(model: nn.Module, x: Tensor, y: Tensor, settings: Namespace) -> Tensor:
    """M times the mean over the batch of -ln p_y(x) + w KL(p(x) || p(x~)), less soft synergy's
    balance on both; p is the mixture, and PGD makes x~ so that the KL is high.

    x [B, C, H, W], y [B] -> scalar.
    """
    model.eval().requires_grad_(False)
    clean, ball = model(x), (settings.eps, settings.alpha, settings.steps)
    # The start is random: at x itself the KL is least, and has no gradient.
    x_adv = pgd(model, x, y, *ball, loss=lambda q, _: divergence(clean, q), random_start=True)
    model.train().requires_grad_(True)
    said = [model.all_experts(batch) for batch in (x, x_adv)]
    p, q = (model.combine(logits, score) for logits, score in said)  # ln of them, [B, K]
    loss = (cross_entropy(p, y) + settings.divergence * divergence(p, q)).mean()
    balance = settings.balance * sum(entropy_of_use(score) for _, score in said)
    return settings.n * (loss - balance)


def parser() -> options.Parser:
    parser = mixture_parser(__doc__, "-m experiments.attempts.trades", options.radius)
    what = "w, the weight of the KL; 1 / lambda in their paper"
    parser.method.add_argument("--divergence", type=options.positive, default=6.0, help=what)
    return parser


def main(argv: list[str] | None = None) -> None:
    with runs.start(parser(), argv, "soft-trades", model="soft") as run:
        train(run, 1, trades_loss, compilable=False)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
