"""Stage 2, collaboration training (the paper's Algorithm 2), and the main command.

Stage 1 stops finding weak spots once every expert's own attack is answered. Stage 2 attacks the
collaboration itself, the logits that Algorithm 1 returns, and trains on what it finds.

    python train_collab.py --eps 0.03 --n 3                                # stage 1, stage 2, table
    python train_collab.py --eps 0.03 --n 3 --submodels RUN/submodels.pt   # stage 2, table

Without --submodels each stage has half of the epochs, its own schedule and fresh momentum.
"""

import sys
from argparse import Namespace

import torch
from torch import Tensor, nn

from attacks import expert_losses
from models import rectified_score
from support import options
from train_submodel import (
    TrainingLoss,
    confidence_loss,
    run,
    sample_loss,
    stage1_loss,
    training_attack,
)


def confidence_weighted_loss(model: nn.Module, x: Tensor, y: Tensor, settings: Namespace) -> Tensor:
    """The authors' code: sum_j softmax_j(max_k f_jk * g_j) l_j + lambda * mean_j BCE_j.

    No gradient flows through the weights, which are nearly uniform, every score being in (0, 1).
    x [B, C, H, W], y [B] -> [B].
    """
    logits, score = model.all_experts(x, y)  # [M, B, K], [M, B]
    losses = expert_losses(logits, y)  # [M, B]
    rectified = score if model.confidence == "rectified" else rectified_score(logits, score)
    weights = torch.softmax(rectified.sigmoid().detach(), 0)  # [M, B]
    p_y = torch.exp(-losses)
    return (weights * losses).sum(0) + settings.lambda_ * confidence_loss(score, p_y)


def stage2_loss(model: nn.Module, settings: Namespace) -> TrainingLoss:
    """The loss of collaboration training: x [B, C, H, W], y [B] -> scalar."""
    M = settings.n
    each = sample_loss if settings.weights == "best" else confidence_weighted_loss

    def loss(x: Tensor, y: Tensor) -> Tensor:
        model.eval().requires_grad_(False)
        # x~_c = PGD on the logits that Algorithm 1 returns
        x_adv = training_attack(model, x, y, settings)  # [B, C, H, W]
        model.train().requires_grad_(True)
        clean = each(model, x, y, settings).mean()
        adversarial = each(model, x_adv, y, settings).mean()
        return M * (clean + adversarial)  # M: see stage1_loss

    return loss


def main(argv: list[str] | None = None) -> int:
    parser = options.training_parser(__doc__, "train_collab.py")
    return run(parser, argv, "soe", {1: stage1_loss, 2: stage2_loss})


if __name__ == "__main__":
    sys.exit(main())
