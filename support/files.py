"""Files: written whole or not at all; an error in reading one is a line that names it."""

import contextlib
import itertools
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout


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
