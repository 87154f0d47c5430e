"""Reading a data set: `digits` (built in), `cifar10` (downloaded) or a `FILE.npz` of one's own.

`digits.npz` holds the 1,797 handwritten 8 x 8 digits of the test set of UCI's "Optical Recognition
of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, doi 10.24432/C50P49, CC BY 4.0), the ones
that scikit-learn ships: grey levels v in 0..16 as uint8 round(v * 255 / 16), in the order
numpy.random.default_rng(0).permutation(1797); the first 1,437 train, the last 360 test.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

PARTS = ("train", "test")
FOLDER = Path(__file__).parent
# What numpy raises on a file that is damaged, cut short, encrypted, or something else
UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,  # NotImplementedError is one
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass
class Data:
    """Images are uint8 [N, C, H, W], labels int64 [N] in 0 .. num_classes - 1."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    name: str
    num_classes: int

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


def load(name_or_path: str) -> Data:
    """The data set called `digits` or `cifar10`, or the one in a file FILE.npz.

    Raises ValueError for an unknown name or a file with wrong contents, OSError for one that
    is missing or cannot be read or downloaded.
    """
    if name_or_path == "digits":
        return _from_npz(FOLDER / "digits.npz")
    if name_or_path == "cifar10":
        return _cifar10()
    if name_or_path.endswith(".npz"):
        return _from_npz(Path(name_or_path))
    raise ValueError(f"unknown data {name_or_path!r}: give digits, cifar10 or a FILE.npz")


def _cifar10() -> Data:
    try:
        train, test = (CIFAR10(FOLDER, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError, EOFError) as error:
        raise OSError(
            f"CIFAR-10 is not in {FOLDER} and cannot be downloaded ({error}): put "
            "cifar-10-python.tar.gz there, or use --data digits, which needs no download"
        ) from None
    return _check("cifar10", train.data, train.targets, test.data, test.targets)


def _from_npz(path: Path) -> Data:
    names = ("x_train", "y_train", "x_test", "y_test")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is no npz file: write it with numpy.savez(FILE, {', '.join(names)})"
        ) from error
    with file:
        if missing := [name for name in names if name not in file]:
            raise ValueError(f"{path} lacks {', '.join(missing)}: it must hold {', '.join(names)}")
        try:
            arrays = [file[name] for name in names]
        except UNREADABLE as error:
            reason = "it holds Python objects" if "pickle" in str(error) else "it is damaged"
            raise ValueError(
                f"{path} cannot be read, {reason}: images must be uint8, labels integers"
            ) from error
    built_in = path.stem in ("digits", "cifar10") and path.parent != FOLDER
    return _check(path.name if built_in else path.stem, *arrays)


def _check(name: str, x_train, y_train, x_test, y_test) -> Data:
    """The four arrays as tensors, once they fit each other."""
    tensors, num_classes = {}, None
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        x, y = np.asarray(x), np.asarray(y)
        where = f"{name}: x_{part}"
        if x.dtype != np.uint8:
            raise ValueError(f"{where} is {x.dtype}: images must be uint8, 0 to 255")
        if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
            raise ValueError(
                f"{where} has shape {x.shape}: it must be N x H x W or N x H x W x C, C 1 or 3"
            )
        if len(x) == 0:
            raise ValueError(f"{where} is empty: it must hold at least one image")
        if any(side < 8 or side % 4 for side in x.shape[1:3]):
            raise ValueError(
                f"{where} has images of {x.shape[1]} x {x.shape[2]}: "
                "sides must be multiples of 4, from 8 up"
            )
        if y.shape not in ((len(x),), (len(x), 1)) or y.dtype.kind not in "iu":
            raise ValueError(
                f"{name}: y_{part} is {y.dtype} of shape {y.shape}: "
                f"it must be one integer for each of the {len(x)} images"
            )
        y = y.reshape(-1).astype(np.int64)
        if num_classes is None:
            num_classes = len(np.unique(y))
            if num_classes < 2 or y.min() != 0 or y.max() != num_classes - 1:
                raise ValueError(
                    f"{name}: y_train's labels, {y.min()} .. {y.max()}, are out of range: "
                    "they must be numbered from 0, at least two, and each must occur"
                )
        elif y.min() < 0 or y.max() >= num_classes:
            raise ValueError(
                f"{name}: y_test's labels, {y.min()} .. {y.max()}, are out of range: "
                f"y_train's are 0 .. {num_classes - 1}"
            )
        x = x[..., None] if x.ndim == 3 else x
        tensors[f"x_{part}"] = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        tensors[f"y_{part}"] = torch.from_numpy(y)
    if tensors["x_train"].shape[1:] != tensors["x_test"].shape[1:]:
        raise ValueError(
            f"{name}: x_train has images of shape {x_train.shape[1:]} and x_test "
            f"of {x_test.shape[1:]}: they must be the same"
        )
    return Data(**tensors, name=name, num_classes=num_classes)
