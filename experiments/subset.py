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
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import data
from support import files, options


def shuffled(count: int) -> Tensor:
    """The same order of `count` images each time: [count]."""
    return torch.from_numpy(np.random.default_rng(0).permutation(count))


def first(dataset: data.Data, train: int, validation: int) -> tuple[Tensor, Tensor]:
    """Numbers of images for training and for testing, training images being counted first. Raises
    ValueError where there are too few."""
    N = len(dataset.x_train)
    if train + validation > N:
        raise ValueError(f"{dataset.name} has {N} training images: that is too few")
    order, own = shuffled(N), torch.arange(N, N + len(dataset.x_test))
    return order[:train], order[train : train + validation] if validation else own


def fold(dataset: data.Data, i: int, k: int) -> tuple[Tensor, Tensor]:
    """The same, with the i-th (from 1) of k parts of all images for testing. Raises ValueError
    where there are fewer images than parts, or k is 1."""
    N = len(dataset.x_train) + len(dataset.x_test)
    if not 2 <= k <= N:
        raise ValueError(f"--fold {i}/{k}: there must be 2 to {N} parts")
    parts = list(shuffled(N).tensor_split(k))
    test = parts.pop(i - 1)
    return torch.cat(parts), test


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.subset")
    add = parser.add_mutually_exclusive_group(required=True).add_argument
    add("--train", type=options.count, help="how many training images")
    testing = "the I-th of K parts for testing, the others for training"
    add("--fold", type=options.part, metavar="I/K", help=testing)
    add = parser.add_argument
    add("--data", default="digits", help="as in training")
    held_out = "with --train: how many other training images replace the test images"
    add("--validation", type=options.count, default=0, help=held_out)
    add("--out", required=True, metavar="FILE", help="the .npz file to write")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        out, buffer = Path(args.out), io.BytesIO()
        files.check_new(out, ".npz", "--out")
        if args.fold and args.validation:
            raise ValueError("--validation goes with --train")
        dataset = data.load(args.data)
        x = torch.cat([dataset.x_train, dataset.x_test]).permute(0, 2, 3, 1)  # channels last
        y, named = torch.cat([dataset.y_train, dataset.y_test]), {}
        chosen = (args.train, args.validation) if args.train else args.fold
        parts = (first if args.train else fold)(dataset, *chosen)
        for part, numbers in zip(("train", "test"), parts):
            named |= {f"x_{part}": x[numbers].numpy(), f"y_{part}": y[numbers].numpy()}
        np.savez_compressed(buffer, **named)
        files.write(out, buffer.getvalue())
        print(f"wrote {out}: {len(parts[0])} training and {len(parts[1])} test images")


if __name__ == "__main__":
    main()
