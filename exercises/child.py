"""A student's process: imports the file, asks its functions, and writes down what they answer. It
judges nothing, and holds nothing that would help to: see sandbox.py.

    python -m exercises.child UID SECONDS NUMBER STUDENT.py    # a UID of 0: as who has started it

The answers go to the standard output, a line of JSON each; what the student prints is kept apart.
"""

import io
import json
import os
import sys
import traceback
from itertools import chain
from pathlib import Path

from exercises import Numbers, load, numbers
from exercises.yours import own_module


def confine(uid: int, seconds: int) -> None:
    """Gives up root for good, and limits what may be used: in a graded run."""
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


def as_lists(parts: Numbers) -> dict[str, list]:
    """For JSON: [shape, values] of each part."""
    return {part: [value.shape, value.ravel().tolist()] for part, value in parts.items()}


def main(number: int, path: str) -> None:
    """Answers all probes of an exercise."""
    answers, printed = os.dup(1), LastLines()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = sys.stderr = printed

    def tell(**line) -> None:
        os.write(answers, json.dumps(line).encode() + b"\n")

    module = load(number)
    try:
        own = own_module(Path(path), "student")
    except BaseException as error:
        return tell(probe="import", error=told(error, path), printed=printed.text)
    for name, probe in dict(chain(*(p.items() for p in module.PROPERTIES.values()))).items():
        try:
            tell(probe=name, parts=as_lists(numbers(probe(own))), printed=printed.text)
        except BaseException as error:
            tell(probe=name, error=told(error, path), printed=printed.text)


if __name__ == "__main__":
    uid, seconds, number = map(int, sys.argv[1:4])
    if uid:
        confine(uid, seconds)
    main(number, sys.argv[4])
