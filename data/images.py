"""Images to show to a model: files of one's own, made to fit, and test images by number."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import data


def read_images(
    words: list[str], settings: dict, moved_to: str | None
) -> tuple[list[str], Tensor, list[int | None]]:
    """Names, images [N, C, H, W] in [0, 1] and labels (None: unknown) of image files and of numbers
    of test images, for a model of these settings; prints what had to be changed in a file.

    Raises ValueError or OSError.
    """
    dataset, names, images, labels = None, [], [], []
    for word in words:
        if Path(word).exists() or not word.isdecimal():
            image, changes = read_image(word, settings["image_shape"])
            if changes:
                print(f"{word}: {', '.join(changes)}")
            name, label = word, None
        else:
            dataset = dataset or data.load_as_trained(settings, moved_to)
            if int(word) >= len(dataset.x_test):
                last = len(dataset.x_test) - 1
                raise ValueError(f"no test image {word}: {dataset.name} has 0 .. {last}")
            image, label = dataset.x_test[int(word)].float() / 255, int(dataset.y_test[int(word)])
            name = f"test image {word}, label {label}"
        names.append(name)
        images.append(image)
        labels.append(label)
    return names, torch.stack(images), labels


def read_image(path: str, image_shape: list[int]) -> tuple[Tensor, list[str]]:
    """An image file as [C, H, W] in [0, 1], and what had to be changed to make it fit.

    Raises FileNotFoundError, or ValueError for what is no image, or has over 8 bits a channel.
    """
    channels, height, width = image_shape
    try:
        with Image.open(path) as file:
            image = file.copy()
    except FileNotFoundError:
        raise FileNotFoundError(f"no image file {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ValueError(f"cannot read {path} as an image: give a PNG or JPEG file") from None
    if image.mode[0] in "IF":
        raise ValueError(f"{path} has more than 8 bits a channel: save it with 8")
    mode, changes = "L" if channels == 1 else "RGB", []
    if image.has_transparency_data:
        changes.append("put on white where transparent")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != mode:
        changes.append(f"converted from {image.mode} to {mode}")
        image = image.convert(mode)
    if image.size != (width, height):
        changes.append(f"resized from {image.width} x {image.height} to {width} x {height}")
        image = image.resize((width, height), Image.Resampling.BOX)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, channels).permute(2, 0, 1).float() / 255, changes
