"""A run's folder and checkpoints: written whole or not at all, read without running code."""

import contextlib
import io
import os
import pickle
import shlex
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import UNREADABLE, Data
from support import ranks
from support.options import flag

MOVABLE = {"data", "device", "precision", "compile"}  # options that may stand beside --resume


class SaveError(OSError):
    """A file could not be written; the message says which, and what was kept."""


def make_folder(settings: Namespace) -> str:
    """A new folder for the run: --out, or the next free name. Raises ValueError, OSError."""
    if settings.out is not None:
        folder = Path(settings.out)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(f"--out {folder} is taken: name a new or empty folder, or --resume it")
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)
    method = "" if settings.method.startswith("soe") else f"-{settings.method}"
    name = f"{settings.data_name}{method}-eps{settings.eps:g}-n{settings.n}-seed{settings.seed}"
    while True:
        folder = first_free(Path("runs"), name)
        try:
            folder.mkdir(parents=True)
            return str(folder)
        except FileExistsError:  # another run was faster
            continue


def first_free(folder: Path, name: str, *endings: str) -> Path:
    """name in `folder`, or name-2, name-3 .. where that is taken with any of the endings; the path
    with the first of them."""
    endings, stem, number = endings or ("",), name, 1
    while any((folder / f"{stem}{ending}").exists() for ending in endings):
        number += 1
        stem = f"{name}-{number}"
    return folder / f"{stem}{endings[0]}"


def check_writable(folder: Path) -> None:
    """Raises ValueError where no file can be put into `folder`."""
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} cannot be written to: copy the checkpoint to another folder")


def check_new_png(path: Path, flag: str) -> None:
    """Raises ValueError unless `path` names a new .png file in an existing folder."""
    if path.suffix != ".png" or path.exists() or not path.parent.is_dir():
        what = "the name of a new file in an existing folder, ending in .png"
        raise ValueError(f"{flag} {path}: give {what}")


def write(path: Path, content: bytes) -> None:
    """Puts a file in place whole or not at all. Raises SaveError; the old file survives."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise SaveError(
            f"cannot save {path} ({error.strerror}): what stood there before is kept"
        ) from None


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Tensors and plain values only. Raises SaveError; the checkpoint before survives."""
    buffer = io.BytesIO()  # torch.save to a full disk would not raise an OSError
    torch.save(checkpoint, buffer)
    write(path, buffer.getvalue())


def load_checkpoint(path: str | Path) -> dict:
    """A checkpoint's dictionary on the CPU, {method, settings, model, ...}; runs no code.

    `path` is the file or its run's folder. Raises FileNotFoundError or ValueError.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.pt"
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: name the model.pt of a run")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no checkpoint, or was cut short: name the model.pt of a run")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{path} holds code instead of weights and was not loaded") from None
    except (RuntimeError, EOFError, KeyError, OSError):
        raise ValueError(
            f"{path} is damaged, or no checkpoint: name the model.pt of a run"
        ) from None
    keys = "method settings model optimizer scheduler epoch history rng".split()
    if not isinstance(checkpoint, dict) or not set(keys) <= set(checkpoint):
        raise ValueError(f"{path} is no checkpoint of this project: name the model.pt of a run")
    return checkpoint


def checkpoint_to_resume(folder: str, method: str, given: set[str]) -> dict:
    """The checkpoint of an unfinished run of `method`. Raises ValueError, FileNotFoundError."""
    if not_allowed := given - MOVABLE:
        flags = ", ".join(map(flag, sorted(not_allowed)))
        raise ValueError(f"--resume takes its settings from the checkpoint: leave out {flags}")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"--resume {folder}: there is no such folder")
    checkpoint = load_checkpoint(folder)
    if checkpoint["method"] != method:
        theirs = checkpoint["method"]
        raise ValueError(f"{folder} holds a run of {theirs}, not {method}: use that script")
    if (Path(folder) / "metrics.json").exists():
        raise ValueError(
            f"the run in {folder} has finished: start another, or show it with infer.py"
        )
    return checkpoint


def stage1_checkpoint(settings: Namespace) -> dict:
    """The checkpoint --submodels. Raises ValueError where it is not the end of a stage 1, or n,
    depth, data or score are others."""
    path = settings.submodels
    checkpoint = load_checkpoint(path)
    theirs, stages = checkpoint["settings"], [entry["stage"] for entry in checkpoint["history"]]
    if checkpoint["method"] not in ("soe", "soe-stage1"):
        raise ValueError(f"--submodels {path} holds {checkpoint['method']}, not stage 1 of SoE")
    for name in ("n", "depth", "image_shape", "data_checksum", "confidence"):
        if theirs.get(name) != getattr(settings, name):
            name = "data_name" if name == "data_checksum" else name
            what = f"{name.replace('_', ' ')} {theirs.get(name)}"
            raise ValueError(f"--submodels {path} has {what}, not {getattr(settings, name)}")
    if 2 in stages:
        raise ValueError(f"--submodels {path} has been through stage 2: name a submodels.pt")
    if len(stages) < theirs["stage_epochs"][1]:
        raise ValueError(f"--submodels {path} has not finished stage 1: --resume its run first")
    return checkpoint


def command(prog: str, *arguments: str) -> str:
    """`python prog arguments` as one can type it here, with the Python that runs; under torchrun
    with as many processes."""
    if ranks.count() > 1:
        here = os.environ.get("LOCAL_WORLD_SIZE", "1")
        prog = f"-m torch.distributed.run --nproc-per-node {here} -- {prog}"
    python, here = Path(sys.executable), Path.cwd()
    python = python.relative_to(here) if python.is_relative_to(here) else python
    words = [str(python), *prog.split(), *arguments]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def load_transfer(
    path: str, dataset: Data, eps: list[float], count: int | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """A file of experiments/transfer_set.py: numbers of test images [N], and {"transfer3" and
    "transfer30": [V, N, C, H, W]}, cut to `count` images.

    Raises FileNotFoundError; ValueError where it is damaged, or of other data, shape or eps.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no transfer file {path}: experiments/transfer_set.py makes one")
    keys = ("images", "labels", "indices", "checksum", "data", "eps", "variants", "in_3")
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels, indices, checksum, data_name, made_at, _, in_3 = map(file.get, keys)
            made_at, indices = float(made_at), torch.from_numpy(indices)
            images, in_3 = torch.from_numpy(images), torch.from_numpy(in_3)
            if images.ndim != 5 or len(indices) != images.shape[1] or len(in_3) != len(images):
                raise ValueError
    except (*UNREADABLE, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged or no transfer file: make it anew") from None
    if int(checksum) != dataset.checksum or tuple(images.shape[2:]) != dataset.image_shape:
        raise ValueError(f"{path} was made for {data_name}, not for {dataset.name}: make another")
    if any(abs(e - made_at) > 1e-9 for e in eps):
        raise ValueError(f"{path} was made at eps {made_at:g}: give --eps {made_at:g}")
    if count is not None and count > len(indices):
        raise ValueError(f"--images is {count}: {path} has {len(indices)} images")
    images, indices = images[:, :count], indices[:count]
    variants = {"transfer3": images[in_3]}
    return indices, variants | ({"transfer30": images} if len(images) == 30 else {})


def rng_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = getattr(torch, device.type).get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:
        getattr(torch, device.type).set_rng_state(state[device.type])
