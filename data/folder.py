"""A data set from folders of images, a folder for each class."""

from pathlib import Path

import numpy as np
from torchvision.datasets import ImageFolder

from data.images import fit, open_image

SIZE, TEST_SHARE = 32, 0.2  # the defaults


def from_folder(
    path: Path, size: int | None, test_share: float | None
) -> tuple[list[np.ndarray], list[str]]:
    """x_train uint8 [N, H, W, C], y_train [N], x_test, y_test, and the classes' names.

    FOLDER/train/CLASS/*.jpg and FOLDER/test/CLASS/*.jpg; or FOLDER/CLASS/*.jpg, of which a fixed
    random part, `test_share` of each class, is for testing. The largest square in an image's middle
    is scaled to `size`; C is 1 where all images are grey, else 3. Raises ValueError for unreadable
    files, fewer than two classes, other classes in test, and a wrong size.
    """
    size = SIZE if size is None else size
    if size < 8 or size % 4:
        raise ValueError(f"--size is {size}: it must be a multiple of 4, from 8 up")
    if (path / "train").is_dir() != (path / "test").is_dir():
        raise ValueError(f"{path} has only one of the folders train and test: it needs both")
    if not (path / "train").is_dir():
        files, y, classes = _files(path)
        in_test = _for_testing(y, TEST_SHARE if test_share is None else test_share)
        x = _images(path, files, size)
        return [x[~in_test], y[~in_test], x[in_test], y[in_test]], classes
    if test_share is not None:
        raise ValueError(f"--test-share is given, but {path} has its own folder test")
    files, y_train, classes = _files(path / "train")
    test_files, y_test, test_classes = _files(path / "test")
    if strange := sorted(set(test_classes) - set(classes)):
        raise ValueError(f"{path / 'test'} has classes that train lacks: {', '.join(strange)}")
    y_test = np.array([classes.index(test_classes[label]) for label in y_test])
    x = _images(path, files + test_files, size)
    return [x[: len(files)], y_train, x[len(files) :], y_test], classes


def _files(path: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """Its image files, their labels [N], and the names of the classes, in alphabetical order."""
    try:
        dataset = ImageFolder(str(path))
    except FileNotFoundError as error:  # no class, or one without an image
        raise ValueError(f"{path}: {str(error).split(' Supported ')[0]}") from None
    if len(dataset.classes) < 2:
        raise ValueError(f"{path} has one class, {dataset.classes[0]}: it must have two or more")
    files, labels = zip(*dataset.samples)
    return list(files), np.array(labels), dataset.classes


def _for_testing(y: np.ndarray, test_share: float) -> np.ndarray:
    """Which images are for testing, bool [N]: of each class at least one, and not all."""
    rng, in_test = np.random.default_rng(0), np.zeros(len(y), bool)
    for k in range(y.max() + 1):
        members = rng.permutation(np.flatnonzero(y == k))
        if len(members) < 2:
            raise ValueError("a class has one image: it needs two, to train and to test")
        count = max(1, round(test_share * len(members)))
        in_test[members[: min(len(members) - 1, count)]] = True
    return in_test


def _images(path: Path, files: list[str], size: int) -> np.ndarray:
    """uint8 [N, H, W, C]. Raises ValueError where some cannot be read."""
    images, unreadable, grey, cropped = [], [], True, 0
    for file in files:
        try:
            image, _ = open_image(file)
            grey &= image.mode in ("1", "L")
            pixels, changes = fit(image, "RGB", size, size)
            images.append(pixels)
            cropped += any("cropped" in change for change in changes)
        except (ValueError, OSError):
            unreadable.append(file)
    if unreadable:
        failed = f"{len(unreadable)} of the {len(files)} files cannot be read as images"
        raise ValueError(f"{path}: {failed}, first {unreadable[0]}: mend or remove them")
    if cropped:
        print(f"{path}: of {cropped} of the {len(files)} images only the square middle is used")
    x = np.stack(images)
    return x[..., :1] if grey else x
