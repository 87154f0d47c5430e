"""What right functions answer, and wrong ones; and what a student's process says that its own do.

Nothing of a student's runs here: an answer comes back as numbers, a line of JSON for each probe.
"""

import ast
import contextlib
import functools
import gzip
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from exercises import (
    EXPECTED,
    Answers,
    Numbers,
    definition,
    is_twist,
    load,
    numbers,
    probes,
    sandbox,
    tasks,
)

MISTAKES = Path(__file__).parent / "lecturer" / "mistakes.md"
SECONDS = 30  # for one exercise, or as it says; what has been answered by then counts


def ask(number: int, own: dict[str, Callable], function: str | None = None) -> Answers:
    """What these functions answer to `probes`; an error's text where they raise one."""
    answers = {}
    for name, probe in probes(number, function).items():
        try:
            answers[name] = numbers(probe(SimpleNamespace(**own)))
        except Exception as error:
            answers[name] = f"{type(error).__name__}: {error}"
    return answers


def variant(number: int, name: str, *changes: str) -> Callable:
    """The right function with its source changed, each "old => new", or "return => new" for what
    it returns. Raises ValueError where the old text is not in it."""
    place, _ = tasks(number)[name]
    source = ast.unparse(definition(number, name))
    for old, _, new in (change.partition("=>") for change in changes):
        old, new = old.strip(), new.strip()
        if old == "return":
            returns = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Return))
            last = max(returns, key=lambda node: node.lineno)
            old, new = ast.get_source_segment(source, last), f"return {new}"
        if old not in source:
            raise ValueError(f"exercise {number}: {name} has no {old!r}")
        source = source.replace(old, new)
    module = load(number) if is_twist(place) else importlib.import_module(place.split(":")[0])
    scope = dict(vars(module)) | {"torch": torch, "F": F, "math": math}
    exec(compile(source, name, "exec"), scope)
    return scope[name]


def reference(number: int) -> dict[str, Callable]:
    """The right functions: the project's own, and the twist's."""
    return {name: variant(number, name) for name in tasks(number)}


def known_mistakes(number: int) -> list[list[str]]:
    """[function, what is wrong, "old => new", ..], from the lecturer's table."""
    text = MISTAKES.read_text(encoding="utf-8")
    _, _, of_exercise = text.partition(f"\n## {number}\n")
    rows = [row for row in of_exercise.split("\n## ")[0].split("\n") if row.startswith("|")][2:]
    cells = [[cell.strip(" `") for cell in row.strip("|").split(" | ")] for row in rows]
    return [list(filter(None, row)) for row in cells]


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
    own = reference(number)
    answers = {"": ask(number, own)}
    for name, mistake, *changes in known_mistakes(number):
        wrong = own | {name: variant(number, name, *changes)}
        answers[f"{name}: {mistake}"] = ask(number, wrong, name)
    torch.set_num_threads(threads)
    return answers


def why_so(number: int) -> str:
    """What is told once an exercise is solved."""
    kept = EXPECTED / f"ex{number:02}.txt"
    return kept.read_text() if kept.exists() else getattr(load(number), "WHY", "")


def from_line(line: dict) -> tuple[str, Numbers | str]:
    """What `exercises.as_line` was made of."""
    if "error" in line:
        return str(line["probe"]), clean(line["error"])
    return str(line["probe"]), {k: np.array(v, np.float64) for k, v in line["parts"].items()}


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
    with sandbox.folder() as work:
        path = work / f"ex{number:02}.py"
        path.write_bytes(content)
        raw, ended = sandbox.run(["exercises.child", number, path], tree, seconds, graded)
    answers, printed = read_answers(raw)
    if "import" in answers:  # its error stands for everything
        return dict.fromkeys(probes(number), answers["import"]), printed
    return {name: answers.get(name, ended) for name in probes(number)}, printed
