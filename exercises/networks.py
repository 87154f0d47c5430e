"""The small networks that exercises attack and train, all of depth 2, for the digits.

    python -m exercises.networks    # a minute on one thread; writes exercises/networks.pt

That file holds those of exercises 8 and 12, trained at eps 0.1: A and B are SoEs of three experts,
C, D and E single networks. Which is which has another order for another --variant KEY.
"""

import random
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from exercises import KEY, generator, shaped
from models import Collaboration, Ensemble, ResNet

FILE = Path(__file__).parent / "networks.pt"


def experts(M: int, classes: int = 10) -> list[nn.Module]:
    """Untrained ones."""
    return [ResNet(2, 1, classes, 8) for _ in range(M)]


def untrained(soe: bool) -> nn.Module:
    return Collaboration(experts(3), "rectified") if soe else Ensemble(experts(1))


def place(letter: str) -> int:
    """Where a model is in the file."""
    soes, single = [0, 1], [2, 3, 4]
    if KEY:
        for order in (soes, single):
            random.Random(KEY).shuffle(order)
    return (soes + single)["ABCDE".index(letter)]


def load(letter: str) -> nn.Module:
    """A trained model, "A" to "E", in eval mode."""
    model = untrained(soe=letter in "AB")
    model.load_state_dict(torch.load(FILE, weights_only=True)[place(letter)])
    return model.eval()


def loss_and_gradients(
    loss: Callable, combined: Callable, settings: Namespace
) -> dict[str, Tensor]:
    """Of a loss(model, x, y, settings), for six images and the model that `combined` makes of
    settings.n untrained experts: the value, the gradients, and how the model is left."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(0).initial_seed())
        model = combined(experts(settings.n, 4))
        x, y = torch.rand(6, 1, 8, 8), torch.randint(4, (6,))
        value = shaped(loss(model, x, y, settings), ())
    if value.requires_grad:
        value.backward()
    told = {"the value": value, "left behind, 1 for train mode": torch.tensor(model.training)}
    for name, w in model.named_parameters():
        told[f"the gradient for {name}"] = torch.zeros_like(w) if w.grad is None else w.grad
    for name, kept in model.named_buffers():  # of batch norm
        told[f"left behind, {name}"] = kept
    return told


def left(model: nn.Module, x_adv: np.ndarray, x: Tensor, y: Tensor, eps: float) -> float:
    """% that the model has correct on images that an attack makes of x [N, C, H, W], y [N]. Raises
    ValueError for those that it may not make."""
    x_adv = torch.from_numpy(x_adv).float()
    if x_adv.shape != x.shape or not x_adv.isfinite().all():
        raise ValueError("some pixels are missing, NaN or infinite")
    outside = max((x_adv - x).abs().max().item() - eps, -x_adv.min().item(), x_adv.max().item() - 1)
    if outside > 1e-6:
        raise ValueError(f"some pixel is {outside:.3g} outside the ball or [0, 1]")
    with torch.no_grad():
        return 100 * (model(x_adv).argmax(1) == y).double().mean().item()


# -------------------------------------------------------------------------- for the judge alone

import data  # noqa: E402
from baselines.plain import plain_loss  # noqa: E402
from support import checkpoints  # noqa: E402
from train_collab import stage2_loss  # noqa: E402
from train_submodel import stage1_loss  # noqa: E402

EPS, EPOCHS = 0.1, 20
TRUTH = {  # in the file's order: how each model was trained
    "sigma 10": ([stage1_loss, stage2_loss], {"sigma": 10.0}),
    "sigma 1": ([stage1_loss, stage2_loss], {"sigma": 1.0}),
    "masked": ([plain_loss], {"eps": 0}),  # and then its logits are multiplied
    "neither": ([plain_loss], {"eps": 0}),
    "robust": ([plain_loss], {"eps": EPS}),
}


def name_of(letter: str) -> str:
    """The truth about a model."""
    return list(TRUTH)[place(letter)]


def train(model: nn.Module, losses: list, changes: dict) -> None:
    """EPOCHS epochs on the digits, an equal part by each loss."""
    how = {"eps": EPS, "alpha": EPS / 3, "steps": 10, "random_start": False, "lambda_": 1.0}
    settings = Namespace(**how | {"n": len(model.experts), "weights": "best"} | changes)
    digits, epochs = data.load("digits"), EPOCHS // len(losses)
    for loss in losses:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
        falls = [epochs // 2, 3 * epochs // 4]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls)
        for _ in range(epochs):
            for x, y in data.batches(digits.x_train, digits.y_train, 128):
                optimizer.zero_grad()
                loss(model, x, y, settings).backward()
                optimizer.step()
            schedule.step()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    models = {name: untrained(soe=name.startswith("sigma")) for name in TRUTH}
    for name, model in models.items():
        train(model, *TRUTH[name])
    for weights in models["masked"].experts[0].p_head.parameters():
        weights.data *= 10_000  # it is so sure of all that its cross-entropy has no gradient
    checkpoints.save(FILE, [model.state_dict() for model in models.values()])


if __name__ == "__main__":
    main()
