"""A data set from folders of images, a folder for each class."""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from data.images import fit, open_image

SIZE, TEST_SHARE = 32, 0.2  # the defaults
IGNORED = r"[/\\](\.|__MACOSX)"  # .DS_Store and .ipynb_checkpoints, too
Classes = dict[str, list[Path]]  # {name: its image files}


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
    parts = {part.name.lower(): part for part in _visible(path) if part.is_dir()}
    if ("train" in parts) != ("test" in parts):
        raise ValueError(f"{path} has only one of the folders train and test: it needs both")
    if "train" not in parts:
        train, test = _split(_classes(path), TEST_SHARE if test_share is None else test_share)
    elif test_share is not None:
        raise ValueError(f"--test-share is given, but {path} has its own folder test")
    else:
        train, test = _classes(parts["train"]), _classes(parts["test"])
        if strange := sorted(set(test) - set(train)):
            raise ValueError(f"{parts['test']} has classes that train lacks: {', '.join(strange)}")
    of_class = [(list(train).index(name), part[name]) for part in (train, test) for name in part]
    y = np.array([label for label, files in of_class for _ in files])
    x = _images(path, [file for _, files in of_class for file in files], size)
    N = sum(map(len, train.values()))
    return [x[:N], y[:N], x[N:], y[N:]], list(train)


def _visible(folder: Path) -> list[Path]:
    """What it holds, in alphabetical order, but for what programs leave there."""
    paths = [path for path in folder.iterdir() if not re.search(IGNORED, f"/{path.name}")]
    return sorted(paths, key=lambda path: path.name)


def _classes(path: Path) -> Classes:
    """The folders in `path`. Raises ValueError where one has no image, or folders of its own."""
    from torchvision.datasets.folder import IMG_EXTENSIONS  # here, as it takes a second

    classes = {}
    for folder in filter(Path.is_dir, _visible(path)):
        if any(map(Path.is_dir, _visible(folder))):
            raise ValueError(f"{folder} is no class, as it holds folders: see support/README.md")
        images = [file for file in _visible(folder) if file.suffix.lower() in IMG_EXTENSIONS]
        if not images:
            raise ValueError(f"{folder} is no class, as it holds no image")
        classes[folder.name] = images
    if len(classes) < 2:
        names = ", ".join(classes) or "(none)"
        raise ValueError(f"{path} has the classes {names}: it must have two or more")
    return classes


def _split(classes: Classes, test_share: float) -> tuple[Classes, Classes]:
    """Of each class some images for training and some for testing: of both at least one."""
    rng, train, test = np.random.default_rng(0), {}, {}
    for name, files in classes.items():
        if len(files) < 2:
            raise ValueError(f"class {name} has one image: it needs two, to train and to test")
        count = min(len(files) - 1, max(1, round(test_share * len(files))))
        chosen = set(rng.permutation(len(files))[:count])
        train[name] = [file for i, file in enumerate(files) if i not in chosen]
        test[name] = [file for i, file in enumerate(files) if i in chosen]
    return train, test


def _images(path: Path, files: list[Path], size: int) -> np.ndarray:
    """uint8 [N, H, W, C]; says which files of the folder `path` are left out. Raises ValueError
    where some cannot be read."""
    images, errors, grey, cropped, known = [], [], True, 0, set(files)
    for file in files:
        try:
            image, _ = open_image(file)
        except (ValueError, OSError) as error:
            errors.append(error)
            continue
        grey &= image.mode in ("1", "L")
        pixels, changes = fit(image, "RGB", size, size)
        images.append(pixels)
        cropped += any("cropped" in change for change in changes)
    if errors:
        failed = f"{len(errors)} of the {len(files)} files cannot be read as images"
        raise ValueError(f"{path}: {failed}: mend or remove them; first, {errors[0]}")
    if cropped:
        print(f"{path}: of {cropped} of the {len(files)} images only the square middle is used")
    visible = (p for p in path.rglob("*") if not re.search(IGNORED, f"/{p.relative_to(path)}"))
    endings = Counter(p.suffix or "no ending" for p in visible if p.is_file() and p not in known)
    if endings:
        kinds = ", ".join(f"{ending} {endings[ending]}" for ending in sorted(endings))
        print(f"{path}: {endings.total()} files are not used: {kinds}")
    x = np.stack(images)
    return x[..., :1] if grey else x
