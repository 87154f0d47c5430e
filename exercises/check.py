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

import argparse
import ast
import contextlib
import csv
import functools
import gzip
import importlib
import io
import itertools
import json
import math
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

import exercises
from exercises import (
    EXPECTED,
    FILES,
    HERE,
    KEY,
    ROOT,
    Answers,
    Numbers,
    exercise,
    find,
    is_twist,
    load,
    points,
    sandbox,
    source_of,
    table,
    tasks,
    title,
    trees,
)
from exercises.child import as_lists
from support import files, options, pictures

SECONDS = 30  # for one exercise, or as it says; what has been answered by then counts
TOLERANCE = 1e-6  # or as an exercise says
Judged = list[tuple[str, int, int, str]]  # a property: its text, points, those earned, why not all


# -------------------------------------------------------------------- the right answers, and wrong


def probes(number: int, function: str | None = None) -> dict[str, Callable]:
    """All of an exercise's, or of one of its functions."""
    of_properties = load(number).PROPERTIES.items()
    chosen = [asked for (name, _, _), asked in of_properties if function in (None, name)]
    return dict(chain(*(asked.items() for asked in chosen)))


def ask(number: int, own: object, function: str | None = None) -> Answers:
    """What these functions answer to `probes`; an error's text where they raise one."""
    answers = {}
    for name, probe in probes(number, function).items():
        try:
            answers[name] = exercises.numbers(probe(own))
        except Exception as error:
            answers[name] = f"{type(error).__name__}: {error}"
    return answers


def module_of(place: str, number: int) -> ModuleType:
    return load(number) if is_twist(place) else importlib.import_module(place.partition(":")[0])


def reference(number: int) -> dict[str, Callable]:
    """The right functions: the project's own, and the twist's."""
    own = {}
    for name, (place, _) in tasks(number).items():
        module, of_class = module_of(place, number), place.partition(":")[2]
        own[name] = getattr(module, name, None)
        if of_class and not is_twist(place):
            own[name] = functools.partial(getattr(getattr(module, of_class), name), None)
    return own


def changed(number: int, name: str, *changes: str) -> Callable:
    """The right function with its source changed, each "old => new", or "return => new" for what
    it returns. Raises ValueError where the old text is not in it."""
    place, _ = tasks(number)[name]
    path, of_class = source_of(place, number)
    source = ast.unparse(find(path, name, of_class)).replace("(self, ", "(")
    for old, _, new in (change.partition("=>") for change in changes):
        old, new = old.strip(), new.strip()
        if old == "return":
            returns = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Return))
            last = max(returns, key=lambda node: node.lineno)
            old, new = ast.get_source_segment(source, last), f"return {new}"
        if old not in source:
            raise ValueError(f"exercise {number}: {name} has no {old!r}")
        source = source.replace(old, new)
    scope = dict(vars(module_of(place, number))) | {"torch": torch, "F": F, "math": math}
    exec(compile(source, f"a mistake in {name}", "exec"), scope)
    return scope[name]


@functools.cache
def expected(number: int) -> dict[str, Answers]:
    """{"": the right answers, "function: what is wrong": what that answers}. In a handout, which
    holds no solutions, they come from a file."""
    kept = EXPECTED / f"ex{number:02}.json.gz"
    if kept.exists():
        lines = json.loads(gzip.decompress(kept.read_bytes()))
        return {mistake: dict(map(from_line, of_mistake)) for mistake, of_mistake in lines.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for so few numbers a second thread costs more than it gives
    right = reference(number)
    answers = {"": ask(number, SimpleNamespace(**right))}
    for name, mistake, *changes in table(load(number).MISTAKES):
        own = SimpleNamespace(**right | {name: changed(number, name, *changes)})
        answers[f"{name}: {mistake}"] = ask(number, own, name)
    torch.set_num_threads(threads)
    return answers


def as_lines(answers: Answers) -> list[dict]:
    """For JSON, as the child writes them."""
    return [
        {"probe": probe} | ({"error": of} if isinstance(of, str) else {"parts": as_lists(of)})
        for probe, of in answers.items()
    ]


def from_line(line: dict) -> tuple[str, Numbers | str]:
    """A probe and its answer, from what the child has written of it."""
    if "error" in line:
        return str(line["probe"]), clean(line["error"])
    parts = {}
    for part, (shape, values) in line["parts"].items():
        parts[str(part)] = np.array(values, dtype=np.float64).reshape(list(map(int, shape)))
    return str(line["probe"]), parts


def clean(text: object) -> str:
    """The end of a student's text, without what would steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text)[-2000:])


def read_answers(raw: bytes) -> tuple[Answers, str]:
    """What a student's process has written: its answers, and the end of what it has printed."""
    answers, printed = {}, ""
    for text in raw.split(b"\n"):
        with contextlib.suppress(Exception):  # it may be anything
            line = json.loads(text, parse_int=float)
            probe, answer = from_line(line)
            answers[probe], printed = answer, clean(line.get("printed", ""))
    return answers, printed


def student_answers(number: int, content: bytes, tree: Path, graded: bool) -> tuple[Answers, str]:
    """What the functions of a student's file answer, and the end of what they print."""
    seconds = getattr(load(number), "SECONDS", SECONDS)
    with sandbox.folder() as folder:
        path = folder / f"ex{number:02}.py"
        path.write_bytes(content)
        raw, ended = sandbox.run(["exercises.child", number, path], tree, seconds, graded)
    answers, printed = read_answers(raw)
    if "import" in answers:  # its error stands for everything
        return dict.fromkeys(probes(number), answers["import"]), printed
    return {name: answers.get(name, ended) for name in probes(number)}, printed


# --------------------------------------------------------------------------------------- judging


def same(mine: Numbers | str, right: Numbers | str, tolerance: float) -> bool:
    if isinstance(mine, str) or isinstance(right, str):
        return str(mine).split("\n")[-1] == str(right).split("\n")[-1]
    if [(part, value.shape) for part, value in mine.items()] != [
        (part, value.shape) for part, value in right.items()
    ]:
        return False
    return all(
        np.allclose(mine[part], right[part], rtol=tolerance, atol=tolerance, equal_nan=True)
        for part in right
    )


def difference(probe: str, mine: Numbers | str, right: Numbers, tolerance: float) -> str:
    """The first part of an answer that differs, and where it does so most."""
    if isinstance(mine, str):
        return f"{probe}: {mine}"
    for part, value in right.items():
        where, own = f"{probe}{', ' if part else ''}{part}", mine.get(part)
        if own is None or own.shape != value.shape:
            shape = "nothing" if own is None else f"shape {list(own.shape)}"
            return f"{where}: yours has {shape}, it should be {list(value.shape)}"
        if not same({"": own}, {"": value}, tolerance):
            wrong = np.nan_to_num(np.abs(own - value), nan=np.inf, posinf=np.inf)
            at = np.unravel_index(wrong.argmax(), own.shape)
            place = f" at {list(map(int, at))}" if own.size > 1 else ""
            return f"{where}{place}: yours is {own[at]:.6g}, it should be {value[at]:.6g}"
    return f"{probe}: yours has parts that it should not have"


def undone(answer: Numbers | str) -> bool:
    return isinstance(answer, str) and "NotImplementedError: exercise" in answer


def why_not(number: int, mine: Answers, asked: list[str], test: Callable | None) -> str:
    """What is wrong with a student's answers to these probes; "" where nothing is."""
    right, tolerance = expected(number)[""], getattr(load(number), "TOLERANCE", TOLERANCE)
    failed = [p for p in asked if isinstance(mine[p], str)]
    if failed:
        if undone(mine[failed[0]]):
            return "not written yet"
        once = len(set(map(str, mine.values()))) == 1  # nothing of the file could be imported
        return mine[failed[0]] if once else f"{failed[0]}: {mine[failed[0]]}"
    if test:
        try:
            return test(mine, right) or ""
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return f"{asked[0]}: not what was asked for ({error})"
    wrong = [p for p in asked if not same(mine[p], right[p], tolerance)]
    return difference(wrong[0], mine[wrong[0]], right[wrong[0]], tolerance) if wrong else ""


def judge(number: int, mine: Answers) -> Judged:
    """Each property, what it earns, and what is wrong."""
    module, judged = load(number), []
    for (_, most, text), asked in module.PROPERTIES.items():
        why = why_not(number, mine, list(asked), getattr(module, "TESTS", {}).get(text))
        judged.append((text, most, 0 if why else most, why))
    return judged


def mistakes(number: int, mine: Answers) -> list[str]:
    """The known mistakes that answer every probe of a function as the student does."""
    known, names = expected(number), []
    tolerance = getattr(load(number), "TOLERANCE", TOLERANCE)
    for function in tasks(number):
        asked = probes(number, function)
        if not all(same(mine[p], known[""][p], tolerance) for p in asked):
            of_function = (name for name in known if name.startswith(f"{function}: "))
            fits = (
                m for m in of_function if all(same(mine[p], known[m][p], tolerance) for p in asked)
            )
            names += itertools.islice(fits, 1)
    return names


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
    files.write(path, pictures.as_png(figure))
    return True


def submitted(path: Path) -> bytes | None:
    """What a student has handed in: an ordinary file of at most a megabyte, or nothing."""
    try:
        told = os.lstat(path)
        if stat.S_ISREG(told.st_mode) and told.st_size < 2**20:
            return path.read_bytes()
    except OSError:
        pass
    return None


def why_so(number: int) -> str:
    """What is told once an exercise is solved."""
    kept = EXPECTED / f"ex{number:02}.txt"
    return kept.read_text() if kept.exists() else getattr(load(number), "WHY", "")


def words(work: Path, number: int) -> int:
    """How many words answer the question; the question's own lines begin with #."""
    text = (submitted(work / f"ex{number:02}.txt") or b"").decode(errors="replace")
    return sum(len(line.split()) for line in text.split("\n") if not line.startswith("#"))


def wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=indent)


def check(number: int, work: Path, tree: Path, graded: bool = False) -> Judged:
    """Judges work/exNN.py and says what is wrong with it. A missing file earns nothing."""
    path = work / f"ex{number:02}.py"
    print(f"\n{title(number)}")
    content = submitted(path)
    if content is None:
        print(f"  no {path}: python -m exercises.start {number}")
        return [(text, most, 0, f"no {path.name}") for _, most, text in load(number).PROPERTIES]
    mine, printed = student_answers(number, content, tree, graded)
    judged, said = judge(number, mine), {""}
    for text, most, earned, why in judged:
        print(f"  {earned}/{most}  {text}")
        for line in why.split("\n") if why not in said else ():
            print(wrapped(line, "       "))
        said.add(why)
    if printed.strip():
        print("\n           ".join(["  printed:", *printed.strip().split("\n")[-10:]]))
    for name in mistakes(number, mine):
        print(wrapped(f"This is what comes out with: {name}", "  "))
    total, most = earned_in({number: judged}), points(number)
    if total == most and (told := why_so(number)):
        print(wrapped(told, "  "))
    if not graded and draw(number, mine, path.with_suffix(".png")):
        print(f"  picture: {path.with_suffix('.png')}")
    print(f"  in words: {words(work, number)} words in ex{number:02}.txt")
    print(f"  {total} of {most} points")
    if EXPECTED.exists() and total == most:  # in a handout: for later exercises
        (HERE / "passed").mkdir(exist_ok=True)
        files.write(HERE / "passed" / path.name, content)
    return judged


# ------------------------------------------------------------------------------ files, the command


def as_json(results: dict[int, Judged], of: list[int], work: Path) -> bytes:
    """Gradescope's results.json; exercises that were not judged yet have 0 points."""
    tests = []
    for number in of:
        unjudged = [(text, most, 0, "not judged yet") for _, most, text in load(number).PROPERTIES]
        for text, most, earned, why in results.get(number, unjudged):
            told = {"score": earned, "max_score": most, "output": why}
            tests.append({"name": f"{number}. {text}"} | told)
        told = f"{words(work, number)} words in ex{number:02}.txt: a person reads them"
        tests.append({"name": f"{number}. In words", "score": 0, "max_score": 0, "output": told})
    score = sum(test["score"] for test in tests)
    return json.dumps({"score": score, "visibility": "visible", "tests": tests}, indent=1).encode()


def check_replaceable(path: Path) -> None:
    """Raises ValueError unless this is a new file, or an earlier one of ours."""
    if path.suffix != ".json" or not path.parent.is_dir():
        raise ValueError(f"--json {path}: give a name in an existing folder, ending in .json")
    if path.exists() or path.is_symlink():
        try:
            content = submitted(path)
            json.loads(content)["tests"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"--json {path} is there, and no earlier result: move it") from None


def check_all(numbers: list[int], work: Path, places: dict[int, Path], args) -> dict[int, Judged]:
    """Judges these exercises of one student, and rewrites --json after each."""
    results: dict[int, Judged] = {}
    for number in numbers:
        if args.json:
            files.write(Path(args.json), as_json(results, numbers, work))
        results[number] = check(number, work, places[number], args.graded)
    if args.json:
        files.write(Path(args.json), as_json(results, numbers, work))
    return results


def earned_in(results: dict[int, Judged]) -> int:
    return sum(earned for judged in results.values() for _, _, earned, _ in judged)


def parsed(argv: list[str] | None) -> tuple[options.Parser, argparse.Namespace]:
    parser = options.Parser(__doc__, prog="-m exercises.check")
    add = parser.add_argument
    add("number", metavar="N", help=f"of {', '.join(map(str, FILES))}, or all")
    add("--work", default="work", metavar="DIR", help="the student's folder")
    add("--json", metavar="FILE.json", help="also write Gradescope's results, after every exercise")
    add(
        "--fail-under",
        type=int,
        metavar="POINTS",
        help="end with status 1 below them (default: all)",
    )
    add("--graded", action="store_true", help="as root: students' code gets a user of its own")
    add("--submissions", metavar="DIR", help="a folder for each student, in the place of --work")
    add("--csv", metavar="FILE", help="a new file: the points of each student")
    add("--variant", metavar="KEY", help="other numbers in the probes, the same for the same key")
    return parser, parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    parser, args = parsed(argv)
    with parser.errors_in_one_line():
        if args.variant and args.variant != KEY:
            os.environ["EXERCISES_VARIANT"] = args.variant  # the probes are drawn on import
            words = sys.argv[1:] if argv is None else argv
            return subprocess.call([sys.executable, "-m", "exercises.check", *words])
        return run(args)


def run(args: argparse.Namespace) -> int:
    """What `main` does, once the arguments are parsed. Raises ValueError or OSError."""
    numbers = list(FILES) if args.number == "all" else [exercise(args.number)]
    work = Path(args.submissions or args.work)
    if not work.is_dir():
        raise ValueError(f"no folder {work}: python -m exercises.start makes it")
    if bool(args.submissions) != bool(args.csv) or (args.submissions and args.json):
        raise ValueError("--submissions and --csv belong together, without --json")
    if args.json:
        check_replaceable(Path(args.json))
    if args.csv:
        files.check_new(Path(args.csv), ".csv", "--csv")
    if args.graded:
        written = [Path(name).absolute().parent for name in (args.json, args.csv) if name]
        sandbox.check_graded([ROOT, *([work] if args.submissions else [])], written)
    for number in numbers:  # before anything of a student's runs
        expected(number)
    with sandbox.folder() as folder:
        places = {number: folder / f"tree{number}" for number in numbers}
        for number, place in places.items():
            trees.for_child(place, number)
        if args.submissions:
            grade(numbers, work, places, args)
            return 0
        total = earned_in(check_all(numbers, work, places, args))
    of = sum(points(number) for number in numbers)
    if len(numbers) > 1:
        print(f"\n{total} of {of} points")
    return int(total < (of if args.fail_under is None else args.fail_under))


def grade(numbers: list[int], folder: Path, places: dict[int, Path], args) -> None:
    """Judges each student's folder, and rewrites --csv after each: points, and words written."""
    columns = [f"{kind} {number}" for kind in ("exercise", "words in") for number in numbers]
    rows = [["student", "points", *columns]]
    for work in sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()
    ):
        print(f"\n{work.name}")
        results = check_all(numbers, work, places, args)
        each = [earned_in({number: judged}) for number, judged in results.items()]
        rows.append([work.name, sum(each), *each, *(words(work, number) for number in numbers)])
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        files.write(Path(args.csv), text.getvalue().encode())


if __name__ == "__main__":
    sys.exit(main())
