"""The paper's claims, judged by code from the records in results/.

A claim says that one accuracy is above another, or that two are the same (within MARGIN points).
Each place where it was measured, that is data, depth and eps, supports it, speaks against it, or
leaves it open, as the 95 % interval of the difference has it (intervals.py). A claim *holds* if
all places support it, *fails* if all speak against it, and is *undecided* if all leave it open;
else the measurements of each kind are counted. One seed of training is marked by a dagger: other
seeds may say otherwise.

On digits, ADP and GAL are those trained by SGD at the default rate: held-out images showed these
to be stronger than those trained by Adam, in the few epochs that were affordable. Elsewhere they
are those trained by their own optimiser.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.intervals import images, interval

VERDICTS = {"for": "holds", "against": "fails", "open": "undecided"}
MARGIN = 3.0  # points; the paper's own deviations are 0.5 to 3.2
PHOTOS = ("cifar10-jpeg-10000", "cifar10-10000")
ALL = "cifar10-jpeg"  # all 50,000 of the photographs
EPOCHS = {"digits": 30, "cifar10": 100, ALL: 16} | dict.fromkeys(PHOTOS, 12)  # that count here
NAMES = {PHOTOS[0]: "photos", PHOTOS[1]: "CIFAR-10, 10,000 images", "cifar10": "CIFAR-10"}
NAMES[ALL] = "50,000 photos"
NAMES |= {"digits-val": "held-out digits", "photos-val": "held-out photos"}
# The paper's eps 0.01; 0.02 and 0.03; 0.04 and more. Digits are easier: there other eps are such.
SMALL, MIDDLE, LARGE = "small", "middle", "large"
ON_DIGITS = {(2, 0.02): SMALL, (2, 0.05): MIDDLE, (8, 0.1): SMALL, (8, 0.2): MIDDLE}
STRONGER = {"gal": "gal --optimizer sgd", "adp": "adp --optimizer sgd"}  # on digits
TRANSFER = ("transfer3", "transfer30")
DEFAULTS = {"lr": 0.1, "sigma": 1.0, "lambda_": 1.0, "confidence": "ehead", "weights": "best"}


class Place(NamedTuple):
    """Where a claim was measured."""

    data: str
    depth: int
    eps: float

    def __str__(self) -> str:
        eps = f"eps {self.eps:g}" if self.eps else "without attacks"
        return f"{NAMES.get(self.data, self.data)}, ResNet{self.depth}, {eps}"

    @property
    def size(self) -> str:
        """Is eps small, middle or large?"""
        if self.data == "digits":
            return ON_DIGITS.get((self.depth, self.eps), LARGE)
        return SMALL if self.eps < 0.015 else MIDDLE if self.eps < 0.035 else LARGE


class Evidence(NamedTuple):
    """A difference in points, half its interval, where, a file to look at; how many seeds."""

    where: str
    difference: float
    half: float
    file: str
    seeds: int = 0  # 0: counted, so there is no doubt in it

    def __str__(self) -> str:
        doubt = f" ± {self.half:.1f}" if self.half else ""
        return f"{self.difference:+.1f}{doubt}" + "†" * (self.seeds == 1)


Methods = dict[tuple[str, int], list[dict]]  # {(method, M): its runs, in the order of their seeds}
Find = Callable[[list[dict]], list[Evidence]]  # from what all files say


def trained_as(settings: dict) -> str:
    flags = [name for name in ("together", "jointly") if settings.get(name)]
    return "-".join([settings["method"], *flags])


def runs_of(result: dict) -> list[dict]:
    """The runs that a file tells of: itself, if it is compare's; if evaluate's, one at the eps of
    training, of a model trained as by default, with what compare does not measure: ready-made
    images, Square's other queries, and its experts' vote, or their answer at a temperature."""
    if "method" in result:
        return [result]
    found, settings, command = [], result.get("model"), result.get("command")
    for eps, of_eps in result.get("eps", {}).items():
        usual = all(settings.get(name, value) == value for name, value in DEFAULTS.items())
        if float(eps) == settings["eps"] and usual:
            measured, T = of_eps["correct"], command.get("temperature")
            correct = {c: v for c, v in measured.items() if c in TRANSFER}
            if command["queries"] != 1000 and "square" in measured:
                correct[f"square{command['queries']}"] = measured["square"]
            elif (command["part"] or T is not None) and command["steps"] == 20:  # as compare's
                correct = measured
            name = trained_as(settings) + (f"'s {command['part']}" if command["part"] else "")
            name += f" at T = {T:g}" if T is not None else ""
            told = {"file": result["file"], "settings": settings, "method": name}
            found.append(told | {"correct": correct})
    return found


def placed(results: list[dict]) -> dict[Place, Methods]:
    """The runs that count, by place, method and number of experts."""
    places: dict[Place, Methods] = {}
    found = [run for result in results for run in runs_of(result)]
    for run in sorted(found, key=lambda run: run["settings"]["seed"]):
        s = run["settings"]
        if s["epochs"] == EPOCHS.get(s["data_name"]):
            place = Place(s["data_name"], s["depth"], s["eps"])
            places.setdefault(place, {}).setdefault((run["method"], s["n"]), []).append(run)
    return dict(sorted(places.items()))


# ------------------------------------------------------------------------------ what was measured


def with_column(methods: Methods, method: str, M: int, column: str) -> dict[int, dict]:
    """{seed: run} of a method's runs that have this column, on digits of STRONGER."""
    for name in (STRONGER.get(method), method):
        runs = [run for run in methods.get((name, M), []) if column in run["correct"]]
        if runs and (name == method or runs[0]["settings"]["data_name"] == "digits"):
            return {run["settings"]["seed"]: run for run in runs}
    return {}


def differences(methods: Methods, ours: tuple, theirs: tuple, column: str) -> tuple | None:
    """(ours less theirs [S, N], on the seeds that both have; a file) of two (method, M)."""
    a, b = (with_column(methods, *which, column) for which in (ours, theirs))
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    one, other = (images([of[seed]["correct"][column] for seed in seeds]) for of in (a, b))
    return one - other, a[seeds[0]]["file"]


def compared(
    ours: str,
    theirs: str,
    columns: tuple[str, ...],
    M: tuple[int, int] = (3, 3),
    sizes: tuple[str, ...] = (SMALL, MIDDLE, LARGE),
) -> Find:
    """ours less theirs in each column, at every place of these sizes that has both."""

    def find(results: list[dict]) -> list[Evidence]:
        found = []
        for place, methods in placed(results).items():
            for column in columns if place.eps and place.size in sizes else ():
                if measured := differences(methods, (ours, M[0]), (theirs, M[1]), column):
                    where = f"{place}" if len(columns) == 1 else f"{place}, {column}"
                    d, file = measured
                    found.append(Evidence(where, *interval(d), file, len(d)))
        return found

    return find


def of_soe(measure: Callable[[dict], np.ndarray | None], needs: str) -> Find:
    """A measure of SoE's own runs, differences [N], at every place with attacks."""

    def find(results: list[dict]) -> list[Evidence]:
        found = []
        for place, methods in placed(results).items():
            runs = [run for run in methods.get(("soe", 3), []) if needs in run and place.eps]
            measured = [d for run in runs if (d := measure(run)) is not None]
            if measured:
                d, file = np.stack(measured), runs[0]["file"]
                found.append(Evidence(str(place), *interval(d), file, len(d)))
        return found

    return find


def best_and_worst(run: dict) -> tuple[np.ndarray, np.ndarray]:
    """Which clean images the best expert has correct, and which the worst, [N] each. Who that is
    the other half of the images says: on the images that choose them they differ by chance, too."""
    bits = images([bits for row, bits in run["clean"].items() if row.startswith("expert")])
    best, worst = np.empty_like(bits[0]), np.empty_like(bits[0])
    half = np.arange(len(best)) % 2
    for mine in (half == 0, half == 1):
        share = bits[:, ~mine].mean(1)
        best[mine], worst[mine] = bits[share.argmax()][mine], bits[share.argmin()][mine]
    return best, worst


def worst_less_square(run: dict) -> np.ndarray | None:
    """None where Square leaves so little that it could not be told from nothing."""
    worst, square = images([run["correct"]["worst"], run["correct"]["square"]])
    return worst - square if 100 * square.mean() > 2 * MARGIN else None


def gains(results: list[dict]) -> dict[str, dict[int, tuple[np.ndarray, str]]]:
    """{data: {depth: (SoE less one network, both without attacks [S, N]; a file)}}."""
    found: dict[str, dict] = {}
    for place, methods in placed(results).items():
        measured = differences(methods, ("soe", 3), ("plain", 1), "clean")
        if measured and place.eps == 0:
            found.setdefault(place.data, {})[place.depth] = measured
    return found


def gain(shallow: bool) -> Find:
    """`gains` at depth 2, or at all others."""

    def find(results: list[dict]) -> list[Evidence]:
        return [
            Evidence(str(Place(data, depth, 0)), *interval(d), file, len(d))
            for data, of_depth in gains(results).items()
            for depth, (d, file) in of_depth.items()
            if (depth == 2) == shallow
        ]

    return find


def gain_shrinks(results: list[dict]) -> list[Evidence]:
    """The gain where networks are shallowest less that where they are deepest."""
    found = []
    for data, of_depth in gains(results).items():
        low, high = min(of_depth), max(of_depth)
        if low < high:
            (first, file), (last, _) = of_depth[low], of_depth[high]
            seeds = min(len(first), len(last))
            where = f"{NAMES.get(data, data)}, the gain at ResNet{low} less that at ResNet{high}"
            d = first[:seeds] - last[:seeds]
            found.append(Evidence(where, *interval(d), file, seeds))
    return found


def costs(rivals: tuple[str, ...], sign: int) -> Find:
    """By how many per cent SoE's units exceed each rival's (sign 1) or fall below them (-1)."""

    def find(results: list[dict]) -> list[Evidence]:
        for methods in placed(results).values():
            units = {name: of[0].get("units") for (name, M), of in methods.items() if M == 3}
            if units.get("soe") and all(units.get(rival) for rival in rivals):
                file = methods["soe", 3][0]["file"]
                shares = [sign * 100 * (units["soe"] / units[rival] - 1) for rival in rivals]
                return [Evidence(f"beside {r}", s, 0.0, file) for r, s in zip(rivals, shares)]
        return []

    return find


def on_xor(one: str, other: str) -> Find:
    """Test accuracies of `xor_demo` over many random starts, in a file of `paper figure1`."""

    def find(results: list[dict]) -> list[Evidence]:
        found = []
        for result in results:
            if "trap" in result:
                d = np.array([result[one]]) - np.array([result[other]])
                where = f"{d.size} random starts"
                found.append(Evidence(where, *interval(d / 100), result["file"], d.size))
        return found

    return find


# ------------------------------------------------------------------------------------ the claims


class Claim(NamedTuple):
    """What the paper says, in our words; where in its appendix; that A is `more` than B, or the
    `same`; and what measures it."""

    text: str
    place: str
    kind: str
    find: Find


def both_soe(M: tuple[int, int], size: str) -> Find:
    return compared("soe", "soe", ("square", *TRANSFER), M, (size,))


CLAIMS = [
    Claim(
        "Two linear functions that collaborate solve XOR; their average does not",
        "3.1, Figure 1",
        "more",
        on_xor("joint", "vote"),
    ),
    Claim(
        "XOR is solved just as well if the best one's error is minimised and g learns which it is",
        "3.1",
        "same",
        on_xor("trap", "joint"),
    ),
    Claim(
        "SoE's training costs more than GAL's, ADP's and MoRE's (passes, in %; seconds: see Time)",
        "3.2, Table 1",
        "more",
        costs(("gal", "adp", "more"), 1),
    ),
    Claim(
        "SoE's training costs less than DVERGE's", "3.2, Table 1", "more", costs(("dverge",), -1)
    ),
    Claim(
        "All experts are about equally good on clean images: no trivial case",
        "3.4, Table 2",
        "same",
        of_soe(lambda run: np.subtract(*best_and_worst(run)), "clean"),
    ),
    Claim(
        "Together they are better on clean images than the best of them",
        "3.4, Table 2",
        "more",
        of_soe(
            lambda run: images([run["clean"]["collaboration"]])[0] - best_and_worst(run)[0], "clean"
        ),
    ),
    *(
        Claim(
            f"Stage 2 changes nothing at {size} eps (transfer)",
            "4.1, Figure 2",
            "same",
            compared("soe", "soe-stage1", TRANSFER, sizes=(size,)),
        )
        for size in (SMALL, MIDDLE)
    ),
    Claim(
        "Stage 2 makes SoE more robust at large eps (transfer)",
        "4.1, Figure 2",
        "more",
        compared("soe", "soe-stage1", TRANSFER, sizes=(LARGE,)),
    ),
    *(
        Claim(
            f"Under Square SoE keeps more than {said}",
            "4.2, Table 3",
            "more",
            compared("soe", rival, ("square",)),
        )
        for rival, said in {
            "gal": "GAL",
            "adp": "ADP (up to eps 0.06; at 0.07 it has less)",
            "more": "MoRE",
            "dverge": "DVERGE",
        }.items()
    ),
    Claim(
        "Switching between experts hinders Square: more of SoE survives it than of the same "
        "experts' vote",
        "4.2",
        "more",
        compared("soe", "soe's vote", ("square", "square5000")),
    ),
    Claim(
        "Under the worst attack SoE keeps more than the same experts' vote",
        "-",
        "more",
        compared("soe", "soe's vote", ("worst",)),
    ),
    Claim(
        "What survives Square survives all attacks",
        "-",
        "same",
        of_soe(worst_less_square, "units"),
    ),
    Claim(
        "At small eps three experts are about as robust as one",
        "4.3, Figures 3, 4",
        "same",
        both_soe((3, 1), SMALL),
    ),
    Claim(
        "At middle eps three are more robust than one",
        "4.3, Figures 3, 4",
        "more",
        both_soe((3, 1), MIDDLE),
    ),
    Claim(
        "At large eps three are more robust than one",
        "4.3, Figures 3, 4",
        "more",
        both_soe((3, 1), LARGE),
    ),
    Claim(
        "At large eps five are about as robust as three",
        "4.3, Figures 3, 4",
        "same",
        both_soe((5, 3), LARGE),
    ),
    Claim(
        "Without attacks SoE is better than one network at depth 2",
        "4.4, Table 4",
        "more",
        gain(shallow=True),
    ),
    Claim(
        "Without attacks SoE is better than one network at depth 8, 14 and 20",
        "4.4, Table 4",
        "more",
        gain(shallow=False),
    ),
    Claim(
        "Without attacks SoE gains more where networks are shallow than where they are deep",
        "4.4, Table 4",
        "more",
        gain_shrinks,
    ),
    Claim(
        "Under Square SoE keeps more than the same networks trained against their vote",
        "-",
        "more",
        compared("soe", "plain-together", ("square",)),
    ),
    Claim(
        "Under the worst attack SoE keeps more than the same networks trained against their vote",
        "-",
        "more",
        compared("soe", "plain-together", ("worst",)),
    ),
]


def speaks(kind: str, evidence: Evidence) -> str:
    """`for`, `against` or `open`: what a difference, give or take `half`, says of such a claim."""
    _, difference, half, _, seeds = evidence
    if not seeds:
        return "for" if difference > 0 else "against"
    if kind == "same":
        farthest, nearest = abs(difference) + half, abs(difference) - half
        return "for" if farthest <= MARGIN else "against" if nearest > MARGIN else "open"
    return "for" if difference > half else "against" if difference < -half else "open"


def verdict(kind: str, found: list[Evidence]) -> str:
    said = [speaks(kind, evidence) for evidence in found]
    if not said:
        return "not measured"
    if len(set(said)) == 1:
        return VERDICTS[said[0]] + "†" * ({of.seeds for of in found} == {1})
    parts = [f"{VERDICTS[one]} at {said.count(one)}" for one in VERDICTS if one in said]
    return f"{', '.join(parts)}, of {len(said)}"


class Judged(NamedTuple):
    """A claim, its verdict, and every measurement with what it says of the claim alone."""

    claim: Claim
    verdict: str
    evidence: list[tuple[Evidence, str]]


def judged(results: list[dict]) -> list[Judged]:
    """All claims, judged by what the files say."""
    found = [(claim, claim.find(results)) for claim in CLAIMS]
    return [
        Judged(claim, verdict(claim.kind, of), [(one, verdict(claim.kind, [one])) for one in of])
        for claim, of in found
    ]
