"""Judges what a student has written, names the mistake where it knows it, and draws a picture.

    python -m exercises.check 4                          # work/ex04.py
    python -m exercises.check all                        # whatever is in work/
    python -m exercises.check all --graded --json results.json --fail-under 60
    python -m exercises.check all --graded --submissions FOLDER --csv grades.csv

A student's file runs in another process (sandbox.py), which returns numbers; here they are
compared with the right ones, computed before. Only the functions of the exercise are the student's:
a mistake in one spoils no other. Without --graded this is a check for yourself: it does not keep a
determined student from cheating, and --graded, as root on Linux, is what a grade needs.
"""

import contextlib
import csv
import io
import json
import sys
import textwrap
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np

from exercises import (
    EXPECTED,
    FILES,
    ROOT,
    Answers,
    Numbers,
    exercise_number,
    load,
    points,
    sandbox,
    title,
    use_key,
)
from exercises.answers import expected, student_answers, why_so
from exercises.handout import for_child
from exercises.yours import PASSED
from support import files, options, pictures

TOLERANCE = 1e-6  # or as an exercise says
Judged = list[tuple[str, int, int, str]]  # a property: its text, points, those earned, why not all


def submitted(path: Path) -> bytes | None:
    """What a student has handed in: an ordinary file of at most a megabyte, or nothing."""
    with contextlib.suppress(OSError):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**20:
            return path.read_bytes()


def words(work: Path, number: int) -> int:
    """How many words answer the question; the question's own lines begin with #."""
    text = (submitted(work / f"ex{number:02}.txt") or b"").decode(errors="replace")
    return sum(len(line.split()) for line in text.split("\n") if not line.startswith("#"))


# --------------------------------------------------------------------------------------- judging


def same(mine: Numbers | str, other: Numbers | str, tolerance: float) -> bool:
    if isinstance(mine, str) or isinstance(other, str) or mine.keys() != other.keys():
        return False
    return all(
        mine[part].shape == value.shape
        and np.allclose(mine[part], value, rtol=tolerance, atol=tolerance, equal_nan=True)
        for part, value in other.items()
    )


def difference(mine: Numbers, right: Numbers, tolerance: float) -> str:
    """The first part of an answer that differs, and where it does so most."""
    for part, value in right.items():
        name, own = f", {part}" if part else "", mine.get(part)
        if own is None or own.shape != value.shape:
            shape = "nothing" if own is None else f"shape {list(own.shape)}"
            return f"{name}: yours has {shape}, it should be {list(value.shape)}"
        if not same({"": own}, {"": value}, tolerance):
            wrong = np.nan_to_num(np.abs(own - value), nan=np.inf, posinf=np.inf)
            at = np.unravel_index(wrong.argmax(), own.shape)
            place = f" at {list(map(int, at))}" if own.size > 1 else ""
            return f"{name}{place}: yours is {own[at]:.6g}, it should be {value[at]:.6g}"
    return ": yours has parts that it should not have"


def why_not(number: int, mine: Answers, asked: list[str], test: Callable | None = None) -> str:
    """What is wrong with a student's answers to a property's probes; "" where nothing is."""
    right, tolerance = expected(number)[""], getattr(load(number), "TOLERANCE", TOLERANCE)
    for probe in (probe for probe in asked if isinstance(mine[probe], str)):
        if "NotImplementedError: exercise" in mine[probe]:
            return "not written yet"
        once = len(set(map(str, mine.values()))) == 1  # nothing of the file could be imported
        return mine[probe] if once else f"{probe}: {mine[probe]}"
    if test:
        try:
            return test(mine, right) or ""
        except Exception as error:  # answers may be anything
            return f"{asked[0]}: not what was asked for ({error})"
    for probe in asked:
        if not same(mine[probe], right[probe], tolerance):
            return probe + difference(mine[probe], right[probe], tolerance)
    return ""


def judge(number: int, mine: Answers) -> Judged:
    """Each property, what it earns, and what is wrong."""
    judged = []
    for (_, most, text, *test), asked in load(number).PROPERTIES.items():
        why = why_not(number, mine, list(asked), *test)
        judged.append((text, most, 0 if why else most, why))
    return judged


def unjudged(number: int, why: str) -> Judged:
    """No points for any property, for one reason."""
    return [(text, most, 0, why) for _, most, text, *_ in load(number).PROPERTIES]


def mistakes(number: int, mine: Answers) -> list[str]:
    """The known mistakes that answer every probe of a function as the student does."""
    tolerance, fits = getattr(load(number), "TOLERANCE", TOLERANCE), {}
    for mistake, theirs in expected(number).items():
        function = mistake.partition(":")[0]
        if mistake and all(same(mine[probe], theirs[probe], tolerance) for probe in theirs):
            fits.setdefault(function, mistake)  # of several the first
    return list(fits.values())


def draw(number: int, mine: Answers, path: Path) -> bool:
    """The student's answers in red on the right ones in grey, where the exercise has a picture."""
    module = load(number)
    if not hasattr(module, "draw"):
        return False
    figure, axes = pictures.subplots(figsize=(6, 4))
    module.draw(axes, expected(number)[""], {"color": "0.7", "lw": 5, "label": "right"})
    with contextlib.suppress(Exception):  # there is none, or of another shape
        module.draw(axes, mine, {"color": "red", "lw": 1.5, "label": "yours"})
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    axes.set_title(title(number), fontsize=10)
    try:
        files.write(path, pictures.as_png(figure))
    except files.SaveError as error:
        say(str(error))
        return False
    return True


def say(text: str, indent: int = 2) -> None:
    blank = " " * indent
    print(textwrap.fill(text, 100, initial_indent=blank, subsequent_indent=blank))


def check(number: int, work: Path, tree: Path, graded: bool = False) -> Judged:
    """Judges work/exNN.py and says what is wrong with it. A missing file earns nothing."""
    path = work / f"ex{number:02}.py"
    print(f"\n{title(number)}")
    content = submitted(path)
    if content is None:
        say(f"no {path}: python -m exercises.start {number}")
        return unjudged(number, f"no {path.name}")
    mine, printed = student_answers(number, content, tree, graded)
    judged, said = judge(number, mine), {""}
    for text, most, earned, why in judged:
        print(f"  {earned}/{most}  {text}")
        for line in why.split("\n") if why not in said else ():
            say(line, 7)
        said.add(why)
    if printed.strip():
        print("\n           ".join(["  printed:", *printed.strip().split("\n")[-10:]]))
    for name in mistakes(number, mine):
        say(f"This is what comes out with: {name}")
    total, most = earned_in(judged), points(number)
    if total == most and (told := why_so(number)):
        say(told)
    if not graded and draw(number, mine, path.with_suffix(".png")):
        print(f"  picture: {path.with_suffix('.png')}")
    print(f"  in words: {words(work, number)} words in ex{number:02}.txt")
    print(f"  {total} of {most} points")
    if EXPECTED.exists() and total == most:  # in a handout: for later exercises
        PASSED.mkdir(exist_ok=True)
        files.write(PASSED / path.name, content)
    return judged


def earned_in(judged: Judged) -> int:
    return sum(earned for _, _, earned, _ in judged)


# ------------------------------------------------------------------------------ files, the command


def write_json(path: str | None, results: dict[int, Judged], work: Path) -> None:
    """Gradescope's results.json, where one is asked for."""
    if path is None:
        return
    tests = []
    for number, judged in results.items():
        read = f"{words(work, number)} words in ex{number:02}.txt: a person reads them"
        for text, most, earned, why in [*judged, ("in words", 0, 0, read)]:
            name = f"{number}. {text}"
            tests.append({"name": name, "score": earned, "max_score": most, "output": why})
    score = sum(test["score"] for test in tests)
    told = {"score": score, "visibility": "visible", "tests": tests}
    files.write(Path(path), json.dumps(told, indent=1).encode())


def check_all(work: Path, places: dict[int, Path], args: Namespace) -> dict[int, Judged]:
    """Judges a student's exercises, each of which has its copy of the project, and rewrites --json
    in between: what was not judged yet has 0 points."""
    results = {number: unjudged(number, "not judged yet") for number in places}
    for number, tree in places.items():
        write_json(args.json, results, work)
        results[number] = check(number, work, tree, args.graded)
    write_json(args.json, results, work)
    return results


def grade(students: Path, places: dict[int, Path], args: Namespace) -> None:
    """Judges each student's folder, and rewrites --csv after each: points, and words written."""
    columns = [f"{kind} {number}" for kind in ("exercise", "words in") for number in places]
    rows = [["student", "points", *columns]]
    for work in sorted(p for p in students.iterdir() if p.is_dir() and not p.is_symlink()):
        student = work.name
        print(f"\n{student}")
        inner = work / "work"
        work = inner if inner.is_dir() and not inner.is_symlink() else work
        each = list(map(earned_in, check_all(work, places, args).values()))
        rows.append([student, sum(each), *each, *(words(work, number) for number in places)])
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        files.write(Path(args.csv), text.getvalue().encode())


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(__doc__, prog="-m exercises.check")
    add = parser.add_argument
    add("number", metavar="N", help=f"of {', '.join(map(str, FILES))}, or all")
    add("--work", default="work", metavar="DIR", help="the student's folder")
    told = "a new file for Gradescope's results, rewritten after every exercise"
    add("--json", metavar="FILE.json", help=told)
    add("--fail-under", type=int, metavar="POINTS", help="status 1 below them (default: all)")
    add("--graded", action="store_true", help="as root: students' code gets a user of its own")
    add("--submissions", metavar="DIR", help="a folder for each student, in the place of --work")
    add("--csv", metavar="FILE", help="a new file: the points of each student")
    add("--variant", metavar="KEY", help="other numbers in the probes, the same for the same key")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        use_key("check", args.variant, argv)
        numbers = list(FILES) if args.number == "all" else [exercise_number(args.number)]
        work = Path(args.submissions or args.work)
        if not work.is_dir():
            raise ValueError(f"no folder {work}: python -m exercises.start N makes it")
        if bool(args.submissions) != bool(args.csv) or (args.submissions and args.json):
            raise ValueError("--submissions and --csv belong together, without --json")
        if args.json:
            files.check_new(Path(args.json), ".json", "--json")
        if args.csv:
            files.check_new(Path(args.csv), ".csv", "--csv")
        if args.graded:
            written = [Path(name).absolute().parent for name in (args.json, args.csv) if name]
            sandbox.check_graded([ROOT, *([work] if args.submissions else [])], written)
        for number in numbers:  # before anything of a student's runs
            expected(number)
        with sandbox.folder() as trees:
            places = {number: for_child(trees / str(number), number) for number in numbers}
            if args.submissions:
                grade(work, places, args)
                return 0
            total = sum(map(earned_in, check_all(work, places, args).values()))
        most = sum(map(points, numbers))
        if len(numbers) > 1:
            print(f"\n{total} of {most} points")
        return int(total < (most if args.fail_under is None else args.fail_under))


if __name__ == "__main__":
    sys.exit(main())
