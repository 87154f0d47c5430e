"""The methods that SoE is compared with: each file is one loss(model, x, y, settings)."""

from argparse import Namespace

from torch import Tensor, nn

from train_submodel import training_attack


def clean_and_attacked(model: nn.Module, x: Tensor, y: Tensor, settings: Namespace) -> list[Tensor]:
    """[x, x~], x~ = PGD against the whole model; [x] where eps is 0. Ends in train mode."""
    batches = [x]
    if settings.eps:
        model.eval().requires_grad_(False)
        batches.append(training_attack(model, x, y, settings))
    model.train().requires_grad_(True)
    return batches
