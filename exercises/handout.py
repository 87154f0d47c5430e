"""Makes a copy of the project for students, without the solutions of this unit and the later ones.

    python -m exercises.handout --unit 4 --out handout4

In it the functions that exercises 4 to 11 ask for are cut, and so are all twists' answers, known
mistakes, tests, and the lecturer's notes; there is no history, and no capstone. The check works
all the same: what the right functions and the mistakes answer lies in exercises/expected. Earlier
units' functions are there, so that each unit stands alone. Solutions are public, in the project:
points for what merely rebuilds it should be few.
"""

import ast
import shutil
from pathlib import Path

import numpy as np

from exercises import FILES, HERE, NOT_DONE, ROOT, definitions, find, load, source_of
from exercises.check import expected
from exercises.start import docstring, exercise
from support import files, options

KEPT = (
    *("README.md", "METHOD.md", "LICENSE", "requirements.txt", "pyproject.toml"),
    *("models.py", "attacks.py", "train_submodel.py", "train_collab.py", "infer.py", "xor_demo.py"),
    *("support", "data", "baselines", "notebooks", "experiments", "exercises"),
)
# experiments/*.py, which the capstone needs, holds whole solutions: a step, and intervals.
LEFT_OUT = shutil.ignore_patterns(
    *("test_*", "lecturer", "capstone.py", "entries"),
    *("*.pyc", "__pycache__", "cifar-10-*", "*.tmp"),
)


def cut(text: str, node: ast.FunctionDef, task: str, number: int) -> str:
    """The text of a file, a function's body replaced by its task."""
    lines, indent = text.split("\n"), " " * (node.col_offset + 4)
    told = docstring(task).split("\n") if task else []
    body = [indent + line.strip() if line else "" for line in told]
    body.append(f'{indent}{NOT_DONE}("exercise {number}: {node.name}")')
    return "\n".join([*lines[: node.body[0].lineno - 1], *body, *lines[node.end_lineno :]])


def cut_in(path: Path, name: str, of_class: str | None, task: str, number: int) -> None:
    text = path.read_text(encoding="utf-8")
    node = find(path, name, of_class)
    if NOT_DONE not in (ast.get_source_segment(text, node) or ""):
        path.write_text(cut(text, node, task, number), encoding="utf-8")


def write_handout(unit: int, out: Path) -> None:
    """The project without solutions, in the new folder `out`. Raises OSError."""
    for name in KEPT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, out / name, ignore=LEFT_OUT)
        else:
            shutil.copy(ROOT / name, out / name)
    for path in (out / "experiments").glob("*.py"):
        path.unlink()
    page = out / "exercises" / "README.md"  # without what is not in it
    told = page.read_text(encoding="utf-8").split("\n## The capstone")[0]
    told = told.replace(", and a [capstone](#the-capstone)", "")
    page.write_text(told, encoding="utf-8")
    (out / "exercises" / "expected").mkdir()
    for number in FILES:
        module = load(number)
        answers = {
            f"{mistake}|{probe}": value
            for mistake, of_mistake in expected(number).items()
            for probe, value in of_mistake.items()
        }
        np.savez_compressed(out / "exercises" / "expected" / f"ex{number:02}.npz", **answers)
        twists = out / "exercises" / FILES[number].name
        for name in (*module.TWIST, "variant", "more"):
            cut_in(twists, name, None, "", number)
        if number >= unit:
            tasks = {name: task for name, (_, task) in definitions(number).items()}
            places = [(place, name) for name, (place, _) in module.REBUILD.items()]
            for place, name in [*places, *getattr(module, "CUT", ())]:
                path, of_class = source_of(place)
                cut_in(out / path.relative_to(ROOT), name, of_class, tasks.get(name, ""), number)


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m exercises.handout")
    what = "the exercise from which on solutions are cut"
    parser.add_argument("--unit", required=True, metavar="N", help=what)
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        unit, out = exercise(args.unit), Path(args.out)
        if (HERE / "expected").exists():
            raise ValueError("this is a handout already: make them from the project itself")
        if out.exists():
            raise ValueError(f"--out {out} is there already: name a new folder")
        files.check_writable(out.absolute().parent)
        out.mkdir()
        write_handout(unit, out)
        print(f"wrote {out}: without the solutions of exercises {unit} to {max(FILES)}")


if __name__ == "__main__":
    main()
