"""Coursework on the paper: eleven exercises and a capstone. See README.md.

An exercise is one file, exNN_name.py, with the same parts in each:

    REBUILD      {function: (where in the project it is, "module" or "module:Class"; its task)}
    TWIST        {function: its task}: a change found nowhere in the project; the answer is there
    IMPORTS      what the student's file begins with
    PROBES       {what is tried: fn(own) -> numbers}, `own` being the student's functions
    PROPERTIES   what must hold, with its points and the probes that tell
    MISTAKES     {its name: what is wrong}; `variant` makes the functions with some of them at
                 once, `more()` is {a mistake: the functions that it spoils} of the others
    draw(axes, answers, style)    the picture, for the student's answers and for the right ones
"""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parent
FILES = {int(path.stem[2:4]): path for path in sorted(HERE.glob("ex[0-9][0-9]_*.py"))}
NOT_DONE = "raise NotImplementedError"
Answers = dict[str, np.ndarray]  # by probe; a text where an error came instead of numbers


class Property(NamedTuple):
    """A sentence that must hold: worth some points if all its probes are answered rightly, that is
    as by the reference, or as `test(answers, right ones)`, which returns what is wrong, sees it."""

    text: str
    points: int
    probes: list[str]
    test: Callable[[Answers, Answers], str | None] | None = None


def load(number: int) -> ModuleType:
    """The module of an exercise."""
    return importlib.import_module(f"exercises.{FILES[number].stem}")


def title(module: ModuleType) -> str:
    return module.__doc__.split("\n")[0].rstrip(".")


def points(module: ModuleType) -> int:
    return sum(p.points for p in module.PROPERTIES)


# ------------------------------------------------------------------------- functions in the project


def source_of(place: str) -> tuple[Path, str | None]:
    """ "models:Collaboration" -> (its file, the class or None)."""
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


def definitions(number: int) -> dict[str, tuple[ast.FunctionDef, str]]:
    """{function that the student writes: (the project's, or the twist's, definition; its task)}."""
    module, found = load(number), {}
    for name, (place, task) in module.REBUILD.items():
        found[name] = find(*[(p := source_of(place))[0], name, p[1]]), task
    for name, task in module.TWIST.items():
        found[name] = find(FILES[number], name), task
    return found


def reference(number: int) -> SimpleNamespace:
    """The right functions: the project's own, and the twist's."""
    module, own = load(number), {}
    for name, (place, _) in module.REBUILD.items():
        of_module, _, of_class = place.partition(":")
        function = getattr(importlib.import_module(of_module), of_class or name)
        if of_class:  # a method that needs nothing of its object
            function = (lambda method: lambda *args: method(None, *args))(getattr(function, name))
        own[name] = function
    own |= {name: getattr(module, name) for name in module.TWIST}
    return SimpleNamespace(**own)


# ------------------------------------------------------------------------------------ asking them


def as_array(value: object) -> np.ndarray:
    """Numbers as float64. Raises TypeError, ValueError for what is none."""
    if value is None or isinstance(value, str):
        raise TypeError("it returned nothing" if value is None else "it returned a text")
    if isinstance(value, tuple | list):
        return np.concatenate([as_array(part).ravel() for part in value])
    if hasattr(value, "detach"):
        value = value.detach().double().numpy()
    return np.asarray(value, dtype=np.float64)


def shaped(value, *shape: int):
    """A tensor, if it has this shape. Raises ValueError."""
    if value is None or tuple(value.shape) != shape:
        found = "nothing" if value is None else f"shape {list(value.shape)}"
        raise ValueError(f"it returned {found}: it should have shape {list(shape)}")
    return value


def ask(number: int, own: object, probes: list[str] | None = None) -> Answers:
    """What these functions answer; an error's text where they raise one."""
    module, answers = load(number), {}
    for name, probe in module.PROBES.items():
        if probes is None or name in probes:
            try:
                answers[name] = as_array(probe(own))
            except Exception as error:
                answers[name] = np.array(f"{type(error).__name__}: {error}")
    return answers
