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


def is_text(name: str) -> bool:
    """Whether a file can hold this name: not where it stands for bytes that are not UTF-8."""
    return name.encode(errors="ignore").decode() == name


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


locks: list[FileLock] = []  # that this process holds


def lock(path: Path) -> None:
    """Keeps other processes out of a run's folder, or from the name of a new file, until `unlock`
    or this process's end. Raises ValueError where another process has it, OSError."""
    own = FileLock(path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock"))
    try:
        with contextlib.suppress(NotImplementedError):  # a file system without locks
            own.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is working in {path}") from None
    locks.append(own)


def unlock(kept: int = 0) -> None:
    """Gives up all locks but the first `kept`, those of a script that has called this one."""
    while len(locks) > kept:
        own = locks.pop()
        with contextlib.suppress(OSError):  # as on Windows, where it is open
            Path(own.lock_file).unlink()
        own.release()


def half_written(folder: Path) -> set[Path]:
    """What `write` has left in a folder where a process was killed."""
    return set(folder.glob("*.[0-9]*.tmp"))


def new(folder: Path, name: str, *endings: str) -> Path:
    """Locks `name` with the first ending, or makes a folder where there are no endings. Takes
    name-2, name-3 .. where the name is taken with any ending. Raises OSError."""
    for number in itertools.count(1):
        stem = name if number == 1 else f"{name}-{number}"
        paths = [folder / f"{stem}{ending}" for ending in endings or ("",)]
        with contextlib.suppress(FileExistsError, ValueError):  # another process was faster
            if not endings:
                paths[0].mkdir(parents=True)
                return paths[0]
            lock(paths[0])
            if not any(path.exists() for path in paths):
                return paths[0]


def check_writable(folder: Path) -> None:
    """Raises ValueError where no file can be put into `folder`."""
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} cannot be written to")


def check_new(path: Path, ending: str, flag: str) -> None:
    """Locks the name of a new file. Raises ValueError unless its folder exists and can be written
    to, the name has this ending, and no file has it."""
    if path.suffix != ending or not path.parent.is_dir():
        wanted = f"the name of a new file in an existing folder, ending in {ending}"
        raise ValueError(f"{flag} {path}: give {wanted}")
    check_writable(path.parent)
    lock(path)
    if path.exists():
        raise ValueError(f"{flag} {path} is there already: give another name")


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
            temporary.unlink(missing_ok=True)  # still there only where writing failed
