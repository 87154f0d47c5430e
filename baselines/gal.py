"""GAL, Gradient Alignment Loss: no single direction should raise all members' losses.

Kariyappa and Qureshi, *Improving Adversarial Robustness of Ensembles with Diversity Training*,
2019. Each member's loss has a gradient for the input; the cosine between two members' gradients
says how well an attack on the one carries over to the other, and a smooth maximum over the pairs is
trained away. That takes a second derivative: the networks have leaky ReLUs, and run in float32.

    python -m baselines.gal --eps 0.03 --n 3
    python -m baselines.gal --eps 0 --n 3     # as first published: clean and noisy images alone
"""

if not __package__:
    import __init__  # noqa: F401, says how to start it

from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infer
from attacks import expert_losses
from support import options, runs
from support.options import option
from train_submodel import Settings, clean_and_attacked, train


@dataclass
class GalSettings(Settings):
    """the loss of GAL"""

    optimizer: str = "adam"
    precision: str = "float32"
    coherence: float = option(0.5, options.not_negative, "lambda, the weight of the alignment")
    slope: float = option(0.1, options.not_negative, "slope of the leaky ReLUs")
    noise: float = option(
        0.045, options.not_negative, "deviation of the noise on half of the images"
    )


def coherence(losses: list[Tensor], x: Tensor) -> Tensor:
    """ln sum_{i<j} exp(cos(grad_x l_i, grad_x l_j)): M losses [B] of x [B, C, H, W] -> [B].

    Differentiable once more. It is highest, ln(M (M - 1) / 2) + 1, where all gradients align.
    """
    grads = [torch.autograd.grad(loss.sum(), x, create_graph=True)[0] for loss in losses]
    directions = F.normalize(torch.stack(grads).flatten(2), dim=-1)  # [M, B, C * H * W]
    cosines = [(a * b).sum(-1) for a, b in combinations(directions, 2)]  # M (M - 1) / 2 x [B]
    return torch.logsumexp(torch.stack(cosines), 0)


def noisy(x: Tensor, sigma: float) -> Tensor:
    """Adds Gaussian noise to half of the images: x [B, C, H, W] -> [B, C, H, W]."""
    chosen = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return x + chosen * sigma * torch.randn_like(x)


def gal_loss(model: nn.Module, x: Tensor, y: Tensor, settings: GalSettings) -> Tensor:
    """mean_i CE_i + lambda * coherence on images of which half are noisy (lambda is --coherence),
    and mean_i CE_i on PGD in the ball around these, noisy ones included, as in DVERGE's version of
    GAL; where noise is below -eps or above 1 + eps, that ball lies outside [0, 1]."""
    x = noisy(x.contiguous(), settings.noise)
    x, *adversarial = clean_and_attacked(model, x, y, settings)
    x = x.requires_grad_()
    # One loss at a time: a stack of them would lead every gradient through all members.
    experts = model.experts.side_by_side()
    losses = [F.cross_entropy(e.logits(x), y, reduction="none") for e in experts]  # M x [B]
    total = torch.stack(losses).mean() + settings.coherence * coherence(losses, x).mean()
    for x_adv in adversarial:
        total = total + expert_losses(model.all_experts(x_adv)[0], y).mean()
    # M, see stage1_loss: but Adam's steps, unlike SGD's, do not grow with the loss.
    return total * (settings.n if settings.optimizer == "sgd" else 1)


def check(settings: GalSettings) -> None:
    if settings.n < 2:
        raise ValueError(f"--n is {settings.n}: GAL compares members, so it needs at least 2")


def prepare(model: nn.Module) -> nn.Module:
    """On a CPU the second derivative of batch norm takes twice as long in channels-last."""
    return model.to(memory_format=torch.contiguous_format)


def main(argv: list[str] | None = None) -> None:
    parser = options.training_parser(GalSettings, __doc__, "-m baselines.gal")
    with runs.start(parser, argv, "gal", model="ensemble", check=check) as run:
        prepare(run.model)
        train(run, 1, gal_loss, compilable=False)  # torch.compile does not differentiate twice
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
