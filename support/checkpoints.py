"""Checkpoints: tensors and plain values, written whole, read without running code."""

import hashlib
import io
import pickle
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from support import files, options, ranks
from support.options import RunSettings

# What a checkpoint holds, as `options.check` reads it; `to_resume` checks its method's settings.
SETTINGS = options.kinds(RunSettings)
SETTINGS |= {"n": options.experts, "depth": options.depth, "eps": options.radius_or_0}
SETTINGS |= dict.fromkeys(("steps", "epochs", "batch_size", "steps_per_epoch"), options.count)
SETTINGS |= {"alpha": options.not_negative, "lr": options.positive, "optimizer": ("sgd", "adam")}
SETTINGS |= {"augment": bool, "random_start": bool, "precision": str, "model": str}
SETTINGS |= {"num_classes": options.count, "class_names?": [str], "image_shape": [options.side]}
SETTINGS |= {"data_name": str, "data_checksum": int, "ground?": options.share}
SETTINGS |= {"confidence?": str, "slope?": options.not_negative, "temperature?": options.positive}
SETTINGS |= {"stage_epochs": dict}  # {stage: epochs}
EPOCH = {"stage": (1, 2), "epoch": options.count, "loss": options.finite, "lr?": options.positive}
EPOCH |= {"accuracy": options.percent, "robust?": options.percent, "device?": str}
EPOCH |= {"best": [options.percent], "answered?": [options.percent]}
EPOCH |= {"seconds?": options.not_negative}
CHECKPOINT = dict.fromkeys(("model", "optimizer", "scheduler", "rng"), dict)
CHECKPOINT |= {"method": str, "epoch": options.count_or_0}
CHECKPOINT |= {"settings": SETTINGS, "history": [EPOCH]}


def save(path: Path, checkpoint: dict | list) -> None:
    """Tensors and plain values only, and their digest. Raises SaveError; the old checkpoint
    survives."""
    if isinstance(checkpoint, dict):
        checkpoint = checkpoint | {"digest": digest(checkpoint)}
    buffer = io.BytesIO()  # torch.save to a full disk would not raise an OSError
    torch.save(checkpoint, buffer)
    files.write(path, buffer.getvalue())


def digest(checkpoint: dict) -> str:
    """SHA-256 of all that a checkpoint holds beside its digest."""
    total = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            add([str(value.dtype), *value.shape])
            total.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
        elif isinstance(value, dict | list | tuple):
            total.update(b"%d of" % len(value))
            for item in value.items() if isinstance(value, dict) else value:
                add(item)
        else:
            total.update(repr(value).encode())

    add({name: value for name, value in checkpoint.items() if name != "digest"})
    return total.hexdigest()


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
        if not isinstance(checkpoint, dict) or not set(CHECKPOINT) <= set(checkpoint):
            raise ValueError("it is not of this project; name the model.pt of a run")
        check(checkpoint)
    return checkpoint


def check(checkpoint: dict) -> None:
    """Raises an error where a checkpoint holds what no run has written, or was changed since. Those
    of older versions have no digest."""
    if checkpoint.get("digest", own := digest(checkpoint)) != own:
        raise ValueError("its digest says that it was changed after it was saved")
    options.check(checkpoint, CHECKPOINT, "content")
    settings, history = checkpoint["settings"], checkpoint["history"]
    classes, stages = settings["num_classes"], settings["stage_epochs"]
    plan = [stage for stage in sorted(stages) for _ in range(min(stages[stage], len(history)))]
    consistent = (
        set(stages) <= {1, 2}
        and min(stages.values()) > 0
        and sum(stages.values()) == settings["epochs"]
        and [entry["stage"] for entry in history] == plan[: len(history)]
        and [entry["epoch"] for entry in history] == list(range(1, len(history) + 1))
        and all((k in e) == (k in history[0]) for e in history for k in ("robust", "answered"))
        and all(len(e[k]) == settings["n"] for e in history for k in ("best", "answered") if k in e)
        and len(settings.get("class_names") or range(classes)) == classes
        and len(settings["image_shape"]) == 3
    )
    if not consistent:
        raise ValueError("its settings and its history contradict each other")
    for name, value in checkpoint["model"].items():
        if not value.isfinite().all() or ("running_var" in name and (value < 0).any()):
            raise ValueError("it holds weights that are NaN or infinite, or a variance below 0")


def to_resume(settings: RunSettings, given: set[str], stages: tuple[int, ...]) -> dict:
    """The checkpoint of the unfinished run --resume, whose folder it locks. Its settings replace
    those that were not `given`. Raises ValueError, OSError."""
    folder = Path(settings.resume)
    if not_allowed := given - {"resume"} - options.MOVABLE:
        flags = ", ".join(map(options.flag, sorted(not_allowed)))
        raise ValueError(f"--resume takes its settings from the checkpoint: leave out {flags}")
    if not folder.is_dir():
        raise FileNotFoundError(f"--resume {folder}: there is no such folder")
    if ranks.rank() == 0:
        files.lock(folder)
    checkpoint = load(folder)
    theirs, method = vars(type(settings)()) | checkpoint["settings"], settings.method
    if (holds := checkpoint["method"]) != method:
        raise ValueError(f"{folder} holds a run of {holds}, not {method}: use its script")
    if Path(folder, "metrics.json").exists():
        raise ValueError(f"the run in {folder} has finished: start another, or use infer.py")
    with files.reading(in_folder(folder), "checkpoint"):
        no_step = {} if theirs["eps"] else {"alpha": None}  # without an attack
        options.check(theirs | no_step, options.kinds(type(settings)), "settings")
        written = theirs["model"], checkpoint["epoch"], set(theirs["stage_epochs"]) <= set(stages)
        if written != (settings.model, len(checkpoint["history"]), True):
            raise ValueError(f"its model, epoch or stages are not those of {method}")
    if "digest" not in checkpoint and ranks.rank() == 0:
        print(f"{folder} has no digest, which would show a change: it is older", file=sys.stderr)
    if ranks.rank() == 0:
        for path in files.half_written(folder):
            path.unlink()
    moved = {name: getattr(settings, name) for name in given & options.MOVABLE}
    vars(settings).update(theirs | moved | {"out": str(folder), "resume": None})
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
    ours, theirs = (
        {name: (value.shape, value.dtype) for name, value in weights.items()}
        for weights in (model.state_dict(), checkpoint["model"])
    )
    if ours != theirs:
        misfit = "these weights do not fit the network in models.py"
        raise ValueError(f"{misfit}; was it changed since this run?")
    model.load_state_dict(checkpoint["model"])


def load_optimizer(optimizer: Optimizer, checkpoint: dict) -> None:
    """Momentum, or Adam's moments; the rest follows from the settings. Raises an error where they
    do not fit."""
    (group,), state = optimizer.param_groups, checkpoint["optimizer"]["state"]
    names = {"step", "exp_avg", "exp_avg_sq"} if "betas" in group else {"momentum_buffer"}
    fits = [set(values) == names for values in state.values()]
    for i, values in state.items():
        shapes = ((), group["params"][i].shape)
        fits += [v.shape in shapes and v.dtype == torch.float32 for v in values.values()]
        fits += [bool(v.isfinite().all()) for v in values.values()]
    if not fits or not all(fits):
        raise ValueError("its optimizer is not that of its settings")
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the random generators of the CPU and of the device."""
    own = {} if device.type == "cpu" else {device.type: getattr(torch, device.type).get_rng_state()}
    return {"cpu": torch.get_rng_state()} | own


def set_rng_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        getattr(torch, device.type).set_rng_state(states[device.type])
