"""Judges what a student has written, names the mistake where it knows it, and draws a picture.

    python -m exercises.check 4                          # work/ex04.py
    python -m exercises.check all                        # whatever is in work/
    python -m exercises.check all --json results.json    # for Gradescope

A child process imports the student's file and answers probes; this one judges the answers, so that
neither an exit status nor anything printed there counts. Only the functions of the exercise itself
are the student's: a mistake in one exercise spoils no other. Where answers match neither the right
ones nor a known mistake the file is kept in work/unexplained, for next year's list of mistakes.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from exercises import FILES, HERE, NOT_DONE, ROOT, Answers, Property, ask, load, points, reference
from exercises import title as title_of
from exercises.start import exercise
from support import files, options, pictures

SEPARATOR = "; "  # of two mistakes at once
SECONDS = 20  # for one exercise, or as it says; what has been answered by then counts
Judged = list[tuple[Property, int, str]]  # its points that were earned, and why not all


# ----------------------------------------------------------------------------------- the student's


def student_answers(number: int, path: Path, seconds: float | None = None) -> tuple[Answers, str]:
    """What the student's functions answer, and the end of what they print. Whatever happens in the
    child process, it and what it started have ended when this returns."""
    seconds = seconds or getattr(load(number), "SECONDS", SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answers.npz"
        words = ["exercises.child", str(number), str(path.resolve()), str(out)]
        child = start_child(words, folder)
        ended = "ended before this was asked"
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            ended = f"no answer within {seconds:g} s"
        finally:
            end_group(child)
        answers = read_answers(out)
    printed = str(answers.pop("printed", ""))
    if "import" in answers:  # its error stands for everything
        return dict.fromkeys(load(number).PROBES, answers["import"]), printed
    return {name: answers.get(name, np.array(ended)) for name in load(number).PROBES}, printed


def start_child(words: list[str], folder: str, stderr=subprocess.DEVNULL) -> subprocess.Popen:
    """python -m words, in this folder, on one thread, and in a process group of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": stderr}
    how |= {"start_new_session": True} if os.name == "posix" else {"creationflags": 0x200}
    return subprocess.Popen([sys.executable, "-m", *words], cwd=folder, env=environment, **how)


def end_group(child: subprocess.Popen) -> None:
    """Ends a child and the processes that it has started."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(child.pid)], capture_output=True)
    child.wait()


def read_answers(path: Path) -> Answers:
    """The child's file; nothing where it is not there or not what it should be."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}


# ---------------------------------------------------------------------- the right, and mistakes


@functools.cache
def expected(number: int) -> dict[str, Answers]:
    """{"": the right answers, "a mistake" and "one; another": what these would answer}. In a
    handout, which holds no solutions, they come from a file."""
    module, kept = load(number), HERE / "expected" / f"ex{number:02}.npz"
    if kept.exists():
        found: dict[str, Answers] = {}
        for key, value in read_answers(kept).items():
            mistake, _, probe = key.partition("|")
            found.setdefault(mistake, {})[probe] = value
        return found
    quick = quick_probes(number)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for so few numbers a second thread costs more than it gives
    found = {"": ask(number, reference(number))}
    more = module.more()
    together = [name for name in module.MISTAKES if name not in more]
    for count in (1, 2):
        for names in itertools.combinations(together, count):
            own = SimpleNamespace(**module.variant(frozenset(names)))
            found[SEPARATOR.join(names)] = ask(number, own, quick)
    for name, functions in more.items():
        own = SimpleNamespace(**module.variant(frozenset()) | functions)
        found[name] = ask(number, own, quick)
    torch.set_num_threads(threads)
    return found


def is_error(value: np.ndarray) -> bool:
    return value.dtype.kind == "U"


def same(mine: np.ndarray, right: np.ndarray, tolerance: float) -> bool:
    if is_error(mine) or is_error(right):
        return str(mine).split("\n")[-1] == str(right).split("\n")[-1]
    if mine.shape != right.shape:
        return False
    return np.allclose(mine, right, rtol=tolerance, atol=tolerance, equal_nan=True)


def mistakes(number: int, mine: Answers, judged: Judged) -> list[str]:
    """The known mistakes, single or two together, that explain each property which does not hold:
    those that answer all its probes as the student does. Where several do, the one that agrees in
    most of the other probes, too."""
    module, known = load(number), expected(number)
    tolerance, found = getattr(module, "TOLERANCE", 1e-6), {}
    right, agreed = known[""], {}
    for names, theirs in known.items():
        agreed[names] = {p for p, value in theirs.items() if same(mine[p], value, tolerance)}
    for of in (of for of, earned, _ in judged if earned < of.points):
        told = [p for p in of.probes if p in quick_probes(number) and not undone(mine[p])]
        wrong = [p for p in told if not same(mine[p], right[p], tolerance)]
        fits = [n for n, probes in agreed.items() if n and wrong and probes >= set(told)]
        if fits:
            best = max(fits, key=lambda n: (SEPARATOR not in n, len(agreed[n])))
            found |= dict.fromkeys(best.split(SEPARATOR))
    return list(found)


def quick_probes(number: int) -> list[str]:
    """The probes that are tried on mistakes, too."""
    module = load(number)
    return [name for name in module.PROBES if name not in getattr(module, "SLOW", ())]


def undone(answer: np.ndarray) -> bool:
    return is_error(answer) and NOT_DONE.split()[1] in str(answer)


# --------------------------------------------------------------------------------------- judging


def counterexample(probe: str, mine: np.ndarray, right: np.ndarray, tolerance: float) -> str:
    """Where an answer differs most from the right one."""
    if is_error(mine):
        return f"{probe}: {mine}"
    if is_error(right):
        return f"{probe}: an error should be raised there"
    if mine.shape != right.shape:
        return f"{probe}: yours has shape {list(mine.shape)}, it should be {list(right.shape)}"
    wrong = np.where(np.isnan(mine), np.inf, np.abs(mine - right))
    at = np.unravel_index(np.nan_to_num(wrong, posinf=np.inf).argmax(), mine.shape)
    where = f" at {list(map(int, at))}" if mine.size > 1 else ""
    return f"{probe}:{where} yours is {mine[at]:.6g}, it should be {right[at]:.6g}"


def judge(number: int, mine: Answers) -> Judged:
    """Each property, what it earns, and the smallest counterexample."""
    module, right = load(number), expected(number)[""]
    tolerance, judged = getattr(module, "TOLERANCE", 1e-6), []
    for of in module.PROPERTIES:
        failed = [p for p in of.probes if is_error(mine[p]) and not is_error(right[p])]
        shapes = [p for p in of.probes if mine[p].shape != right[p].shape]
        wrong = [p for p in of.probes if not same(mine[p], right[p], tolerance)]
        if failed and undone(mine[failed[0]]):
            other = re.search(r"exercise (\d+): (\w+)", str(mine[failed[0]]))
            why = "not written yet"
            if other and int(other[1]) != number:
                why = f"it needs {other[2]}, which exercise {other[1]} asks for and this handout "
                why += f"lacks: use the handout of unit {number}"
        elif failed:
            once = len(set(map(str, mine.values()))) == 1  # nothing of the file could be imported
            why = str(mine[failed[0]]) if once else f"{failed[0]}: {mine[failed[0]]}"
        elif of.test and not shapes:
            why = of.test(mine, right) or ""
        else:
            probe = (shapes or wrong or [None])[0]
            why = counterexample(probe, mine[probe], right[probe], tolerance) if probe else ""
        judged.append((of, 0 if why else of.points, why))
    return judged


def draw(number: int, mine: Answers, path: Path) -> bool:
    """The student's answers in red on the right ones in grey, where the exercise has a picture."""
    module = load(number)
    if not hasattr(module, "draw"):
        return False
    numbers = {probe: value for probe, value in mine.items() if not is_error(value)}
    figure, axes = pictures.subplots(figsize=(6, 4))
    module.draw(axes, expected(number)[""], {"color": "0.7", "lw": 5, "label": "right"})
    with contextlib.suppress(Exception):  # there is none, or of another shape
        module.draw(axes, numbers, {"color": "red", "lw": 1.5, "label": "yours"})
    axes.legend()
    axes.set_title(title_of(module), fontsize=10)
    files.write(path, pictures.as_png(figure))
    return True


def keep(path: Path) -> Path:
    """A copy of a file whose answers nobody has foreseen."""
    content = path.read_bytes()
    name = f"{path.stem}-{hashlib.sha256(content).hexdigest()[:8]}.py"
    folder = path.parent / "unexplained"
    folder.mkdir(exist_ok=True)
    files.write(folder / name, content)
    return folder / name


def wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=indent)


def check(number: int, work: Path) -> Judged:
    """Judges work/exNN.py and says what it found. A missing file earns nothing."""
    module, path = load(number), work / f"ex{number:02}.py"
    print(f"\n{title_of(module)}")
    if not path.exists():
        print(f"  no {path}: python -m exercises.start {number}")
        return [(of, 0, f"no {path.name}") for of in module.PROPERTIES]
    mine, printed = student_answers(number, path)
    judged = judge(number, mine)
    said: set[str] = set()
    for of, earned, why in judged:
        print(f"  {earned}/{of.points}  {of.text}")
        if why and why not in said:
            for line in why.split("\n"):
                print(wrapped(line, "       "))
        said.add(why)
    if printed.strip():
        print("\n           ".join(["  printed:", *printed.strip().split("\n")[-10:]]))
    total = sum(earned for _, earned, _ in judged)
    names = mistakes(number, mine, judged)
    for name in names:
        print(wrapped(f"This is what comes out with: {name}. {module.MISTAKES[name]}", "  "))
    foreseen = [of for of, earned, _ in judged if earned == of.points or of.test]
    if not names and len(foreseen) < len(judged) and not any(map(is_error, mine.values())):
        print(f"  Nobody has made this mistake before: kept as {keep(path)}")
    picture = path.with_suffix(".png")
    if draw(number, mine, picture):
        print(f"  picture: {picture}")
    print(f"  {total} of {points(module)} points")
    return judged


def as_json(results: dict[int, Judged]) -> bytes:
    """Gradescope's results.json; exercises that were not judged yet have 0 points."""
    tests = []
    for number in FILES:
        for i, of in enumerate(load(number).PROPERTIES):
            _, earned, why = results[number][i] if number in results else (of, 0, "not judged yet")
            name = f"{number}. {of.text}"
            tests.append({"name": name, "score": earned, "max_score": of.points, "output": why})
    total = sum(test["score"] for test in tests)
    return json.dumps({"score": total, "visibility": "visible", "tests": tests}, indent=1).encode()


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m exercises.check")
    add = parser.add_argument
    add("number", metavar="N", help=f"of {', '.join(map(str, FILES))}, or all")
    add("--work", default="work", metavar="DIR", help="the student's folder")
    add("--json", metavar="FILE", help="also write Gradescope's results.json, after every exercise")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        work, results = Path(args.work), {}
        numbers = list(FILES) if args.number == "all" else [exercise(args.number)]
        if not work.is_dir():
            raise ValueError(f"no folder {work}: python -m exercises.start makes it")
        if args.json:
            files.write(Path(args.json), as_json(results))
        for number in numbers:
            results[number] = check(number, work)
            if args.json:
                files.write(Path(args.json), as_json(results))
        if len(numbers) > 1:
            earned = sum(of[1] for judged in results.values() for of in judged)
            print(f"\n{earned} of {sum(points(load(number)) for number in numbers)} points")


if __name__ == "__main__":
    main()
