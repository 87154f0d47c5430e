"""Writes the files that a student fills in: imports, signatures, tasks; and the question in words.

    python -m exercises.start 4           # writes work/ex04.py and work/ex04.txt
    python -m exercises.start 4 --work here
    python -m exercises.start --notebook exercises.ipynb   # all of them, for Jupyter and Colab

The signatures are cut out of the code itself, so that they never differ from it.
"""

import ast
import json
import textwrap
from pathlib import Path

from exercises import FILES, definition, exercise_number, is_twist, load, points, tasks, title
from support import files, options

HEAD = """from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn"""


def docstring(task: str) -> str:
    """A task as the docstring of a function."""
    how = {"width": 99, "initial_indent": "    ", "subsequent_indent": "    "}
    return textwrap.fill(f'"""{task}"""', **how)


def signature(number: int, name: str, place: str) -> str:
    """Of a function that the student writes."""
    if is_twist(place):
        return f"def {name}{place}:"
    node = definition(number, name)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {name}({ast.unparse(node.args)}){returns}:"


def starter(number: int) -> tuple[str, str]:
    """The content of a student's two files: the functions, and the question in words."""
    module = load(number)
    task, question = module.__doc__.strip().split("\n\nIn words")
    task = task.replace("\n", f", {points(number)} points.\n", 1)
    imports = "\n\n".join(filter(None, [HEAD, getattr(module, "USES", "")]))
    parts = [f'"""{task}\n\n    python -m exercises.check {number}\n"""\n\n{imports}']
    for name, (place, task) in tasks(number).items():
        undone = f'    raise NotImplementedError("exercise {number}: {name}")'
        parts.append("\n".join([signature(number, name, place), docstring(task), undone]))
    words = "".join(f"# {line}\n" for line in f"In words{question}".split("\n"))
    words += "# Two points, which a person gives. Answer below:\n"
    return "\n\n\n".join(parts) + "\n", words


INTRODUCTION = """# The exercises

For each exercise three cells: your functions, the question in words, the check with its picture.
Run the first two again after each change. They write their files into `work-notebook`, apart from
`work`, which the commands use. What it is about: `exercises/README.md`."""
SETUP = """
# Where the project is. On Colab: upload its ZIP file in the panel on the left, then, in a cell:
#     !unzip -q PROJECT.zip -d soe
import os
import sys
from pathlib import Path

from IPython.display import Image, display

places = (Path.cwd(), Path.cwd().parent, *Path("soe").resolve().glob("**"))
os.chdir(next(place for place in places if (place / "models.py").exists()))
Path("work-notebook").mkdir(exist_ok=True)
python = sys.executable


def picture(number):
    path = Path(f"work-notebook/ex{number:02}.png")
    if path.exists():
        display(Image(path))"""


def notebook() -> dict:
    """All exercises, each in a cell to fill in, one for the question, and one that checks."""
    cells = [("markdown", INTRODUCTION), ("code", SETUP)]
    for number in FILES:
        functions, words = starter(number)
        cells.append(("markdown", f"## {title(number)}"))
        cells.append(("code", f"%%writefile work-notebook/ex{number:02}.py\n{functions}"))
        cells.append(("code", f"%%writefile work-notebook/ex{number:02}.txt\n{words}"))
        check = f"!{{python}} -m exercises.check {number} --work work-notebook"
        cells.append(("code", f"{check}\npicture({number})"))
    made = []
    for i, (kind, source) in enumerate(cells):
        cell = {"cell_type": kind, "id": f"cell-{i:02}", "metadata": {}}
        outputs = {"execution_count": None, "outputs": []} if kind == "code" else {}
        made.append(cell | outputs | {"source": source.strip().splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": made,
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": kernel},
    }


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m exercises.start")
    add = parser.add_argument
    add("number", nargs="?", metavar="N", help=f"of {', '.join(map(str, FILES))}")
    add("--work", default="work", metavar="DIR", help="the student's folder")
    add("--notebook", metavar="FILE", help="write a new notebook with all exercises instead")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        if bool(args.number) == bool(args.notebook):
            raise ValueError("give the number of an exercise, or --notebook FILE")
        if args.notebook:
            files.check_new(Path(args.notebook), ".ipynb", "--notebook")
            content = json.dumps(notebook(), indent=1, ensure_ascii=False) + "\n"
            files.write(Path(args.notebook), content.encode())
            print(f"wrote {args.notebook}")
            return
        number = exercise_number(args.number)
        path = Path(args.work) / f"ex{number:02}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:  # never over a student's work
            for ending, content in zip((".py", ".txt"), starter(number)):
                with open(path.with_suffix(ending), "x", encoding="utf-8") as file:
                    file.write(content)
        except FileExistsError as error:
            taken = f"{error.filename} is there already: go on with it, or move it"
            raise ValueError(taken) from None
        print(f"wrote {path} and the question in words, {path.with_suffix('.txt')}: fill them in,")
        print(f"then python -m exercises.check {number}")


if __name__ == "__main__":
    main()
