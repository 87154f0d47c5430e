"""Files: written whole or not at all; an error in reading one is a line that names it."""

import contextlib
import itertools
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


class SaveError(OSError):
    """A file could not be written; the message says which, and what was kept."""


class FileError(ValueError):
    """A file is not what it should be; the message says which."""


@contextlib.contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """Turns whatever a reader raises within it into one line that names the file: FileNotFoundError
    where there is no file, else FileError."""
    try:
        if not Path(path).is_file():
            raise FileNotFoundError
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"no {kind} {path}") from None
    except PermissionError:
        raise FileError(f"{path} cannot be read: you lack the permission") from None
    except (Exception, MemoryError) as error:
        cause = str(error).strip().split("\n")[0][:100] or type(error).__name__
        raise FileError(f"{path} is damaged, or no {kind}: {cause}") from None


def check_archive(path: str | Path) -> None:
    """Raises an error where a checksum in a zip file is wrong, which torch and numpy do not always
    notice, or where its parts would have over 16 GiB."""
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > 2**34:
            raise ValueError("unpacked it would have over 16 GiB")
        if (part := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {part} is wrong")


def lock(folder: str | Path) -> FileLock:
    """Keeps other processes out of a run's folder until it is released, or this process ends.
    Raises ValueError where another process has it."""
    folder_lock = FileLock(Path(folder, ".lock"))
    try:
        folder_lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is working in {folder}") from None
    return folder_lock


claimed: list[Path] = []  # new files that are not written yet


def claim(path: Path) -> Path:
    """Makes an empty file, so that no other process takes its name. Raises OSError."""
    open(path, "x").close()
    claimed.append(path)
    return path


def give_up_claims() -> None:
    """Removes the files that were claimed and never written."""
    while claimed:
        with contextlib.suppress(OSError):
            if (path := claimed.pop()).stat().st_size == 0:
                path.unlink()


def new(folder: Path, name: str, *endings: str) -> Path:
    """Claims `name` with the first ending, or makes a folder where there are no endings. Takes
    name-2, name-3 .. where the name is taken with any ending. Raises OSError."""
    for number in itertools.count(1):
        stem = name if number == 1 else f"{name}-{number}"
        paths = [folder / f"{stem}{ending}" for ending in endings or ("",)]
        with contextlib.suppress(FileExistsError):  # another process was faster
            if not any(path.exists() for path in paths):
                if endings:
                    return claim(paths[0])
                paths[0].mkdir(parents=True)
                return paths[0]


def check_writable(folder: Path) -> None:
    """Raises ValueError where no file can be put into `folder`."""
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} cannot be written to")


def check_new(path: Path, ending: str, flag: str) -> None:
    """Claims a new file. Raises ValueError unless its folder exists, its name has this ending, and
    no file has that name."""
    if path.suffix != ending or not path.parent.is_dir():
        wanted = f"the name of a new file in an existing folder, ending in {ending}"
        raise ValueError(f"{flag} {path}: give {wanted}")
    if path.exists():
        raise ValueError(f"{flag} {path} is there already: give another name")
    claim(path)


def write(path: Path, content: bytes) -> None:
    """Puts a file in place whole or not at all. Raises SaveError; the old file survives."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kept = "what stood there before is kept"
        raise SaveError(f"cannot save {path} ({error.strerror}): {kept}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # still there only where writing failed
