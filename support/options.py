"""The options that all training scripts share; devices and precision."""

import argparse
import dataclasses
import os
import platform
import shlex
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from math import inf

import torch

from support import files

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
        script = shlex.quote(sys.argv[0]) if os.path.basename(sys.argv[0]) == prog else prog
        self.typed = f"python {script}"  # as typed, perhaps from another folder
        super().__init__(f"python {prog}", description=description, formatter_class=Formatter)
        if sys.stdout is sys.__stdout__ is not None:  # not a test's, or a notebook's
            sys.stdout.reconfigure(errors="replace")  # a locale may have no sign for ±

    def exit(self, status: int = 0, message: str | None = None):
        first = os.environ.get("RANK", "0") == "0"  # torchrun starts many, and one speaks
        super().exit(status, message if first else None)

    def error(self, message: object):
        name = self.prog.removeprefix("python ").removeprefix("-m ")
        if isinstance(message, OSError) and message.filename:
            message = f"{message.filename}: {message.strerror}"
        self.exit(2, f"{name}: error: {' '.join(str(message).split())}\n")

    @contextmanager
    def errors_in_one_line(self, alone: bool = True):
        """Ends with one line and status 2 after bad input, with one and status 130 after Ctrl-C. A
        script that runs `alone` refuses to be one of several processes."""
        try:
            if alone and "WORLD_SIZE" in os.environ:
                raise ValueError("not under torchrun: this runs in one process")
            yield
        except (ValueError, OSError) as error:
            self.error(error)
        except KeyboardInterrupt:
            self.exit(130, "stopped\n")
        except RuntimeError:
            if os.environ.get("RANK", "0") == "0":
                raise
            self.exit(2)  # the process that speaks has said why
        finally:
            files.give_up_claims()

    def parse_given(self, argv: list[str] | None) -> tuple["RunSettings", set[str]]:
        """The settings, and the names of those that were given."""
        self.words = sys.argv[1:] if argv is None else argv  # for the record
        defaults, absent = vars(self.parse_args([])), object()
        values = argparse.Namespace(**dict.fromkeys(defaults, absent))
        values = vars(self.parse_args(argv, values))
        given = {name: value for name, value in values.items() if value is not absent}
        return self.settings(**defaults | given), set(given)


# ---------------------------------------------------------------- what an option's value may be


def number(text: str, rule: str, allowed: Callable[[float], bool]) -> float:
    """A number, or a fraction such as 8/255. `rule` says in words what is `allowed`."""
    try:
        above, *below = map(float, text.split("/"))
        value = above / below[0] if len(below) == 1 else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number: it must {rule}") from None
    if not allowed(value):
        raise argparse.ArgumentTypeError(f"{text} is out of range: it must {rule}")
    return value


def count(text: str, most: int = 10**9, least: int = 1) -> int:
    rule = f"be a whole number, at least {least}, at most {most:,}"
    return int(number(text, rule, lambda v: least <= v <= most and v.is_integer()))


def depth(text: str) -> int:
    return int(number(text, "be 6n + 2, up to 1202", lambda v: 2 <= v <= 1202 and v.is_integer()))


def numbers(rule: str, allowed: Callable[[float], bool]) -> Callable[[str], float]:
    return partial(number, rule=rule, allowed=allowed)


radius = numbers("lie in (0, 1], pixels being in [0, 1]", lambda v: 0 < v <= 1)
radius_or_0 = numbers("lie in (0, 1], or be 0: no attack in training", lambda v: 0 <= v <= 1)
positive = numbers("be positive, up to a million", lambda v: 0 < v <= 1e6)
positive_or_inf = numbers(
    "be positive, up to a million, or inf", lambda v: 0 < v <= 1e6 or v == inf
)
not_negative = numbers("be 0 or more, up to a million", lambda v: 0 <= v <= 1e6)
fraction = numbers("lie in (0, 1)", lambda v: 0 < v < 1)
count_or_0, seed = partial(count, least=0), partial(count, least=0, most=2**53 - 1)
experts, threads = partial(count, most=100), partial(count, most=1024)


def part(text: str) -> tuple[int, int]:
    """I/K -> (I, K). Raises ValueError unless 1 <= I <= K."""
    i, k = map(int, text.split("/"))
    if not 1 <= i <= k:
        raise ValueError
    return i, k


# ------------------------------------------------------------------- options of training scripts


def option(default: object, kind: Callable[[str], object] | tuple, text: str):
    """A field of a dataclass of settings that is an option as well. `kind` makes its value from a
    text, or holds the choices; bool makes --name and --no-name."""
    return dataclasses.field(default=default, metadata={"kind": kind, "text": text})


@dataclasses.dataclass
class RunSettings:
    """the run and the machine"""

    data: str = option("digits", str, "digits, cifar10, a FILE.npz, or a folder of class folders")
    size: int = option(None, count, "side of a folder's images, a multiple of 4 (default: 32)")
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


def check_values(settings: dict, kinds: dict[str, Callable | tuple]) -> None:
    """Raises ValueError where a setting, of a checkpoint say, has a value that its option refuses.
    None stands for an option that was not given."""
    for name, kind in kinds.items():
        value = settings.get(name)
        no_attack = name == "alpha" and value == settings.get("eps") == 0
        if value is None or no_attack:
            continue
        try:
            if isinstance(kind, tuple):
                fits = value in kind
            elif kind in (bool, str):
                fits = isinstance(value, kind)
            else:
                fits = not isinstance(value, bool | str) and kind(str(value)) == value
        except (argparse.ArgumentTypeError, TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(f"its setting {name} is {value!r:.40}, which cannot be")


def kinds(settings: type) -> dict[str, Callable | tuple]:
    """{name: kind} of all options in a dataclass of settings."""
    fields = [field for base in settings.__mro__[:-1] for field in dataclasses.fields(base)]
    return {field.name: field.metadata["kind"] for field in fields if field.metadata}


def training_parser(settings: type, description: str = "", prog: str = "") -> Parser:
    """A parser of the fields of a dataclass. Each class that it extends is a group of --help; a
    class that repeats a field changes only its default."""
    parser, known = Parser(description, prog, settings), set()
    for base in reversed(settings.__mro__[:-1]):
        group = parser.add_argument_group(base.__doc__)
        for field in (base.__dataclass_fields__[name] for name in base.__annotations__):
            if field.name in known:
                parser.set_defaults(**{field.name: field.default})
                continue
            known.add(field.name)
            flag, kind = field.name.strip("_").replace("_", "-"), field.metadata["kind"]
            if kind is bool:
                values = {"action": argparse.BooleanOptionalAction}
            elif isinstance(kind, tuple):
                values = {"choices": kind}
            else:
                values = {"type": kind, "metavar": flag.upper()}
            values |= {"dest": field.name, "default": field.default, "help": field.metadata["text"]}
            group.add_argument(f"--{flag}", **values)
    return parser


def add_device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", help="cuda, mps or cpu (default: the first available)")


def default_epochs(data_name: str) -> int:
    return 16 if data_name == "digits" else 100


# ------------------------------------------------------------------------- devices and precision


def pick_device(name: str | None) -> torch.device:
    """`name`, or cuda, else mps, else cpu. Raises ValueError for a device that is not there."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available = [*(device for device in present if present[device]), "cpu"]
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
