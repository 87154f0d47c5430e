"""Exercise 11: judge a claim
75 minutes; Tables 3 and 4, appendix 4.2

"More robust" needs a figure that an attacker cannot lower, choosing the attack for each image, and
an interval. You get what two methods had correct, column by column: each an array of 0 and 1,
[S, N], S seeds of training in the same order, the same N test images. It is yours to choose which
columns to believe, what to pair, and what one independent observation is: the claim is about other
images, and about other training runs. The probes are measured results, experiments/results.

In words (200): pick a claim of the paper's Table 3 or appendix 4.2. Say which unit, pairing and
column it rests on, what you would have to measure to believe it, and what our results say.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from exercises import KEY, constant
from experiments import records

CUT = """
interval | experiments.intervals
paired_difference | experiments.intervals
"""
TASKS = """
difference | (ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> tuple[float, float] |
    How many points more robust ours is than theirs, and the standard error of that, in points.
    Columns: clean, and under pgd, apgd, square, adaptive (where a method has it). The error's
    square has a term for each kind of thing that the claim is about, if there are several: the
    variance (n - 1) of the means of that kind, over their number.
verdict | (difference: float, error: float) -> int | 1 where the 95 % interval, normal, says "more",
    -1 where it says "less", 0 where nothing is decided.
"""
ATTACKS = ("pgd", "apgd", "square", "adaptive")
TRAP = "-sigma1-confidenceehead"  # in the names of older records


def measured(method: str, depth: int, seeds: int = 3) -> dict[str, np.ndarray]:
    """What a method had correct in our records, {column: [S, N]}."""
    name = f"compare/digits-{method}-depth{depth}-n3-eps0.1-epochs30-seed"
    runs = [records.stored()[f"{name}{seed}.json"]["correct"] for seed in range(seeds)]
    columns = [column for column in ("clean", *ATTACKS) if column in runs[0]]
    return {c: np.array([list(map(int, run[c])) for run in runs], dtype=float) for c in columns}


def made_up(seed: int) -> dict[str, np.ndarray]:
    """Of two seeds on 40 images, some of which are hard for all."""
    rng = np.random.default_rng([seed, *KEY.encode()])
    hard = rng.random(40) < 0.4
    return {c: ((rng.random((2, 40)) < 0.85) & ~hard).astype(float) for c in ("clean", *ATTACKS)}


def compared(ours: Callable, theirs: Callable) -> Callable:
    return lambda own: dict(zip(("difference", "error"), own.difference(ours(), theirs())))


def with_soe(method: str, seeds: int = 3) -> Callable:
    """SoE and another method at depth 2, as measured."""
    return compared(partial(measured, "soe", 2, seeds), partial(measured, method, 2, seeds))


PAIRS = [
    (d * constant(1), e) for d in (-3, -1.8, -0.5, 0, 0.5, 1.5, 1.8, 1.97, 3) for e in (0.2, 1)
]


def verdicts(own: object) -> dict[str, int]:
    return {f"{d:+g} +- {error}": own.verdict(d, error) for d, error in [*PAIRS, (0.0, 0.0)]}


PROPERTIES = {
    ("difference", 3, "the right unit, pairing and column: of numbers made up"): {
        "two methods made up, two seeds": compared(partial(made_up, 0), partial(made_up, 1))
    },
    ("difference", 3, "and of our own results"): {
        "SoE and the ensemble trained together, depth 2": with_soe("plain-together"),
        "SoE and MoRE, depth 2": with_soe("more"),
        "SoE at sigma = 1, with and without stage 2, depth 8": compared(
            partial(measured, f"soe{TRAP}", 8), partial(measured, f"soe-stage1{TRAP}", 8)
        ),
    },
    ("difference", 2, "one seed, too, has an error"): {
        "SoE and MoRE, depth 2, seed 0 alone": with_soe("more", seeds=1)
    },
    ("verdict", 2, "a verdict needs an interval without 0"): {"verdicts": verdicts},
}

# -------------------------------------------------------------------------- for the judge alone


def worst(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Which images are correct whatever the attack, [S, N]."""
    return np.min(list(columns.values()), 0)


def difference(ours: dict, theirs: dict) -> tuple[float, float]:
    d = worst(ours) - worst(theirs)
    square = d.mean(0).var(ddof=1) / d.shape[1]
    if len(d) > 1:
        square += d.mean(1).var(ddof=1) / len(d)
    return 100 * float(d.mean()), 100 * float(square) ** 0.5


def verdict(difference: float, error: float) -> int:
    return 0 if abs(difference) <= 1.96 * error else 1 if difference > 0 else -1
