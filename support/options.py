"""The options that all training scripts share; devices and precision."""

import argparse
import importlib.util
import os
import platform
import shlex
import sys
from contextlib import contextmanager
from functools import partial
from math import inf

import torch

from support import files

# These may stand beside --resume.
MOVABLE = {"data", "device", "precision", "threads", "compile", "graph"}


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each default, but where the help itself says what it is, or on what it depends."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = not action.default or "(default" in action.help
        return action.help if told else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, with exit status 2."""

    def __init__(self, description: str, prog: str):
        script = shlex.quote(sys.argv[0]) if os.path.basename(sys.argv[0]) == prog else prog
        self.typed = f"python {script}"  # from another folder, say
        super().__init__(f"python {prog}", description=description, formatter_class=Formatter)

    def parse_args(self, *of, **how) -> argparse.Namespace:
        if sys.stdout is sys.__stdout__ is not None:  # not a test's, or a notebook's
            sys.stdout.reconfigure(errors="replace")  # a locale may have no sign for ±
        return super().parse_args(*of, **how)

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
        """Within it, bad input ends with one line and status 2, Ctrl-C with one and status 130. A
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

    def parse_given(self, argv: list[str] | None) -> tuple[argparse.Namespace, set[str]]:
        """The settings, and the names of those that were given."""
        self.words = sys.argv[1:] if argv is None else argv  # for the record
        absent = object()
        names = vars(self.parse_args([]))
        given = vars(self.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, absent))))
        given = {name: value for name, value in given.items() if value is not absent}
        return argparse.Namespace(**names | given), set(given)

    def check_values(self, settings: dict) -> None:
        """Raises ValueError where a setting, of a checkpoint say, is none that its flag takes."""
        no_attack = settings.get("eps") == 0 == settings.get("alpha")
        for action in self._actions:
            value = settings.get(action.dest)
            if value is None or (no_attack and action.dest == "alpha"):  # None: it was not given
                continue
            try:
                same = isinstance(value, bool) if action.nargs == 0 else True
                if action.choices:
                    same = value in action.choices
                elif action.type:
                    same = not isinstance(value, bool | str) and action.type(str(value)) == value
            except (argparse.ArgumentTypeError, TypeError, ValueError):
                same = False
            if not same:
                raise ValueError(f"its setting {action.dest} is {value!r:.40}, which cannot be")


# ---------------------------------------------------------------- what an option's value may be


def number(text: str, what: str, allowed) -> float:
    """A number, or a fraction such as 8/255."""
    try:
        above, *below = map(float, text.split("/"))
        value = above / below[0] if len(below) == 1 else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number: it must {what}") from None
    if not allowed(value):
        raise argparse.ArgumentTypeError(f"{text} is out of range: it must {what}")
    return value


def radius(text: str) -> float:
    return number(text, "lie in (0, 1], pixels being in [0, 1]", lambda v: 0 < v <= 1)


def radius_or_0(text: str) -> float:
    return number(text, "lie in (0, 1], or be 0: no attack in training", lambda v: 0 <= v <= 1)


def positive(text: str) -> float:
    return number(text, "be positive, up to a million", lambda v: 0 < v <= 1e6)


def positive_or_inf(text: str) -> float:
    return number(text, "be positive, up to a million, or inf", lambda v: 0 < v <= 1e6 or v == inf)


def not_negative(text: str) -> float:
    return number(text, "be 0 or more, up to a million", lambda v: 0 <= v <= 1e6)


def share(text: str) -> float:
    return number(text, "lie in (0, 1)", lambda v: 0 < v < 1)


def count(text: str, most: int = 10**9, least: int = 1) -> int:
    what = f"be a whole number, at least {least}, at most {most:,}"
    return int(number(text, what, lambda v: least <= v <= most and v.is_integer()))


def part(text: str) -> tuple[int, int]:
    """I/K -> (I, K). Raises ValueError unless 1 <= I <= K."""
    i, k = map(int, text.split("/"))
    if not 1 <= i <= k:
        raise ValueError
    return i, k


count_or_0 = partial(count, least=0)
experts, threads = partial(count, most=100), partial(count, most=1024)


def depth(text: str) -> int:
    return int(number(text, "be 6n + 2, up to 1202", lambda v: 2 <= v <= 1202 and v.is_integer()))


def seed(text: str) -> int:
    what = "be a whole number, at least 0, less than 2^53"
    return int(number(text, what, lambda v: 0 <= v < 2**53 and v.is_integer()))


# ------------------------------------------------------------------- options of training scripts


def training_parser(description: str, prog: str, eps_type=radius) -> Parser:
    """A parser of the options that all methods share. A method adds those of its own loss."""
    parser, flag = Parser(description, prog), argparse.BooleanOptionalAction
    add = parser.add_argument_group("the run").add_argument
    what = "digits, cifar10, a FILE.npz, or a folder with a folder of images for each class"
    add("--data", default="digits", help=what)
    what = "side that the images of a folder are scaled to, a multiple of 4 (default: 32)"
    add("--size", type=count, help=what)
    what = "share of a folder's images for testing, where it has no train and test (default: 0.2)"
    add("--test-share", type=share, help=what)
    what = "folder of the run (default: a new one in runs, named by its settings)"
    add("--out", metavar="DIR", help=what)
    add("--resume", metavar="DIR", help="resume the run in this folder")
    what = "seed of the weights, the order of images and all else that is random"
    add("--seed", type=seed, default=0, help=what + " (default: 0)")
    parser.method = parser.add_argument_group("the method")
    add = parser.method.add_argument
    add("--n", type=experts, default=3, help="M, the number of experts")
    add("--depth", type=depth, default=20, help="depth of each ResNet: 2, 8, 14, 20 ..")
    add = parser.add_argument_group("the attack in training, PGD").add_argument
    what = "epsilon, its radius: l-infinity, pixels in [0, 1], or a fraction such as 8/255"
    add("--eps", type=eps_type, default=0.03, help=what)
    add("--steps", type=count, default=10, help="S, its steps")
    add("--alpha", type=positive, help="alpha, the size of a step (default: eps / 3)")
    what = "start at a random point of the ball"
    add("--random-start", action=flag, default=False, help=what)
    add = parser.add_argument_group("learning").add_argument
    what = "epochs of all stages together (default: 16 on digits, else 100)"
    add("--epochs", type=count, help=what)
    add("--batch-size", type=count, default=128, help="training images a step")
    what = "SGD with momentum 0.9, or Adam"
    add("--optimizer", choices=("sgd", "adam"), default="sgd", help=what)
    what = "learning rate, divided by 10 at 1/2 and 3/4 of each stage (default: 0.1; Adam: 0.001)"
    add("--lr", type=positive, help=what)
    what = "random crop and flip (default: for 32 x 32 colour images)"
    add("--augment", action=flag, help=what)
    group = parser.add_argument_group("the machine")
    add_device(group)
    what = "CPU threads per operation (default: torch's own number, one for each core)"
    group.add_argument("--threads", metavar="N", type=threads, help=what)
    what = "torch.compile the networks; the first step then takes a minute (default: on a GPU)"
    group.add_argument("--compile", action=flag, help=what)
    group.add_argument("--graph", action=flag, help="a step as one CUDA graph (default: on a GPU)")
    what = "of training; evaluation is float32 (default: bfloat16 where the hardware has it)"
    group.add_argument("--precision", choices=("bfloat16", "float32"), help=what)
    return parser


def add_device(parser: argparse._ActionsContainer) -> None:
    what = "cuda, mps or cpu (default: the first of them that is there)"
    parser.add_argument("--device", help=what)


def default_epochs(data_name: str) -> int:
    return 16 if data_name == "digits" else 100


# ------------------------------------------------------------------------- devices and precision


def pick_device(name: str | None) -> torch.device:
    """`name`, or cuda, else mps, else cpu. Raises ValueError for a device that is not there."""
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there.insert(0, "cuda")
    try:
        device = torch.device(name or there[0])
        torch.zeros(1, device=device).item()
        torch.backends.cudnn.allow_tf32 = False  # else float32 convolutions round to 10 bits
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # where graphs and streams are made
    except (RuntimeError, AssertionError, ImportError):
        raise ValueError(f"no device {name!r}: this machine has {', '.join(there)}") from None
    return device


def best_precision(device: torch.device) -> str:
    """bfloat16 where the hardware multiplies it: CUDA from Ampere on, CPUs with AMX or AVX-512.

    Else float32. float16, which older GPUs have, is no choice: where an expert is sure of an image,
    the attack's gradient becomes 0 in it, and no one factor scales the gradients of all images.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    queries = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    if device.type == "cpu" and any(getattr(torch.cpu, query, bool)() for query in queries):
        return "bfloat16"
    return "float32"


def why_precision(device: torch.device, precision: str) -> str:
    """Why training is in this precision, in a few words."""
    if precision != best_precision(device):
        return "as asked"
    if precision == "bfloat16":
        return "which this hardware multiplies"
    return f"as this {'GPU' if device.type == 'cuda' else 'machine'} has no bfloat16 in hardware"


def compile_pays(device: torch.device) -> bool:
    """On a GPU, where torch.compile has what it needs; elsewhere only on request."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
