"""The options of every training script, their defaults and checks; devices and precision."""

import argparse
import importlib.util
import math
import os
import platform
from argparse import Namespace

import torch

from data import Data
from models import CONFIDENCES

OPTIONS = {  # name: (default, type or choices, what it is); None: it depends, as the text says
    "data": ("digits", str, "digits, cifar10, or the path of a FILE.npz"),
    "eps": (0.03, float, "epsilon, the attack's radius: l-infinity, pixels in [0, 1]"),
    "n": (3, int, "M, the number of experts"),
    "depth": (20, int, "depth of each ResNet, 6n + 2"),
    "epochs": (None, int, "epochs of all stages together (default: 16 on digits, else 100)"),
    "sigma": (1.0, float, "sigma, the smoothness of the minimum in Eq. 7"),
    "lambda_": (1.0, float, "lambda, the weight of the confidence loss"),
    "confidence": (
        "ehead",
        CONFIDENCES,
        "the score: the E head's g alone, or max_k f_k * g as in the authors' code",
    ),
    "weights": (
        "best",
        ("best", "confidence"),
        "stage 2's weights of the experts: Eq. 7's, or softmax(max_k f_k * g) as in their code",
    ),
    "steps": (10, int, "steps of the training attack, PGD"),
    "alpha": (None, float, "alpha, the size of such a step (default: eps / 3)"),
    "random_start": (False, bool, "start that attack at a random point of the ball"),
    "batch_size": (128, int, "training images a step"),
    "optimizer": ("sgd", ("sgd", "adam"), "SGD with momentum 0.9, or Adam"),
    "lr": (
        None,
        float,
        "learning rate, divided by 10 at 1/2 and 3/4 of each stage (default: 0.1; Adam: 0.001)",
    ),
    "augment": (None, bool, "random crop and flip (default: for 32 x 32 colour images)"),
    "seed": (0, int, "seed of the weights, the order of images and all else that is random"),
    "out": (None, str, "folder of the run (default: a new one in runs, named by its settings)"),
    "submodels": (None, str, "checkpoint of stage 1; all epochs are then stage 2's"),
    "device": (None, str, "cuda, mps or cpu (default: the first of them that is there)"),
    "compile": (
        None,
        bool,
        "torch.compile and CUDA graphs; the first steps are then slow (default: on a GPU)",
    ),
    "precision": (
        None,
        ("bfloat16", "float32"),
        "of training; evaluation is float32 (default: bfloat16 where the hardware has it)",
    ),
}


ONLY_SOE = ("sigma", "lambda_", "confidence", "weights", "submodels")
MAY_BE_0 = ("lambda_", "entropy", "diversity", "coherence", "noise", "slope")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, with exit status 2."""

    defaults: dict[str, object]  # of a training script's settings, by name
    eps_may_be_0 = False

    def __init__(self, description: str, **kwargs):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )

    def error(self, message: object):
        line = f"{self.prog}: error: {' '.join(str(message).split())}\n"
        self.exit(2, line if os.environ.get("RANK", "0") == "0" else None)  # torchrun starts many


def flag(name: str) -> str:
    """batch_size -> --batch-size, lambda_ -> --lambda."""
    return "--" + name.strip("_").replace("_", "-")


def training_parser(
    description: str, prog: str, leave_out: tuple[str, ...] = (), own: dict | None = None
) -> Parser:
    """A parser of OPTIONS and --resume; what is not given is absent from its result.

    `own` are options of one method alone, in the same form; its .defaults are those of all.
    """
    parser = Parser(description, prog=prog, argument_default=argparse.SUPPRESS)
    table = {name: row for name, row in OPTIONS.items() if name not in leave_out} | (own or {})
    parser.defaults = {name: default for name, (default, *_) in table.items()}
    for name, (default, kind, text) in table.items():
        what = {"type": kind, "metavar": name.strip("_").upper()}
        if kind is bool:
            what = {"action": argparse.BooleanOptionalAction}
        elif isinstance(kind, tuple):
            what = {"choices": kind}
        text += "" if default is None else f" (default: {default})"
        parser.add_argument(flag(name), dest=name, help=text, **what)
    parser.add_argument("--resume", metavar="DIR", help="go on with the run in this folder")
    return parser


def baseline_parser(
    description: str, prog: str, changed: dict | None = None, own: dict | None = None
) -> Parser:
    """The parser of a rival of SoE: its `own` options, and other defaults where it has `changed`
    some. `--eps 0` means no adversarial training."""
    rows = dict(own or {})
    for name, value in (changed or {}).items():
        _, kind, text = OPTIONS[name]
        rows[name] = (value, kind, text.split(" (default")[0])
    parser = training_parser(description, prog, ONLY_SOE, rows)
    parser.eps_may_be_0 = True
    return parser


def check(settings: Namespace, eps_may_be_0: bool = False) -> None:
    """Raises ValueError for a number that makes no sense, saying which would."""
    if not (eps_may_be_0 and settings.eps == 0):
        check_eps(settings.eps)
    for name, value in vars(settings).items():
        if isinstance(value, float) and name in MAY_BE_0 and not 0 <= value < math.inf:
            raise ValueError(f"{flag(name)} is {value}: it must be 0 or more")
        if isinstance(value, float) and name != "eps" and name not in MAY_BE_0:
            if not 0 < value < math.inf:
                raise ValueError(f"{flag(name)} is {value}: it must be positive")
        if type(value) is int and name not in ("seed", "depth") and value < 1:
            raise ValueError(f"{flag(name)} is {value}: it must be at least 1")
    check_seed(settings.seed)


def check_eps(eps: float) -> None:
    if not 0 < eps <= 1:
        raise ValueError(f"--eps is {eps}: it must lie in (0, 1], pixels being in [0, 1]")


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed is {seed}: it must lie between 0 and 2^63 - 1")


def fill_in(settings: Namespace, dataset: Data) -> None:
    """Sets what depends on the data or on other settings."""
    settings.steps_per_epoch = max(1, len(dataset.x_train) // settings.batch_size)
    settings.data_name, settings.num_classes = dataset.name, dataset.num_classes
    settings.image_shape, settings.data_checksum = list(dataset.image_shape), dataset.checksum
    if settings.alpha is None:
        settings.alpha = settings.eps / 3  # the authors' 0.01 at eps 0.03
    if settings.lr is None:
        settings.lr = {"sgd": 0.1, "adam": 1e-3}[settings.optimizer]
    if settings.augment is None:
        settings.augment = dataset.image_shape == (3, 32, 32)
    if settings.epochs is None:
        settings.epochs = default_epochs(settings.data)


def default_epochs(data_name: str) -> int:
    return 16 if data_name == "digits" else 100


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
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # where graphs and streams are made
    except (RuntimeError, AssertionError, ImportError):
        raise ValueError(f"no device {name!r}: this machine has {', '.join(there)}") from None
    return device


def best_precision(device: torch.device) -> str:
    """bfloat16 where the hardware multiplies it: CUDA from Ampere on, CPUs with AMX or AVX-512."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    queries = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    if device.type == "cpu" and any(getattr(torch.cpu, query, bool)() for query in queries):
        return "bfloat16"
    return "float32"


def compile_pays(device: torch.device) -> bool:
    """On a GPU, where torch.compile has what it needs; elsewhere only on request."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
