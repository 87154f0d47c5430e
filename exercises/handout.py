"""Copies of the project without solutions: what a student's process sees, and what a handout is.

    python -m exercises.handout --unit 4 --out handout4 [--variant KEY]

In a handout the functions that exercises 4 to 12 ask for are cut, and so are all twists' answers,
known mistakes, tests, findings, and the lecturer's notes. A check works all the same: what right
and wrong functions answer lies in exercises/expected. Once an exercise has all points, the
student's own functions stand where they were cut, so that one handout carries the course.
"""

import ast
import gzip
import json
import re
import shutil
from pathlib import Path

from exercises import (
    EXPECTED,
    FILES,
    JUDGE,
    KEY,
    ROOT,
    as_line,
    cuts,
    exercise_number,
    find,
    load,
    use_key,
)
from exercises.answers import expected, why_so
from exercises.start import docstring
from support import files, options

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
PAGE = """# Synergy of Experts, and exercises on it

Several small networks ("experts"), each with a head that predicts and one that says how sure to be;
the most confident one answers. You write the parts of that method (NeurIPS 2022), of the attacks on
it, and of the judgement on its claims; a check tells which mistake was made.

```sh
python3 -m venv .venv && .venv/bin/python -m pip install -r requirements.txt
.venv/bin/python -m exercises.start {unit}    # writes work/ex{unit:02}.py and a question in words
.venv/bin/python -m exercises.check {unit}    # judges them{key}
```

Cut is what exercises {unit} to {last} ask for. Whatever calls such a function ends in one line, for
instance "exercise {unit} is yours". Once an exercise has all its points your own functions stand
there, for later exercises and for all scripts: the main command,
`python train_collab.py --eps 0.03 --n 3`, runs when exercises 1 to 7 have theirs. An evening's plan
of reading is in [exercises/README.md](exercises/README.md), the method, with its formulas, in
[METHOD.md](METHOD.md).
"""


def cut(path: Path, name: str, number: int, body: str | None, task: str = "") -> None:
    """Replaces the body of a function, or of a method "A.f", by its task and, where no body is
    given, by a call of the student's own."""
    node, lines = find(path, name), path.read_text(encoding="utf-8").split("\n")
    indent, arguments = " " * node.col_offset, [a.arg for a in node.args.args if a.arg != "self"]
    told = [indent + line if line else "" for line in docstring(task).split("\n")] if task else []
    call = f'yours({number}, "{node.name}")({", ".join(arguments)})'
    told.append(body or f"{indent}    return {call}")
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
    bodies = getattr(load(number), "STANDS_IN", {})
    for path, name, *task in cuts(number):
        there = out / path.relative_to(ROOT)
        if there.exists() and "yours(" not in ast.unparse(find(there, name)):
            cut(there, name, number, bodies.get(name), *task)


def for_child(out: Path, number: int | None) -> Path:
    """Makes what a student's process sees: while it answers an exercise no solution of that one;
    while it trains an entry of the capstone no digits, but those that it is given."""
    copy(out, CODE)
    kept = {"__init__.py", "child.py", "yours.py"}
    if number is None:
        kept.add("entry.py")
        (out / "data" / "digits.npz").unlink()
    else:
        kept |= {FILES[number].name, "networks.py", "networks.pt", "model.pt", "passed"}
        cut_exercise(out, number)
        (out / "exercises" / "passed" / f"ex{number:02}.py").unlink(missing_ok=True)
    for path in (out / "exercises").iterdir():
        if path.name not in kept:
            path.unlink()
    for path in out.rglob("*"):  # whatever the umask: a graded run has another user
        path.chmod(0o755 if path.is_dir() else 0o644)
    return out


# ------------------------------------------------------------------------------------ the handout


def method(text: str) -> str:
    """METHOD.md without what exercises ask for: what a step costs, what sigma = 1 means, what the
    argmax hides."""
    kept, _, rest = text.partition("\nIn gradient passes")
    kept += rest[rest.index("\n## Inference") : rest.index("\n## What sigma means")]
    return re.sub(r" \(\[[^]]*\]\(experiments/.*?\)\)", "", kept)  # findings


def exercises_page(text: str) -> str:
    """The exercises' page without capstone and lecturers' part."""
    told = text.split("\n## The capstone")[0].replace(", and a [capstone](#the-capstone)", "")
    measured = "[the measured results](../experiments/README.md)"
    return told.replace(measured, "the measured results, with your lecturer")


def write_handout(unit: int, out: Path) -> None:
    """The project without solutions, in the new folder `out`. Raises OSError."""
    copy(out, (*CODE, "LICENSE", "requirements.txt", "METHOD.md"))
    (out / "exercises" / "entry.py").unlink()  # the capstone's
    for name, shorter in (("exercises/README.md", exercises_page), ("METHOD.md", method)):
        text = (out / name).read_text(encoding="utf-8")
        (out / name).write_text(shorter(text), encoding="utf-8")
    key = f", with the key {KEY}" if KEY else ""
    told = PAGE.format(unit=unit, last=max(FILES), key=key)
    (out / "README.md").write_text(told, encoding="utf-8")
    kept = out / EXPECTED.relative_to(ROOT)
    kept.mkdir()
    (kept / "key.txt").write_text(KEY)
    for number in FILES:
        known = expected(number).items()
        answers = {mistake: [as_line(*pair) for pair in of.items()] for mistake, of in known}
        packed = gzip.compress(json.dumps(answers).encode(), mtime=0)
        (kept / f"ex{number:02}.json.gz").write_bytes(packed)
        if told := why_so(number):
            (kept / f"ex{number:02}.txt").write_text(told)
        if number >= unit:
            cut_exercise(out, number)


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m exercises.handout")
    add = parser.add_argument
    add("--unit", required=True, metavar="N", help="from which exercise on solutions are cut")
    add("--out", required=True, metavar="DIR", help="a new folder")
    add("--variant", metavar="KEY", help="other numbers in the probes, the same for the same key")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        use_key("handout", args.variant, argv)
        unit, out = exercise_number(args.unit), Path(args.out)
        if EXPECTED.exists():
            raise ValueError("this is a handout already: make them from the project itself")
        if out.exists():
            raise ValueError(f"--out {out} is there already: name a new folder")
        files.check_writable(out.absolute().parent)
        out.mkdir()
        write_handout(unit, out)
        print(f"wrote {out}: without the solutions of exercises {unit} to {max(FILES)}")


if __name__ == "__main__":
    main()
