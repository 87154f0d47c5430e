"""Makes a copy of the project for students, without the solutions of this unit and the later ones.

    python -m exercises.handout --unit 4 --out handout4 [--variant KEY]

In it the functions that exercises 4 to 12 ask for are cut, and so are all twists' answers, known
mistakes, tests, findings, and the lecturer's notes. A check works all the same: what right and
wrong functions answer lies in exercises/expected. Once an exercise has all points, the student's
own functions stand where they were cut, so that one handout carries the course.
"""

import gzip
import json
from pathlib import Path

from exercises import EXPECTED, FILES, KEY, as_line, exercise, trees, with_key
from exercises.answers import expected
from exercises.check import why_so
from support import files, options

KEPT = (*trees.CODE, "LICENSE", "requirements.txt", "METHOD.md")
PAGE = """# Synergy of Experts, and exercises on it

{goal}

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
GOAL = """Several small networks ("experts"), each with a head that predicts and one that says how
sure to be; the most confident one answers. You write the parts of that method (NeurIPS 2022), of
the attacks on it, and of the judgement on its claims; a check tells which mistake was made."""


def method(text: str) -> str:
    """METHOD.md without what exercises ask for: what a step costs, what sigma = 1 means, what the
    argmax hides."""
    kept, _, rest = text.partition("\nIn gradient passes")
    inference = rest[rest.index("\n## Inference") : rest.index("\n## What sigma means")]
    return kept + inference


def exercises_page(text: str) -> str:
    """The exercises' page without capstone and lecturers' part."""
    told = text.split("\n## The capstone")[0].replace(", and a [capstone](#the-capstone)", "")
    measured = "[the measured results](../experiments/README.md)"
    return told.replace(measured, "the measured results, with your lecturer")


def write_handout(unit: int, out: Path) -> None:
    """The project without solutions, in the new folder `out`. Raises OSError."""
    trees.copy(out, KEPT)
    (out / "exercises" / "entry.py").unlink()  # the capstone's
    page = out / "exercises" / "README.md"
    page.write_text(exercises_page(page.read_text(encoding="utf-8")), encoding="utf-8")
    page = out / "METHOD.md"
    page.write_text(method(page.read_text(encoding="utf-8")), encoding="utf-8")
    key = f", with the key {KEY}" if KEY else ""
    told = PAGE.format(goal=GOAL, unit=unit, last=max(FILES), key=key)
    (out / "README.md").write_text(told, encoding="utf-8")
    kept = out / EXPECTED.relative_to(trees.ROOT)
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
            trees.cut_exercise(out, number)


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m exercises.handout")
    add = parser.add_argument
    add("--unit", required=True, metavar="N", help="from which exercise on solutions are cut")
    add("--out", required=True, metavar="DIR", help="a new folder")
    add("--variant", metavar="KEY", help="other numbers in the probes, the same for the same key")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        with_key("handout", args.variant, argv)
        unit, out = exercise(args.unit), Path(args.out)
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
