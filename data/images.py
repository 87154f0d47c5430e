"""Images to show to a model: files of one's own, made to fit, and test images by number."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

import data
from support import files

ORIENTATION = ExifTags.Base.Orientation


def read_images(
    words: list[str], settings: dict, moved_to: str | None
) -> tuple[list[str], Tensor, list[int | None]]:
    """Names, images [N, C, H, W] in [0, 1] and labels (None: unknown), to fit a model's settings.

    A word is an image file or the number of a test image. Prints the changes to a file's image.
    Raises ValueError or OSError.
    """
    dataset, names, images, labels = None, [], [], []
    for word in words:
        if Path(word).is_file() or not word.isdecimal():
            image, changes = read_image(word, settings["image_shape"], settings.get("ground"))
            if changes:
                print(f"{word}: {', '.join(changes)}")
            name, label = word, None
        else:
            dataset, i = dataset or data.load_as_trained(settings, moved_to), int(word)
            if i >= len(dataset.x_test):
                numbers = f"0 .. {len(dataset.x_test) - 1}"
                raise ValueError(f"no test image {word}: {dataset.name} has {numbers}")
            image, label = dataset.x_test[i].float() / 255, int(dataset.y_test[i])
            name = f"test image {word}, label {dataset.class_names[label]}"
        names.append(name)
        images.append(image)
        labels.append(label)
    return names, torch.stack(images), labels


def open_image(path: str | Path) -> tuple[Image.Image, list[str]]:
    """An image file, turned as its camera says and without transparency; and a list of the changes.

    Raises FileNotFoundError; ValueError for a file that is no image, or has over 8 bits a channel.
    """
    with files.reading(path, "PNG or JPEG file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an image is large
        with Image.open(path) as file:
            image, turned = ImageOps.exif_transpose(file), file.getexif().get(ORIENTATION, 1) != 1
    if image.mode[0] in "IF":
        raise ValueError(f"{path} has more than 8 bits a channel: save it with 8")
    changes = ["turned upright"] if turned else []
    if image.has_transparency_data:
        changes.append("put on white where transparent")
        mode, image = "L" if image.mode in ("LA", "La") else "RGB", image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(mode)
    return image, changes


def fit(image: Image.Image, mode: str, width: int, height: int) -> tuple[np.ndarray, list[str]]:
    """uint8 [H, W] or [H, W, 3], and a list of the changes. `mode` is L or RGB. A side that is too
    long is cut, so that nothing is squeezed."""
    changes = []
    if image.mode != mode:
        changes.append(f"converted from {image.mode} to {mode}")
        image = image.convert(mode)
    scale = min(image.width / width, image.height / height)
    w, h = max(1, round(scale * width)), max(1, round(scale * height))
    if (w, h) != image.size:
        changes.append(f"cropped from {image.width} x {image.height} to {w} x {h}, the middle")
        left, top = (image.width - w) // 2, (image.height - h) // 2
        image = image.crop((left, top, left + w, top + h))
    if image.size != (width, height):
        changes.append(f"resized from {image.width} x {image.height} to {width} x {height}")
        image = image.resize((width, height), Image.Resampling.BOX)
    return np.array(image), changes


def read_image(
    path: str, image_shape: list[int], ground: float | None = None
) -> tuple[Tensor, list[str]]:
    """An image file as [C, H, W] in [0, 1], and a list of changes and warnings.

    `ground` is the `border` of the training images. Raises as `open_image`.
    """
    channels, height, width = image_shape
    image, changes = open_image(path)
    pixels, more = fit(image, "L" if channels == 1 else "RGB", width, height)
    x = torch.from_numpy(pixels).view(height, width, channels).permute(2, 0, 1).float() / 255
    if ground is not None and abs(border(x) - ground) > 0.5 and abs(ground - 0.5) > 0.3:
        theirs, its = ("dark", "light") if ground < 0.5 else ("light", "dark")
        more.append(f"looks inverted: the training images' ground is {theirs}, this one's {its}")
    return x, changes + more


def border(x: Tensor) -> float:
    """The mean of the outermost pixels of images [..., H, W]."""
    inner = x[..., 1:-1, 1:-1]
    outer = x.sum() - inner.sum()
    return float(outer / (x.numel() - inner.numel()))
