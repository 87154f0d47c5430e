"""Coursework on the paper: twelve exercises and a capstone. See README.md.

An exercise is one file, exNN_name.py. What a student may see stands first:

    __doc__      the title; minutes and the paper's section; the task; the question "In words:"
    USES         the project's functions that the student's file imports
    TASKS        a table, see `table`: function | where the project has it, "module" or
                 "module:Class", or the signature of a twist, which is found nowhere in it | task
    CUT          likewise: function | its place, of what else would give it away
    PROPERTIES   {(function, points, a sentence that must hold of it): {probe: fn(own) -> numbers}},
                 `own` having the student's functions: all must be answered as by the right one.
                 Where several answers are right, or the right one must not be told, the key has a
                 fourth part, a test: fn(answers, right ones) -> what is wrong, or None
    draw(axes, answers, style)    the picture, for the student's answers and for the right ones

Below the line JUDGE stands what neither a student's process nor a handout is shown: the twists'
answers, under their names; STANDS_IN, {function: its body in a handout}, where the student's has
other arguments; WHY, what a check tells once all is solved. Mistakes: lecturer/mistakes.md.
"""

import ast
import importlib
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent
ROOT = HERE.parent
EXPECTED = HERE / "expected"  # in a handout: what right and wrong functions answer
FILES = {int(path.stem[2:4]): path for path in sorted(HERE.glob("ex[0-9][0-9]_*.py"))}
JUDGE = "# " + 74 * "-" + " for the judge alone"
Numbers = dict[str, np.ndarray]  # a probe's answer, by part: "the gradient for weight", say
Answers = dict[str, Numbers | str]  # by probe; a text where an error came instead of numbers


def table(text: str) -> list[list[str]]:
    """The cells of a text's lines, between " | "; a line that begins with a blank goes on."""
    rows = text.strip("\n").replace("\n ", " ").split("\n")
    return [[" ".join(cell.split()) for cell in row.split(" | ")] for row in rows if row]


def exercise_number(text: str) -> int:
    """The number of an exercise. Raises ValueError."""
    if not text.isdecimal() or int(text) not in FILES:
        raise ValueError(f"no exercise {text!r}: there are {', '.join(map(str, FILES))}")
    return int(text)


def load(number: int) -> ModuleType:
    """The module of an exercise."""
    return importlib.import_module(f"exercises.{FILES[number].stem}")


def title(number: int) -> str:
    return load(number).__doc__.split("\n")[0]


def points(number: int) -> int:
    return sum(points for _, points, *_ in load(number).PROPERTIES)


def probes(number: int, function: str | None = None) -> dict[str, Callable]:
    """All of an exercise's, or of one of its functions."""
    of_properties = load(number).PROPERTIES.items()
    chosen = [asked for (name, *_), asked in of_properties if function in (None, name)]
    return {name: probe for asked in chosen for name, probe in asked.items()}


def tasks(number: int) -> dict[str, tuple[str, str]]:
    """{function: (its place in the project, or a twist's signature; the task)}."""
    return {name: (place, task) for name, place, task in table(load(number).TASKS)}


def is_twist(place: str) -> bool:
    return place.startswith("(")


def source_of(number: int, name: str, place: str) -> tuple[Path, str]:
    """The file of a right function, and its name there, "A.f" in a class A."""
    module, _, of_class = place.partition(":")
    if is_twist(place):
        return FILES[number], name
    return ROOT / (module.replace(".", "/") + ".py"), f"{of_class}.{name}".lstrip(".")


def find(path: Path, name: str) -> ast.FunctionDef:
    """The definition of a function, or of a method "A.f". Raises KeyError."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        node = next((node for node in body if getattr(node, "name", None) == part), None)
        if node is None:
            raise KeyError(f"{path.name} has no function {name}")
        body = node.body
    return node


def cuts(number: int) -> list[tuple[Path, str] | tuple[Path, str, str]]:
    """What a student's copy of the project lacks: (file, the function's name there, its task). What
    is not the student's own has no task."""
    module = load(number)
    rows = [row for row in table(getattr(module, "CUT", "") + module.TASKS) if not is_twist(row[1])]
    return [(*source_of(number, name, place), *task) for name, place, *task in rows]


def definition(number: int, name: str) -> ast.FunctionDef:
    """Of a function that the student is to write, as the right one has it, a method's without
    self."""
    node = find(*source_of(number, name, tasks(number)[name][0]))
    node.args.args = [argument for argument in node.args.args if argument.arg != "self"]
    return node


# --------------------------------------------------------------------------------- what probes use

handed_out = EXPECTED / "key.txt"
KEY = os.environ.get("EXERCISES_VARIANT") or (handed_out.read_text() if handed_out.exists() else "")


def use_key(script: str, key: str | None, argv: list[str] | None) -> None:
    """Starts a script once more where it was given another KEY: probes are drawn on import."""
    if key and key != KEY:
        os.environ["EXERCISES_VARIANT"] = key
        words = sys.argv[1:] if argv is None else argv
        sys.exit(subprocess.call([sys.executable, "-m", f"exercises.{script}", *words]))


def generator(seed: int) -> torch.Generator:
    """Random numbers of a probe: others for another --variant KEY."""
    return torch.Generator().manual_seed(seed + 1000 * zlib.crc32(KEY.encode()))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=generator(seed))


def constant(value: float) -> float:
    """A probe's eps, sigma or kappa; with a KEY another one, at most a quarter away."""
    factor = random.Random(f"{KEY} {value}").uniform(0.8, 1.25) if KEY else 1
    return round(value * factor, 3)


def shaped(value: object, shape: tuple[int, ...] | None = None) -> Tensor:
    """A tensor, if it is one and has this shape. Raises TypeError or ValueError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"it returned {type(value).__name__}: it should return a tensor")
    if shape not in (None, value.shape):
        raise ValueError(f"it returned shape {list(value.shape)}: it should be {list(shape)}")
    return value


def with_gradients(name: str, *fixed: object, **inputs: Tensor) -> Callable:
    """A probe: what the function of this name makes of the inputs and, after them, of what is
    fixed; and the gradients of its sum for the inputs, 0 where there is none."""

    def probe(own: object) -> dict[str, Tensor]:
        asked = [z.clone().requires_grad_() for z in inputs.values()]
        value = shaped(getattr(own, name)(*asked, *fixed))
        grads = torch.autograd.grad(value.sum() + sum(0 * z.sum() for z in asked), asked)
        return {"the value": value} | {f"the gradient for {n}": g for n, g in zip(inputs, grads)}

    return probe


def hidden(probe: str, hint: str) -> Callable:
    """A test that does not say what would be right."""

    def test(mine: Answers, right: Answers) -> str:
        return "" if mine[probe] == right[probe] else f"{probe}: not so; {hint}"

    return test


def numbers(value: object) -> Numbers:
    """What a probe returns, as arrays of float64. Raises TypeError, ValueError for what is none."""
    if isinstance(value, dict):
        return {part: numbers(of_part)[""] for part, of_part in value.items()}
    if value is None or isinstance(value, str):
        raise TypeError("it returned nothing" if value is None else "it returned a text")
    if isinstance(value, Tensor):
        value = value.detach().double().numpy()
    return {"": np.asarray(value, dtype=np.float64)}


def as_line(probe: str, answer: Numbers | str) -> dict:
    """For JSON: a probe, and its answer by parts, or the error."""
    if isinstance(answer, str):
        return {"probe": probe, "error": answer}
    return {"probe": probe, "parts": {part: value.tolist() for part, value in answer.items()}}
