"""Data sets and their batches: `digits` (built in), `cifar10` (downloaded), one's own `FILE.npz`,
or a folder of images (data/folder.py).

`digits.npz` holds the 1,797 handwritten 8 x 8 digits of the test set of UCI's "Optical Recognition
of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, doi 10.24432/C50P49, CC BY 4.0), the ones
that scikit-learn ships: grey levels v in 0..16 as uint8 round(v * 255 / 16), in the order
numpy.random.default_rng(0).permutation(1797); the first 1,437 train, the last 360 test.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import CIFAR10

from data import folder
from support import files

FOLDER = Path(__file__).parent
MAX_IMAGES = 1000  # of the test set, in a table


@dataclass
class Data:
    """Images are uint8 [N, C, H, W], labels int64 [N] in 0 .. num_classes - 1."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    name: str
    class_names: list[str]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return tuple(self.x_train.shape[1:])

    @property
    def checksum(self) -> int:
        """Tells whether two data sets hold the same images and labels, whatever their names."""
        total = 0
        for part in (self.x_train, self.y_train, self.x_test, self.y_test):
            total = zlib.crc32(part.numpy(), total)
        return total

    def test_images(
        self, device: torch.device | str, chosen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images [N, C, H, W] in [0, 1] and labels [N]: `chosen`, or at most 1,000 at random."""
        chosen = self.choose_test_images() if chosen is None else chosen
        return self.x_test[chosen].to(device).float() / 255, self.y_test[chosen].to(device)

    def choose_test_images(self, count: int = MAX_IMAGES) -> Tensor:
        """Numbers of at most `count` test images, a fixed random choice: [N]."""
        order = torch.randperm(len(self.x_test), generator=torch.Generator().manual_seed(0))
        return order[:count]


# ---------------------------------------------------------------------------------------- batches


def batches(
    x: Tensor, y: Tensor, batch_size: int, augment: bool = False, share: slice = slice(None)
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch's batches, in random order: images [B, C, H, W] in [0, 1], labels [B].

    x is uint8 [N, C, H, W], y [N], on the device that the batches are to be on. The last, partial
    batch is dropped. `share` cuts from each batch the images of one process among several. Random
    numbers are drawn on the CPU, for the whole epoch: the same on every device.
    """
    n, device = len(x), x.device
    order = torch.randperm(n).to(device)
    shifts = torch.randint(0, 9, (2, n)).to(device)
    flips = (torch.rand(n) < 0.5).to(device)
    for i in order.split(batch_size)[: max(1, n // batch_size)]:
        i = i[share]
        images = crop_and_flip(x[i], *shifts[:, i], flips[i]) if augment else x[i]
        yield images.float().div(255).contiguous(memory_format=torch.channels_last), y[i]


def crop_and_flip(x: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Crops x [B, C, H, W], padded by 4, at `top`, `left` in 0 .. 8 [B]; mirrors where `flip`."""
    height, width = x.shape[2:]
    rows = top[:, None] + torch.arange(height, device=x.device)  # [B, H]
    columns = left[:, None] + torch.arange(width, device=x.device)  # [B, W]
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    images = torch.arange(len(x), device=x.device)[:, None, None]
    padded = F.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    return padded[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------------------- reading


def load(name_or_path: str, size: int | None = None, test_share: float | None = None) -> Data:
    """The data set called `digits` or `cifar10`, or the one in a file FILE.npz, or in a folder with
    a folder of images for each class, for which alone `size` and `test_share` are: see folder.py.

    Raises ValueError for an unknown name or a file with wrong contents, OSError for one that
    is missing or cannot be read or downloaded.
    """
    path = Path(name_or_path)
    if name_or_path not in ("digits", "cifar10") and path.is_dir():
        arrays, class_names = folder.from_folder(path, size, test_share)
        return _check(path.resolve().name, *arrays, class_names)
    if size is not None or test_share is not None:
        raise ValueError(f"--size and --test-share are for folders of images; {path} is none")
    if name_or_path == "digits":
        return _from_npz(FOLDER / "digits.npz")
    if name_or_path == "cifar10":
        return _cifar10()
    if name_or_path.endswith(".npz"):
        return _from_npz(Path(name_or_path))
    raise ValueError(f"unknown data {name_or_path!r}: give digits, cifar10, a FILE.npz or a folder")


def load_as_trained(settings: dict, moved_to: str | None = None) -> Data:
    """The data set that a model was trained on, or the one that is named in its place.

    Raises ValueError where its images have another shape or number of classes, or where none is
    named and the images are others: a folder with one file more is drawn anew for testing.
    """
    where = moved_to or settings["data"]
    how = {key: settings.get(key) for key in ("size", "test_share")} if Path(where).is_dir() else {}
    found = load(where, **how)
    theirs = (settings["num_classes"], list(settings["image_shape"]))
    if (found.num_classes, list(found.image_shape)) != theirs:
        raise ValueError(
            f"{found.name} has {found.num_classes} classes of images {found.image_shape}; the "
            f"checkpoint was trained on {settings['data_name']}, with {theirs[0]} of {theirs[1]}"
        )
    if moved_to is None and found.checksum != settings.get("data_checksum", found.checksum):
        raise ValueError(
            f"{where} holds other images than those of the run; name it by --data to use it"
        )
    return found


def _cifar10() -> Data:
    try:
        train, test = (CIFAR10(FOLDER, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError, EOFError) as error:
        raise OSError(
            f"CIFAR-10 is not in {FOLDER} and cannot be downloaded ({error}): put "
            "cifar-10-python.tar.gz there, or use --data digits, which needs no download"
        ) from None
    arrays = (train.data, train.targets, test.data, test.targets)
    return _check("cifar10", *arrays, train.classes)


def _from_npz(path: Path) -> Data:
    names = ("x_train", "y_train", "x_test", "y_test")
    with files.reading(path, "npz file with " + ", ".join(names)):
        files.check_archive(path)
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in names if name not in file]:
                raise ValueError(f"it lacks {', '.join(missing)}")
            arrays = [file[name] for name in names]
    built_in = path.stem in ("digits", "cifar10") and path.parent != FOLDER
    return _check(path.name if built_in else path.stem, *arrays)


def _check(name: str, x_train, y_train, x_test, y_test, class_names=None) -> Data:
    """The four arrays as tensors, once they fit each other. Classes without names are numbers."""

    def need(true: bool, what: str) -> None:
        if not true:
            raise ValueError(f"{name}: {what}")

    tensors = []
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        x, y = np.asarray(x), np.asarray(y)
        need(x.dtype == np.uint8, f"x_{part} is {x.dtype}: images must be uint8, 0 to 255")
        fits = x.ndim == 3 or (x.ndim == 4 and x.shape[3] in (1, 3))
        what = "it must be N x H x W or N x H x W x C, C 1 or 3"
        need(fits, f"x_{part} has shape {x.shape}: {what}")
        need(len(x) > 0, f"x_{part} is empty: it must hold at least one image")
        fits = all(side >= 8 and side % 4 == 0 for side in x.shape[1:3])
        what = "sides must be multiples of 4, from 8 up"
        need(fits, f"x_{part} has images of {x.shape[1]} x {x.shape[2]}: {what}")
        fits = y.shape in ((len(x),), (len(x), 1)) and y.dtype.kind in "iu"
        what = f"it must be one integer for each of the {len(x)} images"
        need(fits, f"y_{part} is {y.dtype} of shape {y.shape}: {what}")
        x = x.reshape(*x.shape[:3], -1).transpose(0, 3, 1, 2)
        tensors += [torch.from_numpy(np.ascontiguousarray(x))]
        tensors += [torch.from_numpy(y.reshape(-1).astype(np.int64))]
    x_train, y_train, x_test, y_test = tensors
    least, most, classes = int(y_train.min()), int(y_train.max()), len(y_train.unique())
    what = "they must be numbered from 0, at least two, and each must occur"
    fits = classes >= 2 and least == 0 and most == classes - 1
    need(fits, f"y_train's labels, {least} .. {most}, are out of range: {what}")
    fits = y_test.min() >= 0 and y_test.max() <= most
    what = f"{y_test.min()} .. {y_test.max()}, are out of range: y_train's are 0 .. {most}"
    need(fits, f"y_test's labels, {what}")
    shapes = [list(x.shape[1:]) for x in (x_train, x_test)]
    what = "they must be the same (channels, height, width)"
    need(
        shapes[0] == shapes[1], f"x_train has images of {shapes[0]}, x_test of {shapes[1]}: {what}"
    )
    return Data(*tensors, name, class_names or [*map(str, range(classes))])
