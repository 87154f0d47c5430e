"""Writes the file that a student fills in: imports, signatures, tasks, and nothing else.

    python -m exercises.start 4           # writes work/ex04.py
    python -m exercises.start 4 --work here

The signatures are cut out of the project's own code, so that they never differ from it.
"""

import ast
import textwrap
from pathlib import Path

from exercises import FILES, NOT_DONE, definitions, load, points, title
from support import options


def exercise(text: str) -> int:
    """The number of an exercise. Raises ValueError."""
    if not text.isdecimal() or int(text) not in FILES:
        raise ValueError(f"no exercise {text!r}: there are {', '.join(map(str, FILES))}")
    return int(text)


def docstring(task: str) -> str:
    """A task as the docstring of a function."""
    paragraphs = f'"""{task}"""'.split("\n\n")
    how = {"width": 99, "initial_indent": "    ", "subsequent_indent": "    "}
    return "\n\n".join(textwrap.fill(paragraph, **how) for paragraph in paragraphs)


def starter(number: int) -> str:
    """The content of a student's file."""
    module = load(number)
    task = "\n".join(module.__doc__.split("\n")[1:]).strip()
    told = f"{title(module)}. {module.MINUTES} minutes, {points(module)} points; {module.PAPER}."
    parts = [f'"""{told}\n\n{task}\n\n    python -m exercises.check {number}\n"""']
    parts.append(module.IMPORTS.strip())
    for name, (node, task) in definitions(number).items():
        arguments = node.args
        if arguments.args and arguments.args[0].arg == "self":
            arguments.args = arguments.args[1:]
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        lines = [f"def {name}({ast.unparse(arguments)}){returns}:", docstring(task)]
        parts.append("\n".join([*lines, f'    {NOT_DONE}("exercise {number}: {name}")']))
    return parts[0] + "\n\n" + "\n\n\n".join(parts[1:]) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m exercises.start")
    parser.add_argument(
        "number", metavar="N", help=f"the exercise, of {', '.join(map(str, FILES))}"
    )
    parser.add_argument("--work", default="work", metavar="DIR", help="the student's folder")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        number = exercise(args.number)
        path = Path(args.work) / f"ex{number:02}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "x", encoding="utf-8") as file:  # never over a student's work
                file.write(starter(number))
        except FileExistsError:
            raise ValueError(f"{path} is there already: go on with it, or move it away") from None
        print(f"wrote {path}: fill it in, then python -m exercises.check {number}")


if __name__ == "__main__":
    main()
