"""Writes the files that a student fills in: imports, signatures, tasks; and the question in words.

    python -m exercises.start 4           # writes work/ex04.py and work/ex04.txt
    python -m exercises.start 4 --work here

The signatures are cut out of the code itself, so that they never differ from it.
"""

import ast
from pathlib import Path

from exercises import FILES, exercise, find, is_twist, load, points, source_of, tasks
from exercises.trees import docstring
from support import options


def signature(number: int, name: str) -> str:
    """Of a function that the student writes."""
    place, _ = tasks(number)[name]
    if is_twist(place):
        return f"def {name}{place}:"
    path, of_class = source_of(place, number)
    node = find(path, name, of_class)
    node.args.args = [argument for argument in node.args.args if argument.arg != "self"]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {name}({ast.unparse(node.args)}){returns}:"


HEAD = "from collections.abc import Callable\n\nimport numpy as np\nimport torch\n"
HEAD += "import torch.nn.functional as F\nfrom torch import Tensor, nn"


def starter(number: int) -> tuple[str, str]:
    """The content of a student's two files: the functions, and the question in words."""
    module = load(number)
    task, question = module.__doc__.strip().split("\n\nIn words")
    task = task.replace("\n", f", {points(number)} points.\n", 1)
    parts = [f'"""{task}\n\n    python -m exercises.check {number}\n"""']
    parts.append("\n\n".join([HEAD, *filter(None, [getattr(module, "USES", "")])]))
    for name, (_, task) in tasks(number).items():
        undone = f'    raise NotImplementedError("exercise {number}: {name}")'
        parts.append("\n".join([signature(number, name), docstring(task), undone]))
    words = "".join(f"# {line}\n" for line in f"In words{question}".split("\n"))
    words += "# Two points, which a person gives. Answer below:\n"
    return parts[0] + "\n\n" + "\n\n\n".join(parts[1:]) + "\n", words


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m exercises.start")
    parser.add_argument("number", metavar="N", help=f"of {', '.join(map(str, FILES))}")
    parser.add_argument("--work", default="work", metavar="DIR", help="the student's folder")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        number = exercise(args.number)
        path = Path(args.work) / f"ex{number:02}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:  # never over a student's work
            for ending, content in zip((".py", ".txt"), starter(number)):
                with open(path.with_suffix(ending), "x", encoding="utf-8") as file:
                    file.write(content)
        except FileExistsError as error:
            raise ValueError(
                f"{error.filename} is there already: go on with it, or move it"
            ) from None
        print(f"wrote {path} and the question in words, {path.with_suffix('.txt')}: fill them in,")
        print(f"then python -m exercises.check {number}")


if __name__ == "__main__":
    main()
