"""ADP, Adaptive Diversity Promoting: members agree on the true class and differ on the others.

Pang, Xu, Du, Chen and Zhu, *Improving Adversarial Robustness via Promoting Ensemble Diversity*,
ICML 2019. An image's wrong-class probabilities, scaled to length 1, are one vector per member; the
determinant of their Gram matrix is the squared volume that they span, largest where they are
orthogonal. The mean prediction's entropy leaves them room to differ.

    python -m baselines.adp --eps 0.03 --n 3
    python -m baselines.adp --eps 0 --n 3     # as first published: clean images alone
"""

if not __package__:
    import __init__  # noqa: F401, says how to start it

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infer
from attacks import expert_losses
from models import vote
from support import options, runs
from support.options import option
from train_submodel import Settings, clean_and_attacked, train


@dataclass
class AdpSettings(Settings):
    """the loss of ADP"""

    optimizer: str = "adam"
    entropy: float = option(2.0, options.not_negative, "alpha, the weight of the mean's entropy")
    diversity: float = option(0.5, options.not_negative, "beta, the weight of the log determinant")


def entropy_of_the_mean(logits: Tensor) -> Tensor:
    """H(mean_i f_i), in nats: [M, B, K] -> [B]."""
    log_f = vote(logits)  # [B, K]
    return -(log_f.exp() * log_f).sum(1)


def log_determinant(logits: Tensor, y: Tensor) -> Tensor:
    """ln det(V^T V + 1e-6 I), the members' probabilities without y, each scaled to length 1, being
    V's columns: [M, B, K], [B] -> [B], float64."""
    M, _, K = logits.shape
    # The softmax over the wrong classes alone points the same way, and does not underflow.
    is_y = torch.arange(K, device=y.device) == y[:, None]  # [B, K]
    wrong = logits.double().masked_fill(is_y, -torch.inf)
    V = F.normalize(wrong.softmax(-1), dim=-1).transpose(0, 1)  # [B, M, K]
    gram = V @ V.transpose(1, 2)  # [B, M, M]
    # By Cholesky: a determinant as small as 1e-6 to the power M - 1 keeps its digits. (_ex: what
    # is NaN stays NaN, for the training loop to find.)
    matrix = gram + 1e-6 * torch.eye(M, dtype=V.dtype, device=V.device)
    factor = torch.linalg.cholesky_ex(matrix).L
    return 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)


def adp_loss(model: nn.Module, x: Tensor, y: Tensor, settings: AdpSettings) -> Tensor:
    """sum_i CE_i - alpha * H(mean_i f_i) - beta * ln det (alpha is --entropy, beta --diversity), on
    clean images and, as in ADP's own adversarial training, on PGD against the vote."""
    total = 0
    for batch in clean_and_attacked(model, x, y, settings):
        logits, _ = model.all_experts(batch)  # [M, B, K]
        promoted = settings.entropy * entropy_of_the_mean(logits)
        promoted = promoted + settings.diversity * log_determinant(logits, y)
        total = total + (expert_losses(logits, y).sum(0) - promoted.float()).mean()
    return total


def check(settings: AdpSettings) -> None:
    if settings.n >= settings.num_classes:
        most = settings.num_classes - 1
        raise ValueError(f"--n is {settings.n}: only {most} members fit among the wrong classes")
    if options.pick_device(settings.device).type == "mps":
        raise ValueError("ADP's determinant needs float64, which mps lacks: give --device cpu")


def main(argv: list[str] | None = None) -> None:
    parser = options.training_parser(AdpSettings, __doc__, "-m baselines.adp")
    with runs.start(parser, argv, "adp", model="ensemble", check=check) as run:
        train(run, 1, adp_loss)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
