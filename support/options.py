"""The options that all training scripts share; devices and precision."""

import argparse
import dataclasses
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from math import inf, isfinite
from typing import Any

import torch

from support import files, ranks

# These may stand beside --resume.
MOVABLE = {"data", "device", "precision", "threads", "compile", "graph"}


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each default unless the help text states it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        none = action.default is None or action.default is False
        stated = none or "(default" in action.help
        return action.help if stated else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, with exit status 2."""

    def __init__(self, description: str, prog: str, settings: type = argparse.Namespace):
        self.settings = settings  # the class of what `parse_given` returns
        self.held = len(files.locks)  # by the script that calls this one
        script = shlex.quote(sys.argv[0]) if os.path.basename(sys.argv[0]) == prog else prog
        self.typed = f"python {script}"  # as typed, perhaps from another folder
        super().__init__(f"python {prog}", description=description, formatter_class=Formatter)
        if sys.stdout is sys.__stdout__ is not None:  # not a test's, or a notebook's
            sys.stdout.reconfigure(errors="replace")  # a locale may have no sign for ±

    def parse_args(
        self, args: list[str] | None = None, namespace: argparse.Namespace | None = None
    ):
        """The one door of all commands: as argparse, and an unknown option names the nearest."""
        args = sys.argv[1:] if args is None else args
        for word in args:
            if word.startswith("--") and word.endswith("=--"):  # argparse would make it a list
                self.error(f"argument {word[:-3]}: -- is no value")
            if not files.is_text(word):
                self.error(f"{word!a} is not UTF-8: the run could not write it down")
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            flags = self._option_string_actions
            near = [f for f in flags if word[2:] in re.findall(r"\w+", flags[f].help or "")]
            near = near or get_close_matches(word, flags, 1)
            hint = "".join(f"; did you mean {name}?" for name in near[:1])
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return values

    def exit(self, status: int = 0, message: str | None = None):
        files.unlock(self.held)
        super().exit(status, message if ranks.speaks() else None)

    def error(self, message: object):
        name = self.prog.removeprefix("python ").removeprefix("-m ")
        if isinstance(message, OSError) and message.filename:
            message = f"{message.filename}: {message.strerror}"
        self.exit(2, f"{name}: error: {' '.join(str(message).split())}\n")

    @contextmanager
    def errors_in_one_line(self, alone: bool = True):
        """Ends with one line and status 2 after bad input, with one and status 130 after Ctrl-C. A
        script that runs `alone` refuses to be one of several processes, and ends with its locks."""
        try:
            if alone and ranks.world_size() > 1:
                raise ValueError("not under torchrun: this runs in one process")
            yield
            if alone:
                files.unlock(self.held)
        except (ValueError, OSError) as error:
            self.error(error)
        except KeyboardInterrupt:
            self.exit(130, "stopped\n")
        except RuntimeError:
            if ranks.speaks():
                raise
            self.exit(2)  # the process that speaks has said why

    def parse_given(self, argv: list[str] | None) -> tuple["RunSettings", set[str]]:
        """The settings, and the names of those that were given."""
        self.words = sys.argv[1:] if argv is None else argv  # for the record
        absent = object()
        values = argparse.Namespace(**dict.fromkeys(vars(self.settings()), absent))
        values = vars(self.parse_args(argv, values))
        given = {name: value for name, value in values.items() if value is not absent}
        return self.settings(**given), set(given)


# ---------------------------------------------------------------- what an option's value may be

# What makes an option's value of a text, or its choices; bool makes --name and --no-name.
Kind = Callable[[str], Any] | tuple


def number(rule: str, allowed: Callable[[float], bool], kind: type = float) -> Kind:
    """What makes a number of a text, which may be a fraction such as 8/255. `rule` says in words
    what is `allowed`."""

    def from_text(text: str) -> float:
        try:
            above, *below = map(float, text.split("/"))
            value = above / below[0] if len(below) == 1 else float(text)
        except (ValueError, ZeroDivisionError):
            raise argparse.ArgumentTypeError(f"{text!r} is no number: it must {rule}") from None
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must {rule}")
        return kind(value)

    return from_text


def count(text: str, most: int = 10**9, least: int = 1) -> int:
    rule = f"be a whole number, at least {least}, at most {most:,}"
    return number(rule, lambda v: least <= v <= most and v.is_integer(), int)(text)


count_or_0, seed = partial(count, least=0), partial(count, least=0, most=2**53 - 1)
experts, threads = partial(count, most=100), partial(count, most=1024)
side = partial(count, most=10_000)
depth = number("be 6n + 2, up to 1202", lambda v: 2 <= v <= 1202 and v.is_integer(), int)
radius = number("lie in (0, 1], pixels being in [0, 1]", lambda v: 0 < v <= 1)
radius_or_0 = number("lie in (0, 1], or be 0: no attack in training", lambda v: 0 <= v <= 1)
positive = number("be positive, up to a million", lambda v: 0 < v <= 1e6)
positive_or_inf = number("be positive, up to a million, or inf", lambda v: 0 < v <= 1e6 or v == inf)
not_negative = number("be 0 or more, up to a million", lambda v: 0 <= v <= 1e6)
fraction = number("lie in (0, 1)", lambda v: 0 < v < 1)
share = number("lie in [0, 1]", lambda v: 0 <= v <= 1)
percent = number("lie in [0, 100]", lambda v: 0 <= v <= 100)
finite = number("be finite", isfinite)


def part(text: str) -> tuple[int, int]:
    """I/K -> (I, K). Raises ValueError unless 1 <= I <= K."""
    i, k = map(int, text.split("/"))
    if not 1 <= i <= k:
        raise ValueError
    return i, k


# ------------------------------------------------------------------- options of training scripts


def option(default: object, kind: Kind, text: str):
    """A field of a dataclass of settings that is an option as well."""
    return dataclasses.field(default=default, metadata={"kind": kind, "text": text})


@dataclasses.dataclass
class RunSettings:
    """the run and the machine"""

    data: str = option(
        "digits", str, "digits, cifar10, cifar100, a FILE.npz, or a folder of class folders"
    )
    size: int = option(None, side, "side of a folder's images, a multiple of 4 (default: 32)")
    test_share: float = option(
        None, fraction, "test images' part of a folder without train and test (default: 0.2)"
    )
    out: str = option(None, str, "the run's folder (default: a new one in runs, named by settings)")
    resume: str = option(None, str, "resume the run in this folder")
    seed: int = option(0, seed, "of weights, order and all that is random")
    device: str = option(None, str, "cuda, mps or cpu (default: the first available)")
    threads: int = option(
        None, threads, "CPU threads (default: torch's own number; 1 is faster beside other work)"
    )
    compile: bool = option(None, bool, "torch.compile, a minute at first (default: on a GPU)")
    graph: bool = option(None, bool, "a step as one CUDA graph (default: on a GPU)")
    precision: str = option(
        None,
        ("bfloat16", "float32"),
        "of training; evaluation is float32 (default: bfloat16 where the hardware has it)",
    )


def kinds(settings: type) -> dict[str, Kind]:
    """{name: kind} of all options in a dataclass of settings; name? where None is the default."""
    fields = [field for base in settings.__mro__[:-1] for field in dataclasses.fields(base)]
    return {f.name + "?" * (f.default is None): f.metadata["kind"] for f in fields if f.metadata}


def check(value: object, kind: Kind | dict | list, name: str) -> None:
    """Raises ValueError where a value, of a checkpoint say, is not of its kind: an option's, [kind]
    of a list, {name: kind} of a dictionary, in which name? may be None or missing."""
    if isinstance(kind, dict):
        fits = isinstance(value, dict)
        for key, of_key in kind.items() if fits else ():
            item = value.get(key.rstrip("?"))
            if item is not None or key[-1] != "?":
                check(item, of_key, key.rstrip("?"))
    elif isinstance(kind, list):
        fits = isinstance(value, list)
        for item in value if fits else ():
            check(item, *kind, name)
    elif isinstance(kind, tuple):
        fits = type(value) is type(kind[0]) and value in kind
    elif isinstance(kind, type):
        fits = isinstance(value, kind)
    else:
        try:
            made = kind(str(value))
            fits = made == value and type(value) in (type(made), int)
        except (argparse.ArgumentTypeError, ValueError):
            fits = False
    if not fits:
        raise ValueError(f"its {name} is {value!r:.40}, which cannot be")


def training_parser(settings: type, description: str = "", prog: str = "") -> Parser:
    """A parser of the fields of a dataclass. Each class that it extends is a group of --help; a
    class that repeats a field, without `option`, changes only its default."""
    parser = Parser(description, prog, settings)
    for base in reversed(settings.__mro__[:-1]):
        group = parser.add_argument_group(base.__doc__)
        for name in base.__annotations__:
            if not (told := base.__dataclass_fields__[name].metadata):
                continue
            kind, words = told["kind"], flag(name)
            if kind is bool:
                values = {"action": argparse.BooleanOptionalAction}
            elif isinstance(kind, tuple):
                values = {"choices": kind}
            else:
                values = {"type": kind, "metavar": words[2:].upper()}
            group.add_argument(words, dest=name, help=told["text"], **values)
    parser.set_defaults(**vars(settings()))
    return parser


def add_device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", help="cuda, mps or cpu (default: the first available)")


def flag(name: str) -> str:
    """A field's name as it is typed: lambda_ -> --lambda."""
    return "--" + name.strip("_").replace("_", "-")


def default_epochs(data_name: str) -> int:
    return 8 if data_name == "digits" else 100  # held-out digits: 16 gain less than a point


# ------------------------------------------------------------------------- devices and precision


def pick_device(name: str | None) -> torch.device:
    """`name`, or cuda, else mps, else cpu. Raises ValueError for a device that is not there."""
    available = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    available.append("cpu")
    try:
        device = torch.device(name or available[0])
        torch.zeros(1, device=device).item()
        torch.backends.cudnn.allow_tf32 = False  # else float32 convolutions round to 10 bits
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # where graphs and streams are made
    except (RuntimeError, AssertionError, ImportError):
        raise ValueError(f"no device {name!r}: this machine has {', '.join(available)}") from None
    return device


def best_precision(device: torch.device) -> str:
    """bfloat16 where the hardware multiplies it: CUDA from Ampere on, CPUs with AMX or AVX-512.

    Else float32. Older GPUs have float16, but in it the attack's gradient becomes 0 where an expert
    is sure of an image, and no single factor scales the gradients of all images.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    queries = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    if device.type == "cpu" and any(getattr(torch.cpu, query, bool)() for query in queries):
        return "bfloat16"
    return "float32"


def why_precision(device: torch.device, precision: str) -> str:
    """The reason for training in this precision."""
    if precision != best_precision(device):
        return "as asked"
    if precision == "bfloat16":
        return "which this hardware multiplies"
    return f"as this {'GPU' if device.type == 'cuda' else 'machine'} has no bfloat16 in hardware"


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
