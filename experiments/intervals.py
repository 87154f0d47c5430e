"""What may be said of a difference: its 95 % interval, image by image and seed by seed.

Three things are told apart. `±` behind an accuracy is the standard deviation over the seeds of
training. The standard error of one model's accuracy on N images is sqrt(p (1 - p) / N). A
difference between two methods is taken on the same images and seeds; its interval holds the true
one in about 95 of 100 cases, where images and seeds are drawn anew (with two seeds in fewer), and
no word such as "beats" is used where it holds 0.
"""

import numpy as np


def t_quantile(df: float) -> float:
    """Student's t below which 97.5 % lie, for df >= 1 degrees of freedom."""
    theta = np.linspace(0, np.pi / 2, 200_001)  # t = sqrt(df) tan(theta)
    below = np.cumsum(np.cos(theta) ** (df - 1))
    return float(np.sqrt(df) * np.tan(theta[np.searchsorted(below, 0.95 * below[-1])]))


def interval(d: np.ndarray) -> tuple[float, float]:
    """Mean, in points, of differences d [S, N] of S seeds on N images, and half its interval.

    Its variance is that of the images' mean differences / N and, with several seeds, that of the
    seeds' / S (the first holds part of the second, which errs to the safe side); the degrees of
    freedom are Welch's. With one seed it says nothing about other seeds.
    """
    means = [d.mean(0), d.mean(1)] if len(d) > 1 else [d.mean(0)]
    variances = np.array([m.var(ddof=1) / len(m) for m in means])
    total = variances.sum()
    if total == 0:
        return 100 * float(d.mean()), 0.0
    df = total**2 / sum(v**2 / (len(m) - 1) for v, m in zip(variances, means))
    return 100 * float(d.mean()), 100 * t_quantile(df) * float(total) ** 0.5


def images(bits: list[str]) -> np.ndarray:
    """ "0110..", a string for each seed, as an array of 0 and 1 [S, N]. Raises ValueError for
    other signs."""
    return np.array([list(map("01".index, text)) for text in bits])


def paired_difference(ours: list[str], theirs: list[str]) -> tuple[float, float]:
    """The `interval` of two accuracies' difference; "0110.." tells of each image whether it is
    correct, a string for each seed."""
    return interval(images(ours) - images(theirs))
