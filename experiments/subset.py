"""A fixed part of a data set as a FILE.npz, for smaller measurements and for choosing settings.

    python -m experiments.subset --data cifar10 --train 10000 --out cifar10-10000.npz
    python -m experiments.subset --data digits --train 1150 --validation 287 --out digits-val.npz

The training images are the first of numpy.random.default_rng(0).permutation(N). With --validation
the next ones stand in the place of the test images, so that settings can be chosen without these.
"""

import io
from argparse import Namespace
from pathlib import Path
from support import files, options

import numpy as np
import torch

import data


def subset(dataset: data.Data, train: int, validation: int | None) -> dict[str, np.ndarray]:
    """{x_train, y_train, x_test, y_test}, as numpy.savez takes them. Raises ValueError where there
    are too few images."""
    N = len(dataset.x_train)
    if train + (validation or 0) > N:
        raise ValueError(f"{dataset.name} has {N} training images: that is too few")
    order = torch.from_numpy(np.random.default_rng(0).permutation(N))
    x, y = dataset.x_train[order], dataset.y_train[order]
    parts = {"train": (x[:train], y[:train]), "test": (dataset.x_test, dataset.y_test)}
    if validation:
        held_out = slice(train, train + validation)
        parts["test"] = x[held_out], y[held_out]
    images = {f"x_{part}": x.permute(0, 2, 3, 1).numpy() for part, (x, _) in parts.items()}
    return images | {f"y_{part}": y.numpy() for part, (_, y) in parts.items()}


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.subset")
    add = parser.add_argument
    add("--data", default="digits", help="as in training")
    add("--train", type=options.count, required=True, help="how many training images")
    what = "how many others of them take the place of the test images"
    add("--validation", type=options.count, help=what)
    add("--out", required=True, metavar="FILE", help="the .npz file to write")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        run(args)


def run(args: Namespace) -> None:
    """What `main` does, once the arguments are parsed. Raises ValueError or OSError."""
    out, buffer = Path(args.out), io.BytesIO()
    files.check_new(out, ".npz", "--out")
    arrays = subset(data.load(args.data), args.train, args.validation)
    np.savez_compressed(buffer, **arrays)
    files.write(out, buffer.getvalue())
    print(f"wrote {out}: {len(arrays['x_train'])} training and {len(arrays['x_test'])} test images")


if __name__ == "__main__":
    main()
