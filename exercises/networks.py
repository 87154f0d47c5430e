"""The small trained networks of exercises 8 and 12, all of depth 2, on the digits at eps 0.1.

    python -m exercises.networks    # a minute on one thread; writes exercises/networks.pt

A and B are SoEs of three experts, C, D and E single networks. Which is which has another order for
another --variant KEY.
"""

import random
from pathlib import Path

import torch
from torch import nn

from exercises import KEY
from models import Collaboration, Ensemble, ResNet

FILE = Path(__file__).parent / "networks.pt"


def network() -> nn.Module:
    """An expert for 8 x 8 digits, untrained."""
    return ResNet(2, 1, 10, 8)


def untrained(soe: bool) -> nn.Module:
    if soe:
        return Collaboration([network() for _ in range(3)], "rectified")
    return Ensemble([network()])


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


# -------------------------------------------------------------------------- for the judge alone

from argparse import Namespace  # noqa: E402

import data  # noqa: E402
from baselines.plain import plain_loss  # noqa: E402
from support import checkpoints  # noqa: E402
from train_collab import stage2_loss  # noqa: E402
from train_submodel import stage1_loss  # noqa: E402

# In the file's order. C, D, E: one learned no adversarial images, one did, and one did not and is
# so sure of all, its logits being 10,000 times as large, that its cross-entropy has no gradient.
TRUTH = ["sigma 10", "sigma 1", "masked", "neither", "robust"]
EPS, EPOCHS = 0.1, 20


def name_of(letter: str) -> str:
    """The truth about a model."""
    return TRUTH[place(letter)]


def train(model: nn.Module, losses: list, **changes) -> None:
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
    models = [untrained(soe=name.startswith("sigma")) for name in TRUTH]
    for name, model in zip(TRUTH, models):
        if name.startswith("sigma"):
            train(model, [stage1_loss, stage2_loss], sigma=float(name.split()[1]))
        else:
            train(model, [plain_loss], eps=EPS if name == "robust" else 0)
        if name == "masked":
            with torch.no_grad():
                for weights in model.experts[0].p_head.parameters():
                    weights *= 10_000
    checkpoints.save(FILE, [model.state_dict() for model in models])


if __name__ == "__main__":
    main()
