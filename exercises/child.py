"""A student's process: imports the file, asks its functions, and writes down what they answer. It
judges nothing, and holds nothing that would help to: see sandbox.py.

    python -m exercises.child UID SECONDS NUMBER STUDENT.py    # a UID of 0: as who has started it
"""

import io
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from exercises import as_line, load, numbers, probes
from exercises.yours import own_module


def confine(uid: int, seconds: int) -> None:
    """Gives up root for good, and limits what may be used: in a graded run."""
    if uid:
        import resource  # there is none on Windows

        most = {"DATA": 3 * 2**30, "FSIZE": 2**25, "NPROC": 100, "NOFILE": 256, "CORE": 0}
        for name, limit in (most | {"CPU": 2 * seconds}).items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


class LastLines(io.TextIOBase):
    """Keeps the end of what is printed."""

    def __init__(self):
        self.text = ""

    def write(self, text: str) -> int:
        self.text = (self.text + text)[-2000:]
        return len(text)


def answering() -> Callable[[dict], None]:
    """Keeps the standard output for answers: what it returns writes one, a line of JSON, and the
    end of what was printed."""
    out, printed = os.dup(1), LastLines()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = sys.stderr = printed

    def tell(line: dict) -> None:
        os.write(out, json.dumps(line | {"printed": printed.text}).encode() + b"\n")

    return tell


def told(error: BaseException, path: str) -> str:
    """An error, and the lines of the student's own file that led to it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    lines = [f"line {f.lineno}, in {f.name}: {f.line}" for f in frames[-3:]]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines = [f"line {error.lineno}: {(error.text or '').strip()}"]
    text = str(error).replace("module 'student'", "your file")
    if "does not require grad" in text:
        text = "no gradient arrives: was something detached, or requires_grad_(True) forgotten?"
    return "\n".join([*lines, f"{type(error).__name__}: {text}"])


def main(number: int, path: str) -> None:
    """Answers all probes of an exercise."""
    tell = answering()
    load(number)  # before the student can change anything
    try:
        own = own_module(Path(path), "student")
    except BaseException as error:
        return tell(as_line("import", told(error, path)))
    for name, probe in probes(number).items():
        try:
            answer = numbers(probe(own))
        except BaseException as error:
            answer = told(error, path)
        tell(as_line(name, answer))


if __name__ == "__main__":
    confine(int(sys.argv[1]), int(sys.argv[2]))
    main(int(sys.argv[3]), sys.argv[4])
