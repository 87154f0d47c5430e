"""Where a student's code runs: another process, which sees a copy of the project without what the
exercise asks for, and which has ended, with all that it started, when `run` returns.

On a student's own machine that is all. A graded run, as root on Linux, gives it a user of its own,
who can neither read the judge's files nor signal its process, limits on memory, processes, files
and time (`child.confine`), and, where `unshare` may make them, process ids and a network of its
own. What that user leaves in the folders for temporary files is removed.
"""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from exercises import KEY

UID = 64000 + os.getpid() % 1000  # of students' code in a graded run, and of no other process
MOST = 2**25  # bytes of answers that are read
APART = "unshare --pid --fork --kill-child --mount-proc --net --ipc".split()
AS_STUDENT = {"user": UID, "group": UID, "extra_groups": [], "cwd": "/"}
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def allowed(access: str, path: Path) -> bool:
    """May the user of a graded run read ("R_OK"), change ("W_OK") or enter ("X_OK") it?"""
    code = f"import os, sys; sys.exit(not os.access(sys.argv[1], os.{access}))"
    command = [sys.executable, "-IS", "-c", code, str(path)]
    return subprocess.run(command, **AS_STUDENT).returncode == 0


def check_graded(read: list[Path], write: list[Path]) -> None:
    """Raises ValueError where a graded run would protect nothing: students' code must not be able
    to read or write these folders."""
    os.umask(0o022)
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise ValueError("--graded needs root, on Linux: students' code gets a user of its own")
    try:
        subprocess.run([sys.executable, "-c", "import torch"], **AS_STUDENT, **QUIET, check=True)
    except (OSError, subprocess.SubprocessError):
        raise ValueError(f"every user must be able to run {sys.executable} with torch") from None
    if not allowed("X_OK", Path(tempfile.gettempdir())):
        raise ValueError(f"every user must be able to enter {tempfile.gettempdir()}: set TMPDIR")
    for path in read:
        if allowed("R_OK", path):
            raise ValueError(f"students' code could read {path}: chmod 700 {path}")
    for path in write:
        if allowed("W_OK", path):
            raise ValueError(f"students' code could write into {path}: chmod 755 {path}")


@functools.cache
def namespaces() -> list[str]:
    """The command that gives a process its own process ids and network, where it is to be had."""
    tried = shutil.which("unshare") and subprocess.run([*APART, "true"], capture_output=True)
    return APART if tried and tried.returncode == 0 else []


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder, which others may read."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def run(words: list[object], tree: Path, seconds: float, graded: bool) -> tuple[bytes, str]:
    """What `python -m words[0] UID SECONDS words[1:]` writes to its standard output in this copy
    of the project, and why it ended."""
    module, *rest = words
    command = [sys.executable, "-m", module, UID if graded else 0, int(seconds), *rest]
    paths = os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"EXERCISES_VARIANT": KEY, "USER": "student"}
    if graded:
        environment |= {"PATH": os.environ["PATH"], "MPLCONFIGDIR": tempfile.gettempdir()}
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(
            [*(namespaces() if graded else []), *map(str, command)],
            cwd=tree,
            env=environment if graded else os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
            **({"start_new_session": True} if os.name == "posix" else {"creationflags": 0x200}),
        )
        ended = "ended before this was asked"
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            ended = f"no answer within {seconds:g} s"
        finally:
            end(child, graded)
        out.seek(0)
        return out.read(MOST), ended


def end(child: subprocess.Popen, graded: bool) -> None:
    """Ends a student's process and those that it has started, and removes what they left."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(child.pid)], capture_output=True)
    child.wait()
    if not graded:
        return
    subprocess.run([sys.executable, "-IS", "-c", "import os; os.kill(-1, 9)"], **AS_STUDENT)
    for place in {tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"}:
        subprocess.run(["find", place, "-mindepth", "1", "-user", str(UID), "-delete"], **QUIET)
