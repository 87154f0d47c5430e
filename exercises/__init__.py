"""Coursework on the paper: twelve exercises and a capstone. See README.md.

An exercise is one file, exNN_name.py. What a student may see stands first:

    __doc__      the title; minutes and the paper's section; the task; the question "In words:"
    USES         the project's functions that the student's file imports
    TASKS        a table, see `table`: function | where the project has it, "module" or
                 "module:Class", or the signature of a twist, which is found nowhere in it | task
    CUT          likewise: function | its place, of what else would give it away
    PROPERTIES   {(function, points, a sentence that must hold of it): {probe: fn(own) -> numbers}},
                 `own` having the student's functions: all must be answered as by the right one
    TESTS        {such a sentence: fn(answers, right ones) -> what is wrong, or None}, for those
                 where several answers are right
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


def exercise(text: str) -> int:
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
    return sum(points for _, points, _ in load(number).PROPERTIES)


def tasks(number: int) -> dict[str, tuple[str, str]]:
    """{function: (its place in the project, or a twist's signature; the task)}."""
    return {name: (place, task) for name, place, task in table(load(number).TASKS)}


def is_twist(place: str) -> bool:
    return place.startswith("(")


def source_of(place: str, number: int) -> tuple[Path, str | None]:
    """ "models:Collaboration" -> (its file, the class or None); a twist's: the exercise's file."""
    if is_twist(place):
        return FILES[number], None
    module, _, name = place.partition(":")
    return ROOT / (module.replace(".", "/") + ".py"), name or None


def find(path: Path, name: str, of_class: str | None = None) -> ast.FunctionDef:
    """The definition of a function, or of a method. Raises KeyError."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    if of_class:
        (body,) = (n.body for n in body if isinstance(n, ast.ClassDef) and n.name == of_class)
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    raise KeyError(f"{path.name} has no function {name}")


# --------------------------------------------------------------------------------- what probes use

handed_out = EXPECTED / "key.txt"
KEY = os.environ.get("EXERCISES_VARIANT") or (handed_out.read_text() if handed_out.exists() else "")


def with_key(script: str, key: str | None, argv: list[str] | None) -> None:
    """Starts a script once more where it was given another KEY: probes are drawn on import."""
    if key and key != KEY:
        os.environ["EXERCISES_VARIANT"] = key
        words = sys.argv[1:] if argv is None else argv
        sys.exit(subprocess.call([sys.executable, "-m", f"exercises.{script}", *words]))


def generator(seed: int) -> torch.Generator:
    """Random numbers of a probe: others for another --variant KEY."""
    return torch.Generator().manual_seed(seed + 1000 * zlib.crc32(KEY.encode()))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=generator(seed))


def constant(value: float) -> float:
    """A probe's eps, sigma or kappa; with a KEY another one, at most a quarter away."""
    factor = random.Random(f"{KEY} {value}").uniform(0.8, 1.25) if KEY else 1
    return round(value * factor, 3)


def shaped(value: torch.Tensor, *shape: int) -> torch.Tensor:
    """A tensor, if it has this shape. Raises TypeError or ValueError."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"it returned {type(value).__name__}: it should return a tensor")
    if tuple(value.shape) != shape:
        raise ValueError(f"it returned shape {list(value.shape)}: it should be {list(shape)}")
    return value


def with_gradients(function: Callable, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the function makes of these inputs, and the gradients of its sum for them; 0 where
    there is none."""
    asked = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    value = function(*asked.values())
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"it returned {type(value).__name__}: it should return a tensor")
    grads = dict.fromkeys(asked)
    if value.requires_grad:
        found = torch.autograd.grad(value.sum(), list(asked.values()), allow_unused=True)
        grads = dict(zip(asked, found))
    zeros = {name: torch.zeros_like(of) for name, of in asked.items()}
    told = {f"the gradient for {n}": zeros[n] if g is None else g for n, g in grads.items()}
    return {"the value": value} | told


def numbers(value: object) -> Numbers:
    """What a probe returns, as arrays of float64. Raises TypeError, ValueError for what is none."""
    if isinstance(value, dict):
        return {part: numbers(of_part)[""] for part, of_part in value.items()}
    if value is None or isinstance(value, str):
        raise TypeError("it returned nothing" if value is None else "it returned a text")
    if isinstance(value, torch.Tensor):
        value = value.detach().double().numpy()
    return {"": np.asarray(value, dtype=np.float64)}


def as_line(probe: str, answer: Numbers | str) -> dict:
    """For JSON: a probe and [shape, values] of each part of its answer, or the error."""
    if isinstance(answer, str):
        return {"probe": probe, "error": answer}
    parts = {part: [value.shape, value.ravel().tolist()] for part, value in answer.items()}
    return {"probe": probe, "parts": parts}
