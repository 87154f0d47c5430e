"""The child process of check.py: imports a student's file, asks its functions, writes what they
answer. It judges nothing, so that nothing which happens in it can give points.

    python -m exercises.child NUMBER STUDENT.py ANSWERS.npz
"""

import importlib.util
import io
import os
import sys
import traceback
from types import ModuleType

import numpy as np

from exercises import as_array, load


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
    what = str(error).replace("module 'student'", "your file")
    if "does not require grad" in what:
        what = "no gradient arrives at the inputs: was something detached on the way?"
    return "\n".join([*lines, f"{type(error).__name__}: {what}"])


def own_module(path: str) -> ModuleType:
    """A student's file, imported. Raises whatever it raises."""
    spec = importlib.util.spec_from_file_location("student", path)
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    return own


def main(number: int, path: str, out: str) -> None:
    answers, printed = {}, LastLines()
    sys.stdout = sys.stderr = printed

    def save() -> None:
        with open(out + ".part", "wb") as file:
            np.savez(file, printed=printed.text, **answers)
        os.replace(out + ".part", out)

    try:
        own = own_module(path)
    except BaseException as error:
        answers["import"] = np.array(told(error, path))
        return save()
    for name, probe in load(number).PROBES.items():
        try:
            answers[name] = as_array(probe(own))
        except BaseException as error:
            answers[name] = np.array(told(error, path))
        save()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
