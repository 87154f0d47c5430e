"""The process that trains an entry of the capstone: nothing in it judges, and it has no images but
those of the training part.

    python -m exercises.entry UID SECONDS METHOD.py TRAIN.npz BUDGET SEED

It writes the weights to the standard output, a line of JSON for each tensor.
"""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import data
from baselines.models import build
from exercises import as_line, numbers
from exercises.child import answering, confine, told
from exercises.yours import own_module

EPS, BATCH = 0.1, 128
SETTINGS = {"n": 3, "depth": 2, "image_shape": [1, 8, 8], "num_classes": 10, "confidence": "ehead"}
SETTINGS |= {"eps": EPS, "alpha": EPS / 3, "steps": 10, "random_start": False, "progress": 0.0}
SETTINGS |= {"weights": "best", "sigma": 1.0, "lambda_": 1.0, "temperature": 1.0}


def settings_of(combine: str) -> Namespace:
    """Raises ValueError for another way to combine the experts."""
    kinds = {"vote": "ensemble"} | {name: name for name in ("collaboration", "mixture", "soft")}
    if str(combine) not in kinds:
        raise ValueError(f"COMBINE is {combine!r}: it must be {', '.join(kinds)}")
    return Namespace(**SETTINGS, model=kinds[combine])


def train_entry(method: object, x: Tensor, y: Tensor, budget: int, seed: int) -> nn.Module:
    """An entry's model, trained on x uint8 [N, C, H, W], y [N] until the budget is used up."""
    settings, used = settings_of(method.COMBINE), [0]
    torch.manual_seed(seed)
    model = build(vars(settings))

    def count(_, inputs: tuple[Tensor]) -> None:
        used[0] += len(inputs[0]) if torch.is_grad_enabled() else 0

    for expert in model.experts:
        expert.backbone.register_forward_pre_hook(count)
    rate = getattr(method, "LEARNING_RATE", 0.1)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    while used[0] < budget:
        for batch in data.batches(x, y, BATCH, augment=False):
            settings.progress = min(1.0, used[0] / budget)
            falls = (settings.progress >= 0.5) + (settings.progress >= 0.75)
            optimizer.param_groups[0]["lr"] = rate * 0.1**falls
            optimizer.zero_grad()
            method.loss(model, *batch, settings).backward()
            optimizer.step()
            if used[0] >= budget:
                break
    return model


def main(entry: str, images: str, budget: str, seed: str) -> None:
    """`train_entry` of a file; writes the weights."""
    tell = answering()
    with np.load(images) as file:
        x, y = (torch.from_numpy(file[name]) for name in "xy")
    try:
        method = own_module(Path(entry), "method")
        model = train_entry(method, x, y, int(budget), int(seed))
    except BaseException as error:
        return tell(as_line("error", told(error, entry).split("\n")[-1]))
    for name, value in model.state_dict().items():
        tell(as_line(name, numbers(value)))


if __name__ == "__main__":
    confine(int(sys.argv[1]), int(sys.argv[2]))
    main(*sys.argv[3:])
