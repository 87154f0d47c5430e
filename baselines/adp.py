"""ADP, Adaptive Diversity Promoting: members agree on the true class and differ on the others.

Pang, Xu, Du, Chen and Zhu, *Improving Adversarial Robustness via Promoting Ensemble Diversity*,
ICML 2019. Each image's wrong-class probabilities of the M members are vectors of length 1; the
determinant of their Gram matrix is the squared volume that they span, largest where they are
orthogonal. The mean prediction's entropy leaves them room to differ.

    python -m baselines.adp --eps 0.03 --n 3
    python -m baselines.adp --eps 0 --n 3     # as first published: clean images alone
"""

import sys
from argparse import Namespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import expert_losses
from baselines import clean_and_attacked
from models import vote
from support import options
from train_submodel import TrainingLoss, run


def entropy_of_the_mean(logits: Tensor) -> Tensor:
    """H(mean_i f_i), in nats: [M, B, K] -> [B]."""
    log_f = vote(logits)  # [B, K]
    return -(log_f.exp() * log_f).sum(1)


def log_determinant(logits: Tensor, y: Tensor) -> Tensor:
    """ln det(V^T V + 1e-6 I), the members' probabilities without y, each scaled to length 1, being
    V's columns: [M, B, K], [B] -> [B], float64."""
    M, _, K = logits.shape
    # The softmax over the wrong classes alone points the same way, and does not underflow.
    wrong = logits.double().masked_fill(F.one_hot(y, K).bool(), -torch.inf)
    V = F.normalize(wrong.softmax(-1), dim=-1).transpose(0, 1)  # [B, M, K]
    gram = V @ V.transpose(1, 2)  # [B, M, M]
    # By Cholesky: a determinant as small as 1e-6 to the power M - 1 keeps its digits. (_ex: what
    # is NaN stays NaN, for the training loop to find.)
    matrix = gram + 1e-6 * torch.eye(M, dtype=V.dtype, device=V.device)
    factor = torch.linalg.cholesky_ex(matrix).L
    return 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)


def adp_loss(model: nn.Module, settings: Namespace) -> TrainingLoss:
    """sum_i CE_i - alpha * H(mean_i f_i) - beta * ln det on clean images (alpha is
    --entropy, beta --diversity), and sum_i CE_i on PGD against the vote."""
    if settings.n >= settings.num_classes:
        most = settings.num_classes - 1
        raise ValueError(f"--n is {settings.n}: only {most} members fit among the wrong classes")
    if next(model.parameters()).device.type == "mps":
        raise ValueError("ADP's determinant needs float64, which mps lacks: give --device cpu")

    def loss(x: Tensor, y: Tensor) -> Tensor:
        batches = clean_and_attacked(model, x, y, settings)
        clean, *adversarial = [model.all_experts(batch)[0] for batch in batches]  # [M, B, K]
        promoted = settings.entropy * entropy_of_the_mean(clean)
        promoted = promoted + settings.diversity * log_determinant(clean, y)
        ce = sum(expert_losses(logits, y).mean(1).sum() for logits in (clean, *adversarial))
        return ce - promoted.mean().float()

    return loss


PARSER = options.baseline_parser(
    __doc__,
    "-m baselines.adp",
    changed={"optimizer": "adam"},
    own={
        "entropy": (2.0, float, "alpha, the weight of the mean prediction's entropy"),
        "diversity": (0.5, float, "beta, the weight of the log determinant"),
    },
)


def main(argv: list[str] | None = None) -> int:
    return run(PARSER, argv, "adp", {1: adp_loss})


if __name__ == "__main__":
    sys.exit(main())
