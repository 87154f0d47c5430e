"""The methods that SoE is compared with: each file is one loss(model, x, y, settings)."""

from argparse import Namespace
from support import options

from torch import nn

from models import Ensemble


def build(experts: list[nn.Module], settings: dict) -> nn.Module:
    """What `models.build` makes of its experts where settings["model"] is not the method's: the
    vote, MoRE's mixture, or one of experiments/; GAL's experts get leaky ReLUs.

    Raises ValueError for a model of another name.
    """
    if "slope" in settings:
        from baselines.gal import leaky

        experts = [leaky(expert, settings["slope"]) for expert in experts]
    match settings["model"]:
        case "ensemble":
            return Ensemble(experts)
        case "mixture":
            from baselines.more import Mixture

            return Mixture(experts)
        case "soft":
            from experiments.soft_synergy import SoftCollaboration

            return SoftCollaboration(experts, T=settings["temperature"])
    raise ValueError(f"unknown model {settings['model']!r}")


def add_clean_weight(parser: options.Parser) -> None:
    """--clean-weight, for a front of clean accuracy against robustness."""

    def weight(text: str) -> float:
        return options.number(text, "lie in [0, 2]", lambda w: 0 <= w <= 2)

    what = "W: clean images weigh W in the loss, attacked ones 2 - W"
    parser.method.add_argument("--clean-weight", metavar="W", type=weight, default=1.0, help=what)


def check_clean_weight(settings: Namespace) -> None:
    """Raises ValueError where there is nothing to weigh."""
    if settings.clean_weight != 1 and settings.eps == 0:
        raise ValueError("--clean-weight weighs clean images against attacked ones: not at --eps 0")


def weights(settings: Namespace) -> tuple[float, float]:
    """(W, 2 - W), the weights of the losses on clean and on attacked images."""
    W = getattr(settings, "clean_weight", 1.0)  # coursework has no such setting
    return W, 2 - W
