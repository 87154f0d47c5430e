"""Data sets and their batches: `digits` (built in), `cifar10` and `cifar100` (downloaded), one's
own `FILE.npz`, or a folder of images (data/folder.py).

`digits.npz` holds the 1,797 handwritten 8 x 8 digits of the test set of UCI's "Optical Recognition
of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, doi 10.24432/C50P49, CC BY 4.0), the ones
that scikit-learn ships: grey levels v in 0..16 as uint8 round(v * 255 / 16), in the order
numpy.random.default_rng(0).permutation(1797); the first 1,437 train, the last 360 test.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import folder
from support import files

FOLDER = Path(__file__).parent
BUILT_IN = ("digits", "cifar10", "cifar100")
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
        return choose(len(self.x_test), count)


def choose(total: int, count: int) -> Tensor:
    """At most `count` of the numbers 0 .. total - 1, a fixed random choice: [N]."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count]


# ---------------------------------------------------------------------------------------- batches


def batches(
    x: Tensor, y: Tensor, batch_size: int, augment: bool = False, part: slice = slice(None)
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch's batches, in random order: images [B, C, H, W] in [0, 1], labels [B].

    x is uint8 [N, C, H, W], y [N]; batches are on their device. The last, partial batch is dropped.
    `part` cuts from each batch the images of one process among several. Random numbers are drawn on
    the CPU, for the whole epoch: the same on every device.
    """
    n, device = len(x), x.device
    order = torch.randperm(n).to(device)
    shifts = torch.randint(0, 9, (2, n)).to(device)
    flips = (torch.rand(n) < 0.5).to(device)
    for i in order.split(batch_size)[: max(1, n // batch_size)]:
        i = i[part]
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
    """The data set `digits`, `cifar10` or `cifar100`, or that in a FILE.npz or in a folder of class
    folders. `size` and `test_share` are for folders alone: see folder.py.

    Raises ValueError for an unknown name or a file with wrong contents, OSError for one that
    is missing or cannot be read or downloaded.
    """
    path, built_in = Path(name_or_path), name_or_path in BUILT_IN
    if path.is_dir() and not built_in:
        arrays, class_names = folder.from_folder(path, size, test_share)
        return _check(path.resolve().name, *arrays, class_names)
    if size is not None or test_share is not None:
        raise ValueError(f"--size and --test-share are for folders of images; {path} is none")
    if name_or_path.startswith("cifar") and built_in:
        return _cifar(name_or_path)
    if built_in or path.suffix == ".npz":
        return _from_npz(FOLDER / "digits.npz" if built_in else path)
    near = get_close_matches(name_or_path.lower(), BUILT_IN, 1)
    hint = "".join(f"; did you mean {name}?" for name in near)
    known = f"give {', '.join(BUILT_IN)}, a FILE.npz or a folder"
    raise ValueError(f"unknown data {name_or_path!r}: {known}{hint}")


def load_as_trained(settings: dict, moved_to: str | None = None) -> Data:
    """The data set that a model was trained on, or the one that is named in its place.

    Raises ValueError where images have another shape or number of classes. Raises it also where no
    place is named and the images differ: one file more in a folder changes which are for testing.
    """
    where = moved_to or settings["data"]
    of_folders = [settings.get("size"), settings.get("test_share")]
    dataset = load(where, *of_folders if Path(where).is_dir() else ())
    classes, shape = settings["num_classes"], tuple(settings["image_shape"])
    if (dataset.num_classes, dataset.image_shape) != (classes, shape):
        raise ValueError(
            f"{dataset.name} has {dataset.num_classes} classes of images {dataset.image_shape}; "
            f"the checkpoint was trained on {settings['data_name']}, with {classes} of {shape}"
        )
    if moved_to is None and dataset.checksum != settings.get("data_checksum", dataset.checksum):
        raise ValueError(
            f"{where} holds other images than those of the run; name it by --data to use it"
        )
    return dataset


def _cifar(name: str) -> Data:
    from torchvision.datasets import CIFAR10, CIFAR100  # here, as it takes a second

    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    try:
        train, test = (dataset(FOLDER, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError, EOFError) as error:
        raise OSError(
            f"{name} is not in {FOLDER} and cannot be downloaded ({error}): put "
            f"{name.replace('cifar', 'cifar-')}-python.tar.gz there, or use --data digits, which "
            "needs no download"
        ) from None
    return _check(name, train.data, train.targets, test.data, test.targets, train.classes)


def _from_npz(path: Path) -> Data:
    names = ("x_train", "y_train", "x_test", "y_test")
    with files.reading(path, "npz file with " + ", ".join(names)):
        files.check_archive(path)
        with np.load(path, allow_pickle=False) as file:
            if "train_images" in file:  # as MedMNIST has it
                names = ("train_images", "train_labels", "test_images", "test_labels")
            if missing := [name for name in names if name not in file]:
                raise ValueError(f"it lacks {', '.join(missing)}")
            arrays = [file[name] for name in names]
            if others := sorted(set(file) - set(names)):
                print(f"{path}: not used: {', '.join(others)}")
    taken = path.stem in BUILT_IN and path.parent != FOLDER
    return _check(path.name if taken else path.stem, *arrays)


def _check(name: str, x_train, y_train, x_test, y_test, class_names=None) -> Data:
    """The four arrays as tensors, once they fit each other. Classes without names are numbers."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(f"{name}: {message}")

    tensors = []
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        x, y = np.asarray(x), np.asarray(y)
        need(x.dtype == np.uint8, f"x_{part} is {x.dtype}: images must be uint8, 0 to 255")
        fits = x.ndim == 3 or (x.ndim == 4 and x.shape[3] in (1, 3))
        need(fits, f"x_{part} has shape {x.shape}: give N x H x W or N x H x W x C, C 1 or 3")
        need(len(x) > 0, f"x_{part} is empty: it must hold at least one image")
        fits = all(side >= 8 and side % 4 == 0 for side in x.shape[1:3])
        need(fits, f"x_{part} has sides {x.shape[1:3]}: give multiples of 4, from 8 up")
        fits = y.shape in ((len(x),), (len(x), 1)) and y.dtype.kind in "iu"
        need(fits, f"y_{part} is {y.dtype} {y.shape}: give one integer for each of {len(x)} images")
        x = x.reshape(*x.shape[:3], -1).transpose(0, 3, 1, 2)
        tensors.append(torch.from_numpy(np.ascontiguousarray(x)))
        tensors.append(torch.from_numpy(y.reshape(-1).astype(np.int64)))
    x_train, y_train, x_test, y_test = tensors
    labels, K = y_train.unique().tolist(), int(y_train.max()) + 1
    fits = len(labels) >= 2 and labels[0] >= 0
    need(fits, "y_train's labels are out of range: give 0, 1, .. of at least two classes")
    gap = next((k for k, label in enumerate(labels) if k != label), None)
    need(gap is None, f"y_train has no image of class {gap}, but one of class {K - 1}")
    fits = y_test.min() >= 0 and y_test.max() < K
    need(fits, f"y_test's labels are out of range: y_train's are 0 .. {K - 1}")
    shape, test_shape = (tuple(x.shape[1:]) for x in (x_train, x_test))
    need(shape == test_shape, f"images {shape} train, {test_shape} test: they must be the same")
    class_names = class_names or [*map(str, range(K))]
    need(all(map(files.is_text, class_names)), f"not UTF-8 among the classes {class_names!a}")
    return Data(*tensors, name, class_names)
