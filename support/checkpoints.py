"""Checkpoints: tensors and plain values, written whole, read without running code."""

import io
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from support import files, options


def save(path: Path, checkpoint: dict | list) -> None:
    """Tensors and plain values only. Raises SaveError; the checkpoint before survives."""
    buffer = io.BytesIO()  # torch.save to a full disk would not raise an OSError
    torch.save(checkpoint, buffer)
    files.write(path, buffer.getvalue())


def in_folder(path: str | Path) -> Path:
    """A run's checkpoint, where its folder is named."""
    return Path(path, "model.pt") if Path(path).is_dir() else Path(path)


def load(path: str | Path) -> dict:
    """A checkpoint's dictionary on the CPU, {method, settings, model, ...}; runs no code.

    `path` is the file or its run's folder. Raises FileNotFoundError or ValueError.
    """
    path = in_folder(path)
    with files.reading(path, "checkpoint"):
        files.check_archive(path)
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise ValueError("it holds code instead of weights, and was not loaded") from None
        keys = "method settings model optimizer scheduler epoch history rng".split()
        if not isinstance(checkpoint, dict) or not set(keys) <= set(checkpoint):
            raise ValueError("it is not of this project; name the model.pt of a run")
        settings = checkpoint["settings"]
        options.training_parser("", "", options.radius_or_0).check_values(settings)
        sizes = [settings["num_classes"], *settings["image_shape"]]
        if len(sizes) != 4 or not all(type(size) is int and 0 < size <= 10_000 for size in sizes):
            raise ValueError(f"its settings speak of {sizes[0]} classes of images {sizes[1:]}")
        if not all(value.isfinite().all() for value in checkpoint["model"].values()):
            raise ValueError("it holds weights that are NaN or infinite")
    return checkpoint


def load_weights(model: nn.Module, checkpoint: dict) -> None:
    """Raises ValueError where they do not fit."""
    try:
        model.load_state_dict(checkpoint["model"])
    except (TypeError, AttributeError, RuntimeError):
        what = "these weights do not fit the network in models.py"
        raise ValueError(f"{what}; was it changed since this run?") from None


def rng_state(device: torch.device) -> dict[str, Tensor]:
    own = {} if device.type == "cpu" else {device.type: getattr(torch, device.type).get_rng_state()}
    return {"cpu": torch.get_rng_state()} | own


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:
        getattr(torch, device.type).set_rng_state(state[device.type])
