"""Exercise 11: judge a claim

"Beats" needs an interval. Write the difference of two methods' accuracies and its standard error,
from what they had correct image by image and seed by seed, and the verdict. The probes are the
project's measured results, in experiments/results: its README's claims are among those you judge.

In words (200): pick a claim of the paper's Table 3 or appendix 4.2. What would you have to measure
to believe it, and what does the project's table of claims say?
"""

from collections.abc import Callable

import numpy as np

from exercises import Property
from experiments import records

MINUTES, PAPER = 75, "Tables 3 and 4, appendix 4.2"
IMPORTS = "import numpy as np"
REBUILD: dict = {}
TWIST = {
    "difference": "How many points more `ours` has correct than `theirs`, and the standard error "
    "of that. Both are arrays of 0 and 1, [S, N]: S seeds, the same N images. The error's square "
    "is the variance of the images' mean differences over N, plus, with several seeds, the "
    "variance of the seeds' mean differences over S (both with n - 1).",
    "verdict": "1 where 1.96 standard errors do not reach 0 and the difference is above it, -1 "
    "where it is below, 0 where nothing is decided.",
}


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    d = ours - theirs
    square = d.mean(0).var(ddof=1) / d.shape[1]
    if len(d) > 1:
        square += d.mean(1).var(ddof=1) / len(d)
    return 100 * float(d.mean()), 100 * float(square) ** 0.5


def verdict(difference: float, error: float) -> int:
    return 0 if abs(difference) <= 1.96 * error else 1 if difference > 0 else -1


def measured(method: str, depth: int, column: str = "worst", seeds: int = 3) -> np.ndarray:
    """What a method had correct, [S, N], in our records."""
    name = f"compare/digits-{method}-depth{depth}-n3-eps0.1-epochs30-seed"
    found = [records.stored()[f"{name}{seed}.json"] for seed in range(seeds)]
    return np.array([list(map(int, result["correct"][column])) for result in found])


def judged(ours: str, theirs: str, depth: int, column: str = "worst", seeds: int = 3) -> Callable:
    """[difference, error, verdict] of two methods."""

    def probe(own: object) -> list[float]:
        pair = (measured(method, depth, column, seeds).copy() for method in (ours, theirs))
        points, error = own.difference(*pair)
        return [points, error, own.verdict(points, error)]

    return probe


HAND = np.array([[1, 1, 1, 0], [1, 1, 0, 0]]), np.array([[1, 0, 0, 0], [1, 0, 0, 1]])
PROBES = {
    "one seed, four images": lambda own: own.difference(*(of[:1].copy() for of in HAND)),
    "two seeds, four images": lambda own: own.difference(*(of.copy() for of in HAND)),
    "+2 +- 1, +1.9 +- 1, -3 +- 1, 0 +- 0": lambda own: [
        own.verdict(*pair) for pair in ((2.0, 1.0), (1.9, 1.0), (-3.0, 1.0), (0.0, 0.0))
    ],
    "+1.3 +- 1, +.5 +- 1, -1.8 +- 1, 3 +- 4, .5 +- .1": lambda own: [
        own.verdict(*pair) for pair in ((1.3, 1.0), (0.5, 1.0), (-1.8, 1.0), (3.0, 4.0), (0.5, 0.1))
    ],
    "SoE and the ensemble trained together, depth 2, worst": judged("soe", "plain-together", 2),
    "the same under Square": judged("soe", "plain-together", 2, "square"),
    "SoE with and without stage 2, depth 8, worst": judged("soe", "soe-stage1", 8),
    "SoE and MoRE, depth 2, worst": judged("soe", "more", 2),
    "the same, seed 0 alone": judged("soe", "more", 2, "worst", 1),
}
NAMES = list(PROBES)
PROPERTIES = [
    Property("with one seed the images alone speak", 3, NAMES[:1]),
    Property("with several both images and seeds do", 3, NAMES[1:2]),
    Property("a verdict needs an interval without 0", 2, NAMES[2:4]),
    Property("so judge our own results", 5, NAMES[4:]),
]
MISTAKES = {
    "a deviation for an error": "The standard error of a mean is the deviation over the root of "
    "how many were averaged.",
    "a variance for an error": "The standard error is the root of the variance of the mean.",
    "n for n - 1": "Variances of samples are divided by n - 1: ddof=1.",
    "images left out": "With several seeds too, the images' spread belongs into the error.",
    "seeds x images as independent": "The same image in three seeds is no three images: what is "
    "hard for one model is hard for the next.",
    "images over S x N": "The first variance is that of the images' means over the seeds, and is "
    "divided by N.",
    "unpaired": "Both methods saw the same images: the difference is taken image by image, and "
    "most of the images' variance falls out of it.",
    "seeds left out": "With several seeds their spread belongs into the error.",
    "no interval": "A difference above 0 alone decides nothing.",
    "one error": "One standard error is 68 % of confidence: 95 % takes 1.96.",
    "1.645 errors": "That is 95 % on one side: both sides take 1.96.",
    "1.96 alone": "1.96 standard errors: the error was left out.",
    "never worse": "Where the interval lies below 0 the verdict is -1.",
    "not over S": "The seeds' variance is divided by S: it is that of their mean.",
    "theirs less ours": "The difference is ours less theirs.",
    "one seed is no sample": "With one seed its spread is unknown, and is left out: not NaN.",
    "the first seed": "All seeds count.",
    "shares for points": "100 times too small: accuracies are in per cent.",
}


def variant(wrong: frozenset[str]) -> dict[str, Callable]:
    def differ(ours, theirs):
        d, by = ours - theirs, 1 if "shares for points" in wrong else 100
        S, N = d.shape
        ddof = 0 if "n for n - 1" in wrong else 1
        if "seeds x images as independent" in wrong:
            return by * d.mean(), by * (d.var(ddof=ddof) / d.size) ** 0.5
        over = (1, 1) if "a deviation for an error" in wrong else (N, S)
        if "unpaired" in wrong:
            square = sum(of.mean(0).var(ddof=ddof) for of in (ours, theirs)) / over[0]
        else:
            square = d.mean(0).var(ddof=ddof) / over[0]
        square = 0 if S > 1 and "images left out" in wrong else square
        if S > 1 and "seeds left out" not in wrong:
            square += d.mean(1).var(ddof=ddof) / over[1]
        root = 1 if "a variance for an error" in wrong else 0.5
        return by * d.mean(), by * square**root

    def judge(difference, error):
        error = 0 if "no interval" in wrong else error
        return 0 if abs(difference) <= 1.96 * error else 1 if difference > 0 else -1

    return {"difference": differ, "verdict": judge}


def more() -> dict[str, dict[str, Callable]]:
    def errors(times: float) -> dict[str, Callable]:
        return {"verdict": lambda d, e: 0 if abs(d) <= times * e else 1 if d > 0 else -1}

    def by_parts(seeds: Callable) -> dict[str, Callable]:
        def differ(ours, theirs):
            d = ours - theirs
            square = d.mean(0).var(ddof=1) / d.shape[1] + seeds(d)
            return 100 * d.mean(), 100 * square**0.5

        return {"difference": differ}

    def all_at_once(ours, theirs):
        d = ours - theirs
        seeds = d.mean(1).var(ddof=1) / len(d) if len(d) > 1 else 0
        return 100 * d.mean(), 100 * (d.var(ddof=1) / d.size + seeds) ** 0.5

    def unknown(d):
        return d.mean(1).var(ddof=1) / len(d) if len(d) > 1 else np.nan

    def turned(ours, theirs):
        points, error = difference(ours, theirs)
        return -points, error

    return {
        "images over S x N": {"difference": all_at_once},
        "one error": errors(1),
        "1.645 errors": errors(1.645),
        "1.96 alone": {"verdict": lambda d, e: 0 if abs(d) <= 1.96 else 1 if d > 0 else -1},
        "never worse": {"verdict": lambda d, e: int(d > 1.96 * e)},
        "not over S": by_parts(lambda d: d.mean(1).var(ddof=1) if len(d) > 1 else 0),
        "theirs less ours": {"difference": turned},
        "one seed is no sample": by_parts(unknown),
        "the first seed": {"difference": lambda a, b: difference(a[:1], b[:1])},
    }
