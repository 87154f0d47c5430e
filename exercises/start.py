"""Writes the files that a student fills in: imports, signatures, tasks; and the question in words.

    python -m exercises.start 4           # writes work/ex04.py and work/ex04.txt
    python -m exercises.start 4 --work here

The signatures are cut out of the code itself, so that they never differ from it.
"""

import ast
import textwrap
from pathlib import Path

from exercises import FILES, chosen, definition, is_twist, load, points, tasks
from support import options

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


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m exercises.start")
    parser.add_argument("number", metavar="N", help=f"of {', '.join(map(str, FILES))}")
    parser.add_argument("--work", default="work", metavar="DIR", help="the student's folder")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        number = chosen(args.number)
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
