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

import torch
from torch import Tensor, nn

from exercises import constant, generator, shaped
from models import Collaboration, ResNet
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


def after(name: str, M: int) -> Callable:
    """A stage's loss on six images by M small experts, the same every time."""

    def of(own: object) -> tuple[nn.Module, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(0).initial_seed())
            model = Collaboration([ResNet(2, 1, 4, 8) for _ in range(M)], "rectified")
            x, y = torch.rand(6, 1, 8, 8), torch.randint(4, (6,))
            loss = getattr(own, name)(model, x, y, Namespace(**SETTINGS, n=M))
        return model, shaped(loss)

    return of


def value_of(run: Callable) -> Callable:
    return lambda own: run(own)[1]


def gradients(run: Callable) -> Callable:
    def probe(own: object) -> dict[str, Tensor]:
        model, loss = run(own)
        loss.backward()
        zero = torch.zeros(1)
        return {
            f"the gradient for {name}": zero if w.grad is None else w.grad
            for name, w in model.named_parameters()
        }

    return probe


def statistics(run: Callable) -> Callable:
    def probe(own: object) -> dict[str, Tensor]:
        model, _ = run(own)
        told = {"1 if it ends in train mode": torch.tensor(model.training)}
        for name, norm in model.named_modules():
            if isinstance(norm, nn.BatchNorm2d):
                told[f"batches that {name} saw"] = norm.num_batches_tracked
                told[f"100 times the mean that {name} keeps"] = 100 * norm.running_mean
        return told

    return probe


PROPERTIES = {}
for name, value in (("stage1_loss", 3), ("stage2_loss", 2)):
    stage, run = name[:6], after(name, 3)
    PROPERTIES |= {
        (name, value, f"{stage}: the loss is M (clean + adversarial)"): {
            f"{stage}, {M} experts": value_of(after(name, M)) for M in (3, 2)
        },
        (name, value - 1, f"{stage}: every expert learns what it should"): {
            f"{stage}, 3 experts' gradients": gradients(run)
        },
        (name, 1, f"{stage}: batch norm sees the clean batch, then the adversarial one"): {
            f"{stage}, batch norm": statistics(run)
        },
    }

# -------------------------------------------------------------------------- for the judge alone
