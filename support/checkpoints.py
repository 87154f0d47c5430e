"""Checkpoints: tensors and plain values, written whole, read without running code."""

import io
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from support import files, options
from support.options import RunSettings

# Every checkpoint has settings of these kinds. `to_resume` checks those of the method as well.
KINDS = {"n": options.experts, "depth": options.depth, "eps": options.radius_or_0}
KINDS |= dict.fromkeys(("steps", "epochs", "batch_size"), options.count)
KINDS |= {"alpha": options.positive, "lr": options.positive, "optimizer": ("sgd", "adam")}
KINDS |= {"augment": bool, "random_start": bool} | options.kinds(RunSettings)


def save(path: Path, checkpoint: dict | list) -> None:
    """Tensors and plain values only. Raises SaveError; the old checkpoint survives."""
    buffer = io.BytesIO()  # torch.save to a full disk would not raise an OSError
    torch.save(checkpoint, buffer)
    files.write(path, buffer.getvalue())


def in_folder(path: str | Path) -> Path:
    """The checkpoint `path`, or that of the run in the folder `path`."""
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
        options.check_values(settings, KINDS)
        sizes = [settings["num_classes"], *settings["image_shape"]]
        if len(sizes) != 4 or not all(type(size) is int and 0 < size <= 10_000 for size in sizes):
            raise ValueError(f"its settings name {sizes[0]} classes of images {sizes[1:]}")
        if not all(value.isfinite().all() for value in checkpoint["model"].values()):
            raise ValueError("it holds weights that are NaN or infinite")
    return checkpoint


def to_resume(settings: RunSettings, given: set[str], stages: tuple[int, ...]) -> dict:
    """The checkpoint of the unfinished run --resume. Its settings replace those that were not
    `given`. Raises ValueError, FileNotFoundError."""
    folder = settings.resume
    if not_allowed := given - {"resume"} - options.MOVABLE:
        flags = ", ".join(f"--{name.strip('_').replace('_', '-')}" for name in sorted(not_allowed))
        raise ValueError(f"--resume takes its settings from the checkpoint: leave out {flags}")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"--resume {folder}: there is no such folder")
    checkpoint = load(folder)
    if (method := checkpoint["method"]) != settings.method:
        raise ValueError(f"{folder} holds a run of {method}, not {settings.method}: use its script")
    if Path(folder, "metrics.json").exists():
        raise ValueError(f"the run in {folder} has finished: start another, or use infer.py")
    with files.reading(in_folder(folder), "checkpoint"):
        options.check_values(checkpoint["settings"], options.kinds(type(settings)))
        past_stages = [entry["stage"] for entry in checkpoint["history"]]
        if past_stages != sorted(past_stages) or not set(past_stages) <= set(stages):
            raise ValueError("its history is not that of such a run")
    moved = {name: getattr(settings, name) for name in given & options.MOVABLE}
    vars(settings).update(checkpoint["settings"] | moved | {"out": folder, "resume": None})
    return checkpoint


def end_of_stage1(settings: RunSettings) -> dict:
    """The checkpoint --submodels. Raises ValueError unless it is the end of a stage 1 with the same
    n, depth, eps, images and score."""
    checkpoint, source = load(settings.submodels), f"--submodels {settings.submodels}"
    theirs, stages = checkpoint["settings"], [entry["stage"] for entry in checkpoint["history"]]
    if checkpoint["method"] not in ("soe", "soe-stage1"):
        raise ValueError(f"{source} holds {checkpoint['method']}, not stage 1 of SoE")
    for name in ("n", "depth", "eps", "image_shape", "confidence"):
        value, wanted = theirs.get(name), getattr(settings, name)
        if value != wanted:
            raise ValueError(f"{source} has {name.replace('_', ' ')} {value}, not {wanted}")
    if theirs["data_checksum"] != settings.data_checksum:
        raise ValueError(f"{source} has seen other images than {settings.data_name}'s")
    if 2 in stages:
        raise ValueError(f"{source} has been through stage 2: name a submodels.pt")
    if len(stages) < theirs["stage_epochs"].get(1, 1):
        raise ValueError(f"{source} has not finished stage 1: --resume its run first")
    return checkpoint


def load_weights(model: nn.Module, checkpoint: dict) -> None:
    """Raises ValueError where they do not fit."""
    try:
        model.load_state_dict(checkpoint["model"])
    except (TypeError, AttributeError, RuntimeError):
        misfit = "these weights do not fit the network in models.py"
        raise ValueError(f"{misfit}; was it changed since this run?") from None


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the random generators of the CPU and of the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = getattr(torch, device.type).get_rng_state()
    return states


def set_rng_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        getattr(torch, device.type).set_rng_state(states[device.type])
