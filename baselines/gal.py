"""GAL, Gradient Alignment Loss: an image should not raise all members' losses in one direction.

Kariyappa and Qureshi, *Improving Adversarial Robustness of Ensembles with Diversity Training*,
2019. Each member's loss has a gradient for the input; the cosine between two members' gradients
says how well an attack on the one carries over to the other, and a smooth maximum over the pairs is
trained away. That takes a second derivative: the networks have leaky ReLUs, and run in float32.

    python -m baselines.gal --eps 0.03 --n 3
    python -m baselines.gal --eps 0 --n 3     # as first published: clean and noisy images alone
"""

import sys
from argparse import Namespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import expert_losses
from baselines import clean_and_attacked
from support import options
from train_submodel import TrainingLoss, run


def coherence(losses: list[Tensor], x: Tensor) -> Tensor:
    """ln sum_{i<j} exp(cos(grad_x l_i, grad_x l_j)): M losses [B] of x [B, C, H, W] -> [B].

    Differentiable once more. It is highest, ln(M (M - 1) / 2) + 1, where all gradients align.
    """
    grads = [torch.autograd.grad(loss.sum(), x, create_graph=True)[0] for loss in losses]
    directions = F.normalize(torch.stack(grads).flatten(2), dim=-1)  # [M, B, C * H * W]
    i, j = torch.triu_indices(len(losses), len(losses), offset=1)
    return torch.logsumexp((directions[i] * directions[j]).sum(-1), 0)


def noisy(x: Tensor, sigma: float) -> Tensor:
    """Adds Gaussian noise to half of the images: x [B, C, H, W] -> [B, C, H, W]."""
    chosen = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return x + chosen * sigma * torch.randn_like(x)


def gal_loss(model: nn.Module, settings: Namespace) -> TrainingLoss:
    """M times: mean_i CE_i + lambda * coherence on clean images, half of them noisy (lambda is
    --coherence), and mean_i CE_i on PGD against the vote."""
    if settings.n < 2:
        raise ValueError(f"--n is {settings.n}: GAL compares members, so it needs at least 2")
    # On a CPU the second derivative of batch norm takes twice as long in channels-last.
    model.to(memory_format=torch.contiguous_format)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        x, *adversarial = clean_and_attacked(model, x.contiguous(), y, settings)
        x = noisy(x, settings.noise).requires_grad_()
        # One loss at a time: a stack of them would lead every gradient through all members.
        losses = [F.cross_entropy(e(x)[0], y, reduction="none") for e in model.experts]  # M x [B]
        total = torch.stack(losses).mean() + settings.coherence * coherence(losses, x).mean()
        for x_adv in adversarial:
            total = total + expert_losses(model.all_experts(x_adv)[0], y).mean()
        return settings.n * total  # M: see stage1_loss

    loss.compilable = False  # torch.compile does not differentiate twice
    return loss


PARSER = options.baseline_parser(
    __doc__,
    "-m baselines.gal",
    changed={"optimizer": "adam", "precision": "float32"},
    own={
        "coherence": (0.5, float, "lambda, the weight of the gradients' alignment"),
        "slope": (0.1, float, "slope of the leaky ReLUs"),
        "noise": (0.045, float, "standard deviation of the noise on half of the images"),
    },
)


def main(argv: list[str] | None = None) -> int:
    return run(PARSER, argv, "gal", {1: gal_loss})


if __name__ == "__main__":
    sys.exit(main())
