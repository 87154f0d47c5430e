"""Exercise 7: the losses of both stages
50 minutes; the main paper's Algorithms 1 and 2

In stage 1 every expert is attacked alone; all experts learn from all of these images, and from the
clean ones, each image mostly by whichever expert handles it best. In stage 2 the attack is on what
inference returns. `attack_each_expert`, `clean_and_attacked` and `sample_loss` are there. Mind the
modes: an attack must neither see nor move batch statistics. The probes have the default reading,
sigma = 10 and the rectified score.

In words: what can stage 2's attack reach that stage 1's cannot, and what can neither? Derive the
cost of a batch, in forward passes of one expert, of either stage.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial

from torch import Tensor

from exercises import constant, networks
from models import Collaboration
from train_collab import sample_loss  # noqa: F401  what changed functions call
from train_submodel import attack_each_expert  # noqa: F401

USES = """from train_submodel import SoESettings
from train_submodel import attack_each_expert, clean_and_attacked, sample_loss"""
TASKS = """
stage1_loss | train_submodel | M times the sum of two means of sample_loss: over the clean batch
    x [B, C, H, W], y [B], and over the M * B images that attack_each_expert makes of it, expert
    after expert. First comes the attack, in eval mode; then, in train mode, the clean batch, and
    last the adversarial one, each one batch for batch norm. Ends in train mode, with no gradient
    left by the attack. settings.n is M; eps is above 0.
stage2_loss | train_collab | The same with one adversarial batch: x [B, C, H, W] under
    PGD on the whole model. clean_and_attacked returns both batches.
"""
TOLERANCE = 1e-4
HOW = {"alpha": 0.05, "steps": 4, "random_start": False, "weights": "best", "lambda_": 0.7}
SETTINGS = HOW | {"eps": constant(0.1), "sigma": constant(10)}


def parts(name: str, M: int, kind: str) -> Callable:
    """A probe: the parts of this kind of what a stage's loss makes of M experts."""
    combined = partial(Collaboration, confidence="rectified")

    def probe(own: object) -> dict[str, Tensor]:
        told = networks.loss_and_gradients(getattr(own, name), combined, Namespace(**SETTINGS, n=M))
        return {part: value for part, value in told.items() if part.startswith(kind)}

    return probe


PROPERTIES = {}
for name, value in (("stage1_loss", 3), ("stage2_loss", 2)):
    stage = name[:6]
    PROPERTIES |= {
        (name, value, f"{stage}: the loss is M (clean + adversarial)"): {
            f"{stage}, {M} experts": parts(name, M, "the value") for M in (3, 2)
        },
        (name, value - 1, f"{stage}: every expert learns what it should"): {
            f"{stage}, 3 experts' gradients": parts(name, 3, "the gradient")
        },
        (name, 1, f"{stage}: batch norm sees the clean batch, then the adversarial one"): {
            f"{stage}, batch norm": parts(name, 3, "left behind")
        },
    }

# -------------------------------------------------------------------------- for the judge alone
