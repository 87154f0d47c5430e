"""Copies of the project without solutions: what a student's process sees, and what a handout is."""

import ast
import shutil
import textwrap
from pathlib import Path

from exercises import FILES, JUDGE, ROOT, find, is_twist, load, source_of, table

CODE = (
    *("models.py", "attacks.py", "train_submodel.py", "train_collab.py", "infer.py", "xor_demo.py"),
    *("support", "data", "baselines", "exercises"),
    *("experiments/__init__.py", "experiments/records.py", "experiments/intervals.py"),
    *("experiments/results/runs.jsonl", "experiments/results/attacks.jsonl"),
)
LEFT_OUT = shutil.ignore_patterns(
    *("test_*", "conftest.py", "*.pyc", "__pycache__", "*.tmp", "cifar-10-*"),
    *("lecturer", "entries", "capstone.py", "expected"),
)
YOURS = "from exercises.yours import yours"


def docstring(task: str) -> str:
    """A task as the docstring of a function."""
    how = {"width": 99, "initial_indent": "    ", "subsequent_indent": "    "}
    return textwrap.fill(f'"""{task}"""', **how)


def cut(
    path: Path, name: str, of_class: str | None, task: str, number: int, body: str | None
) -> None:
    """Replaces a function's body by its task and a call of the student's own, or by this body."""
    node, lines = find(path, name, of_class), path.read_text(encoding="utf-8").split("\n")
    indent, arguments = " " * node.col_offset, [a.arg for a in node.args.args if a.arg != "self"]
    told = [indent + line if line else "" for line in docstring(task).split("\n")] if task else []
    call = f'{indent}    return yours({number}, "{name}")({", ".join(arguments)})'
    told.append(body or call)
    lines[node.body[0].lineno - 1 : node.end_lineno] = told
    if YOURS not in lines:
        first = ast.parse("\n".join(lines)).body[1]  # what follows the file's docstring
        lines.insert(first.lineno - 1, YOURS)
    path.write_text("\n".join(lines), encoding="utf-8")


def copy(out: Path, names: tuple[str, ...]) -> None:
    """Copies files and folders of the project into the folder `out`; of the exercises what a
    student may see."""
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, out / name, ignore=LEFT_OUT)
        else:
            shutil.copy(ROOT / name, out / name)
    for path in (out / "exercises").glob("*.py"):
        path.write_text(path.read_text(encoding="utf-8").split(JUDGE)[0], encoding="utf-8")


def cut_exercise(out: Path, number: int) -> None:
    """Cuts what an exercise asks for in a copy of the project, if it is not cut already."""
    module, also = load(number), table(getattr(load(number), "CUT", ""))
    for name, place, task in [*([*cells, ""] for cells in also), *table(module.TASKS)]:
        if is_twist(place):
            continue
        path, of_class = source_of(place, number)
        there = out / path.relative_to(ROOT)
        if there.exists() and "yours(" not in ast.unparse(find(there, name, of_class)):
            cut(there, name, of_class, task, number, getattr(module, "STANDS_IN", {}).get(name))


def for_child(out: Path, number: int | None) -> Path:
    """Makes what a student's process sees: while it answers an exercise no solution of that one;
    while it trains an entry of the capstone no digits, but those that it is given."""
    copy(out, CODE)
    kept = {"__init__.py", "child.py", "yours.py", "networks.py", "networks.pt", "model.pt"}
    if number is None:
        kept = {"__init__.py", "child.py", "yours.py", "entry.py"}
        (out / "data" / "digits.npz").unlink()
    else:
        kept |= {FILES[number].name, "passed"}
        cut_exercise(out, number)
        (out / "exercises" / "passed" / f"ex{number:02}.py").unlink(missing_ok=True)
    for path in (out / "exercises").iterdir():
        if path.name not in kept:
            path.unlink()
    for path in out.rglob("*"):  # whatever the umask: a graded run has another user
        path.chmod(0o755 if path.is_dir() else 0o644)
    return out
