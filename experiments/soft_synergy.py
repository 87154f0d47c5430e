"""Beyond the paper, ours: soft synergy. All experts answer, and learn, weighted by their
scores, the logits of g alone.

The hard switch, to the most confident expert, hides the E heads from training's attack and gives
the answer away to whoever attacks the switch. Here the answer is a mixture, sum_j w_j f_j with
w = softmax(score / T), which has nothing to hide: PGD attacks all of it in training, and its loss
trains P heads and E heads alike. T -> 0 answers as that switch does, T -> infinity as the vote;
the loss is then, at sigma = 1, that of an ensemble trained for its vote (`baselines.plain
--jointly`).

    python -m experiments.soft_synergy --eps 0.1 --n 3 --depth 2
    python -m experiments.soft_synergy --data cifar10 --depth 2 --lr 0.03 --temperature 3
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infer
from attacks import expert_losses
from support import options, runs
from support.options import option
from train_submodel import Settings, best_expert_loss, clean_and_attacked, train


@dataclass
class SoftSettings(Settings):
    """the loss of soft synergy"""

    temperature: float = option(1.0, options.positive, "T: experts weigh softmax(score / T)")
    balance: float = option(1.0, options.not_negative, "b, the weight of the mean weights' entropy")
    sigma: float = option(1.0, options.positive, "as in Eq. 7; 1: the mixture's loss")
    beta: float = option(0.0, options.not_negative, "weight of the experts' own losses, 0 to 1")


def entropy_of_use(score: Tensor) -> Tensor:
    """The entropy H of the batch's mean weights softmax(score): [M, B] -> scalar; at most ln M."""
    use = F.softmax(score, 0).mean(1).clamp(min=1e-30)  # at 0 the entropy's slope is infinite
    return torch.special.entr(use).sum()


def mixture_loss(losses: Tensor, score: Tensor, settings: SoftSettings) -> Tensor:
    """Of the experts' losses l_j and their scores, [M, B] each, the mean over the batch of

        (1 - beta) (-sigma ln sum_j w_j exp(-l_j / sigma)) + beta mean_j l_j - b H(mean w).

    The first term is `best_expert_loss` of l_j - sigma ln w_j; at sigma = 1, the mixture's own CE.
    The mean of the l_j lets no expert rely on the others; the entropy H of the batch's mean weights
    keeps every expert in use.
    """
    beta, b = settings.beta, settings.balance
    log_weights = F.log_softmax(score, 0)  # ln w_j, [M, B]
    mixed = best_expert_loss(losses - settings.sigma * log_weights, settings.sigma)
    return ((1 - beta) * mixed + beta * losses.mean(0)).mean() - b * entropy_of_use(score)


def soft_loss(model: nn.Module, x: Tensor, y: Tensor, settings: SoftSettings) -> Tensor:
    """M times `mixture_loss`, clean and under PGD against the mixture: x [B, C, H, W], y [B] ->
    scalar."""
    total = 0
    for batch in clean_and_attacked(model, x, y, settings):
        logits, score = model.all_experts(batch)
        total = total + mixture_loss(expert_losses(logits, y), score, settings)
    return settings.n * total


def check(settings: SoftSettings) -> None:
    if settings.beta > 1:
        raise ValueError(f"--beta {settings.beta:g} is a share: 0 to 1")


def main(argv: list[str] | None = None) -> None:
    parser = options.training_parser(SoftSettings, __doc__, "-m experiments.soft_synergy")
    with runs.start(parser, argv, "soft-synergy", model="soft", check=check) as run:
        train(run, 1, soft_loss)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
