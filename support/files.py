"""Files and checkpoints: written whole or not at all, read without running code."""

import contextlib
import io
import itertools
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from support import options


class SaveError(OSError):
    """A file could not be written; the message says which, and what was kept."""


class FileError(ValueError):
    """A file is not what it should be; the message says which."""


@contextlib.contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Within it, whatever a reader raises becomes one line that names the file: FileNotFoundError
    where there is none, else FileError."""
    try:
        if not Path(path).is_file():
            raise IsADirectoryError if Path(path).is_dir() else FileNotFoundError
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"no {what} {path}") from None
    except PermissionError:
        raise FileError(f"{path} cannot be read: you lack the permission") from None
    except (Exception, MemoryError) as error:
        cause = str(error).strip().split("\n")[0][:100] or type(error).__name__
        raise FileError(f"{path} is damaged, or no {what}: {cause}") from None


def check_archive(path: str | Path, most: int = 2**34) -> None:
    """Raises an error where a checksum in a zip file is wrong (torch and numpy do not look at all
    of them), or where its parts would be larger than `most` bytes."""
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > most:
            raise ValueError(f"unpacked it would have over {most // 2**30} GiB")
        if (part := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {part} is wrong")


LOCK = ".lock"  # the file in a run's folder that is locked
claimed: list[Path] = []  # new files that are not written yet


def claim(path: Path) -> Path:
    """Makes an empty file, so that no other process takes its name. Raises FileExistsError where
    there is one, PermissionError."""
    open(path, "x").close()
    claimed.append(path)
    return path


def give_up_claims() -> None:
    """Removes the files that were claimed and never written."""
    while claimed:
        with contextlib.suppress(OSError):
            if (path := claimed.pop()).stat().st_size == 0:
                path.unlink()


def lock(folder: str | Path) -> FileLock:
    """Keeps other processes out of a run's folder until its release, or until this process ends.
    Raises ValueError where another has it."""
    held = FileLock(Path(folder, LOCK))
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is working in {folder}") from None
    return held


def make_folder(path: Path) -> Path:
    """Raises FileExistsError where there is one, OSError."""
    path.mkdir(parents=True)
    return path


def new(folder: Path, name: str, *endings: str, make: Callable[[Path], Path] = claim) -> Path:
    """name in `folder`, or name-2, name-3 .. where that is taken with any of the endings, made with
    the first of them. Raises OSError."""
    for number in itertools.count(1):
        stem = name if number == 1 else f"{name}-{number}"
        paths = [folder / f"{stem}{ending}" for ending in endings or ("",)]
        with contextlib.suppress(FileExistsError):  # another process was faster
            if not any(path.exists() for path in paths):
                return make(paths[0])


def check_writable(folder: Path) -> None:
    """Raises ValueError where no file can be put into `folder`."""
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} cannot be written to")


def check_new(path: Path, ending: str, flag: str) -> None:
    """Claims it. Raises ValueError unless `path` names a new file with this ending in an existing
    folder."""
    if path.suffix != ending or not path.parent.is_dir():
        what = f"the name of a new file in an existing folder, ending in {ending}"
        raise ValueError(f"{flag} {path}: give {what}")
    try:
        claim(path)
    except FileExistsError:
        raise ValueError(f"{flag} {path} is there already: give another name") from None


def write(path: Path, content: bytes) -> None:
    """Puts a file in place whole or not at all. Raises SaveError; the old file survives."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        what = f"cannot save {path} ({error.strerror}): what stood there before is kept"
        raise SaveError(what) from None


def save_checkpoint(path: Path, checkpoint: dict | list) -> None:
    """Tensors and plain values only. Raises SaveError; the checkpoint before survives."""
    buffer = io.BytesIO()  # torch.save to a full disk would not raise an OSError
    torch.save(checkpoint, buffer)
    write(path, buffer.getvalue())


def in_folder(path: str | Path) -> Path:
    """A run's checkpoint, where its folder is named."""
    return Path(path, "model.pt") if Path(path).is_dir() else Path(path)


def load_checkpoint(path: str | Path) -> dict:
    """A checkpoint's dictionary on the CPU, {method, settings, model, ...}; runs no code.

    `path` is the file or its run's folder. Raises FileNotFoundError or ValueError.
    """
    path = in_folder(path)
    with reading(path, "checkpoint"):
        check_archive(path)
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
