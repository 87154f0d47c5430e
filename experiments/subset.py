"""A fixed part of a data set as a FILE.npz, for smaller measurements and for choosing settings.

    python -m experiments.subset --data cifar10 --train 10000 --out cifar10-10000.npz
    python -m experiments.subset --data digits --train 1150 --validation 287 --out digits-val.npz
    python -m experiments.subset --data digits --fold 2/5 --out digits-fold2.npz

The training images are the first of numpy.random.default_rng(0).permutation(N). With --validation
the next ones replace the test images, so that settings can be chosen without the test images. With
--fold I/K all images, test images included, are shuffled and cut into K parts: the I-th is for
testing, the others for training. So over K runs each image is tested once.
"""

import io
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import data
from support import files, options


def shuffled(count: int) -> Tensor:
    """The same order of `count` images each time: [count]."""
    return torch.from_numpy(np.random.default_rng(0).permutation(count))


def subset(dataset: data.Data, train: int, validation: int | None) -> dict[str, np.ndarray]:
    """{x_train, y_train, x_test, y_test}, as numpy.savez takes them. Raises ValueError where there
    are too few images."""
    N, held_out = len(dataset.x_train), validation or 0
    if train + held_out > N:
        raise ValueError(f"{dataset.name} has {N} training images: that is too few")
    chosen, next_ones = shuffled(N)[: train + held_out].split([train, held_out])
    test = dataset.x_test, dataset.y_test
    if held_out:
        test = dataset.x_train[next_ones], dataset.y_train[next_ones]
    return arrays((dataset.x_train[chosen], dataset.y_train[chosen]), test)


def fold(dataset: data.Data, i: int, k: int) -> dict[str, np.ndarray]:
    """The same, with the i-th (from 1) of k parts of all images for testing. Raises ValueError
    where there are fewer images than parts, or k is 1."""
    x = torch.cat([dataset.x_train, dataset.x_test])
    y = torch.cat([dataset.y_train, dataset.y_test])
    if not 2 <= k <= len(x):
        raise ValueError(f"--fold {i}/{k}: there must be 2 to {len(x)} parts")
    parts = list(shuffled(len(x)).tensor_split(k))
    test = parts.pop(i - 1)
    train = torch.cat(parts)
    return arrays((x[train], y[train]), (x[test], y[test]))


def arrays(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, np.ndarray]:
    """Images [N, C, H, W] and labels [N] under their names in a FILE.npz, channels last."""
    named = {}
    for part, (x, y) in {"train": train, "test": test}.items():
        named |= {f"x_{part}": x.permute(0, 2, 3, 1).numpy(), f"y_{part}": y.numpy()}
    return named


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.subset")
    add = parser.add_mutually_exclusive_group(required=True).add_argument
    add("--train", type=options.count, help="how many training images")
    testing = "the I-th of K parts for testing, the others for training"
    add("--fold", type=options.part, metavar="I/K", help=testing)
    add = parser.add_argument
    add("--data", default="digits", help="as in training")
    held_out = "with --train: how many other training images replace the test images"
    add("--validation", type=options.count, help=held_out)
    add("--out", required=True, metavar="FILE", help="the .npz file to write")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        run(args)


def run(args: Namespace) -> None:
    """What `main` does, once the arguments are parsed. Raises ValueError or OSError."""
    out, buffer = Path(args.out), io.BytesIO()
    files.check_new(out, ".npz", "--out")
    if args.fold and args.validation:
        raise ValueError("--validation goes with --train")
    dataset = data.load(args.data)
    if args.fold:
        named = fold(dataset, *args.fold)
    else:
        named = subset(dataset, args.train, args.validation)
    np.savez_compressed(buffer, **named)
    files.write(out, buffer.getvalue())
    print(f"wrote {out}: {len(named['x_train'])} training and {len(named['x_test'])} test images")


if __name__ == "__main__":
    main()
