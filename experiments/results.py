"""Writes the tables of the READMEs from the records in results/: no number is typed by hand.

    python -m experiments.results    # rewrites what stands between the marks, and draws figures/

A mark names one of the functions in MAKERS and the records that it reads:

    <!-- comparison: compare/digits-*-depth2-*.json -->
    <!-- end -->

A maker turns the frame of these records (`records.frame`, a row a run) into Markdown.
"""

import contextlib
import io
import json
import re
import statistics
from itertools import product
from pathlib import Path, PurePath

import numpy as np
import pandas as pd

from experiments import figures
from experiments.claims import (
    ONE,
    SOE,
    TRAPPED,
    compared,
    counted,
    judged,
    select,
    trapped,
)
from experiments.evaluate import who_decided
from experiments.intervals import interval
from experiments.records import (
    NAMES,
    TRAP,
    by_title,
    frame,
    matching,
    measurements,
    paired,
    trained_as,
)
from experiments.transfer_set import TRANSFER
from support import files, options
from support.printing import duration, print_report

HERE = Path(__file__).parent
TEXTS = (HERE.parent / "README.md", *sorted(HERE.glob("*.md")))
MARK = re.compile(r"(<!-- (\w+): (\S+) -->\n).*?(<!-- end -->)", re.S)
HEADINGS = {"pgd": "PGD-20", "apgd": "AutoPGD", "square": "Square"}
PAPER = json.loads((HERE / "paper.json").read_text())  # its numbers

# ------------------------------------------------------------------------------- cells, and tables


def accuracy(values: pd.Series) -> str:
    """Mean and deviation over seeds, in %: "57.2 ± 3.1"; "-" where one was not measured."""
    if values.isna().any():
        return "-"
    return f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(values) > 1 else "")


def signed(differences: pd.Series, mark: str = "") -> str:
    """The interval of an array [N] for each seed, in points; marked, where there is one seed."""
    shown = "{:+.1f} ± {:.1f}".format(*interval(np.stack([*differences])))
    return shown + mark * (len(differences) == 1)


def table(cells: pd.DataFrame, *labels: str) -> str:
    """A frame of texts, "-" where there is none; `labels` are headings of its index."""
    head = [*(labels or [""]), *(HEADINGS.get(column, column) for column in cells)]
    rows = cells.astype(object).fillna("-").reset_index().astype(str).values.tolist()
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def less_first(measured: pd.DataFrame, first: str, *by: str) -> pd.Series:
    """What the other methods have more than the `first`, at the same places and seeds."""
    pairs = paired(measured.query("method != @first"), measured.query("method == @first"))
    return pairs.groupby([*by])["difference"].agg(signed)


# ----------------------------------------------------------------------- methods beside each other


def comparison(runs: pd.DataFrame, first: str = "soe") -> str:
    """Each method attacked itself; the differences are from the `first` method, on the same seeds.
    Below, what the referee doubts of these runs (`evaluate.doubts`)."""
    ((_, runs),) = by_title(runs, first)
    first, columns = runs["method"].iloc[0], list(max(runs["correct"], key=len))
    last = columns[-1]  # worst; clean, where nothing is attacked
    measured = measurements(runs).query("column == @last")
    methods = runs.groupby("method", sort=False)
    cells = methods[columns].agg(accuracy)
    if runs["units"].notna().all():  # compare's, not evaluate's
        cells.insert(0, "units", methods["units"].first().map("{:,.0f}".format))
    cells[f"{last} less {first}'s"] = less_first(measured, first, "method")
    parts = [table(cells.join(methods[["alone", "any"]].agg(accuracy)))]
    for method, seed, doubts in zip(runs["method"], runs["seed"], runs["doubts"]):
        parts += [f"Doubtful, {method}, seed {seed}: {doubt}." for doubt in doubts]
    return "\n\n".join(parts)


def routing(runs: pd.DataFrame) -> str:
    """How the experts divide the work on clean images, for methods in which one answers."""
    ((_, runs),), rows = by_title(runs), []
    for method, record in zip(runs["method"], runs["record"]):
        if division := record["specialisation"].get("clean"):
            share = statistics.mean(map(max, zip(*division["answers"])))
            rows.append({"method": method, **division["disagree"], "class share": share})
    cells = pd.DataFrame(rows).groupby("method", sort=False).agg(accuracy)
    names = {"images": "images disagreed on", "answering": "correct: answering"}
    return table(cells.rename(columns=names))


def decided(runs: pd.DataFrame) -> str:
    """Of all seeds together, the images that each attack took, and that no other took."""
    ((_, runs),), rows = by_title(runs), []
    for method, correct in zip(runs["method"], runs["correct"]):
        for attack, counts in who_decided(correct).items():
            rows.append({"method": method, "attack": attack, **counts})
    total = pd.DataFrame(rows).groupby(["method", "attack"], sort=False).sum().astype(str)
    cells = (total["took"] + " (" + total["alone"] + ")").unstack(sort=False)
    return table(cells, "images taken (by it alone)")


# -------------------------------------------------------------- models attacked again, other files


def attacked(runs: pd.DataFrame) -> str:
    """Models, or parts of one, each attacked itself, by evaluate; ± over the attack's seeds."""
    rows, labels = [], ["trained as", "eps", "attacked itself"]
    for record, depth, eps in zip(runs["record"], runs["depth"], runs["eps"]):
        part, row = record["command"]["part"] or record["row"], record["row"]
        name = f"expert {part}" if part.isdecimal() else part
        shown = dict(zip(labels, (f"{trained_as(record['model'])}, ResNet{depth}", eps, name)))
        for column, mean in record["table"][row].items():
            deviation = record["deviation"].get(row, {}).get(column)
            shown[column] = f"{mean:.1f}" + (f" ± {deviation:.1f}" if deviation is not None else "")
        rows.append(shown)
    return table(pd.DataFrame(rows).set_index(labels).drop(columns="own", errors="ignore"), *labels)


def stronger(runs: pd.DataFrame) -> str:
    """Models attacked once more, over their seeds, beside compare's attacks in photos/: on these
    images, and on others that those never saw. The last row is the second method less the first."""
    methods, correct = [], []
    for name, now in zip(runs["name"], runs["correct"]):
        (before,) = frame(matching(f"photos/{PurePath(name).name}")).to_dict("records")
        weaker, worst = before["correct"]["worst"], now["worst"]
        these, others = worst[: len(weaker)], worst[len(weaker) :]
        new = {"worst, on these": these, "by the weaker attacks": weaker, "on the others": others}
        correct.append(now | new)
        methods.append(before["method"])
    measured = measurements(runs.assign(method=methods, correct=correct))
    first, second = measured["method"].unique()
    cells = measured.groupby(["method", "column"])["accuracy"].agg(accuracy).unstack()
    cells.loc[f"{second}, more"] = less_first(measured, first, "column")
    return table(cells[list(max(correct, key=len))])  # a vote has no adaptive attack


def steps(runs: pd.DataFrame) -> str:
    """Table 1: time of a training step; a file of experiments.bench_step."""
    (record,) = runs["record"]
    seconds = pd.DataFrame(record["seconds"]).T.add_prefix("stage ")
    paper = pd.Series(PAPER["table 1"]).drop(["place", "what"])
    cells = seconds.map(duration, na_action="ignore")
    for name, times in {"mean": seconds.mean(axis=1), "hours of Table 1": paper}.items():
        cells[f"{name} / SoE's"] = (times / times["soe"]).map("{:.2f}".format)
    return table(cells)


def ways(runs: pd.DataFrame) -> str:
    """Time of a step, one way down after the other: a file of experiments.bench_step --ablate."""
    (record,) = runs["record"]
    seconds = pd.DataFrame(record["ways"], ["stage 1", "stage 2"]).T
    mean, cells = seconds.mean(axis=1), seconds.map(duration)
    cells["times as fast as the first"] = (mean.iloc[0] / mean).map("{:.1f}".format)
    return table(cells)


def tools(runs: pd.DataFrame) -> str:
    """Other people's attacks beside ours: files of experiments.other_tools."""
    cells = {}
    for record in runs["record"]:
        left, images = record["our worst"]["left"], record["our worst"]["images"]
        worst = f"{100 * left / images:.1f} ({left} images)"
        ours = {"our worst of PGD, AutoPGD, Square, adaptive": worst}
        rows = record["rows"].items()
        theirs = {name: f"{row['correct']:.1f} ({row['of ours']})" for name, row in rows}
        cells[trained_as(record["model"])] = ours | theirs
    return table(pd.DataFrame(cells), "% left (taken of what our worst leaves)")


def run(runs: pd.DataFrame) -> str:
    """The table that a run prints at its end: the metrics.json of one."""
    (record,) = runs["record"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print_report(record, "collaboration", record["images"], record["settings"]["eps"])
    first, *_ = printed.getvalue().strip().split("\n\n")
    return f"```\n{first}\n```"


# ------------------------------------------------------------------- the paper's tables and figures


def by_place(measured: pd.DataFrame, method: tuple[str, int], column: str) -> pd.Series:
    """For each place, the accuracy of a (method, M)."""
    return select(measured, *method, column).groupby("place")["accuracy"].agg(accuracy)


def less(
    measured: pd.DataFrame, ours: tuple, theirs: tuple, column: str, mark: str = ""
) -> pd.Series:
    """For each place, what one (method, M) has more than another."""
    return compared(measured, ours, theirs, column).groupby("place")["difference"].agg(signed, mark)


def summary(runs: pd.DataFrame) -> str:
    """SoE and the ensemble: clean accuracy, and what is left of it under the worst attack, at the
    paper's eps 0.03, on digits at 0.1. † marks one seed of training."""
    measured = counted(runs)
    measured = measured[measured["eps"] == measured["data"].map({"digits": 0.1}).fillna(0.03)]
    ensemble, cells = ("plain-together", 3), {}
    for name, method in {"SoE": SOE, "the ensemble": ensemble}.items():
        of_method = select(measured, *method, "clean", "worst")
        mean = of_method.groupby(["place", "column"])["accuracy"].mean().unstack()
        mean = mean.map("{:.1f}".format).astype(object)
        cells[name] = mean["clean"] + " → **" + mean["worst"] + "**"
    cells["the ensemble, less SoE"] = less(measured, ensemble, SOE, "worst", "†")
    cells = pd.DataFrame(cells).dropna(subset="the ensemble, less SoE")
    return table(cells, "clean → under the worst attack")


def table2(runs: pd.DataFrame) -> str:
    """Clean accuracy of SoE and of each expert, from the best to the worst."""
    paper, ranks = PAPER["table 2"], ["best expert", "second", "third"]
    measured = counted(runs).query("eps > 0")
    soe = pd.concat([select(measured, *SOE, "clean"), select(measured, *TRAPPED, "clean")])
    soe = soe.assign(reading=soe["method"].map({SOE[0]: "", TRAPPED[0]: "sigma = 1"}))
    best = [sorted(accuracies, reverse=True) for accuracies in soe["experts"]]
    soe = soe.join(pd.DataFrame(best, soe.index, ranks)).rename(columns={"any": "any correct"})
    rows = soe.groupby(["reading", "place"])[["accuracy", *ranks, "any correct"]]
    cells = rows.agg(accuracy).reset_index("reading")
    theirs = [f"{value:.1f}" for value in (paper["soe"], *sorted(paper["experts"], reverse=True))]
    theirs = pd.DataFrame([["", *theirs, "-"]], ["the paper, eps 0.02"], cells.columns)
    return table(pd.concat([theirs, cells]).rename(columns={"accuracy": "SoE"}))


def table3(runs: pd.DataFrame) -> str:
    """Accuracy under Square, the paper's in brackets, and under the worst attack: by method and
    eps, a table for each data set and depth."""
    parts, paper = [], PAPER["table 3"]
    measured = counted(runs).dropna(subset="units")  # compare's
    measured = measured.query("M == 3 and column in ['square', 'worst']")
    measured = measured.sort_values("eps", kind="stable")
    for (data, depth), of_depth in measured.groupby(["data", "depth"]):
        cells = of_depth.groupby(["method", "eps", "column"])["accuracy"].agg(accuracy)
        cells = cells.unstack(["eps", "column"]).sort_index(axis="columns").fillna("-")
        cells = cells.loc[of_depth["method"].unique()]
        for method, (eps, column) in product(cells.index, cells):
            theirs = dict(zip(paper["eps"], paper.get(method.split()[0], [])))
            if column == "square" and data != "digits" and eps in theirs:
                cells.loc[method, (eps, column)] += f" ({theirs[eps]:.1f})"
        cells.columns = [f"{HEADINGS.get(column, column)}, eps {eps:g}" for eps, column in cells]
        parts.append(f"**{NAMES.get(data, data)}, 3 x ResNet{depth}**\n\n{table(cells)}")
    return "\n\n".join(parts)


def table4(runs: pd.DataFrame) -> str:
    """Clean accuracy by depth, trained without attacks; the paper's in brackets."""
    paper, clean, vote = PAPER["table 4"], counted(runs).query("eps == 0"), ("plain", 3)
    cells = {
        "one network": by_place(clean, ONE, "clean"),
        "SoE": by_place(clean, SOE, "clean"),
        "gain": less(clean, SOE, ONE, "clean"),
        "at sigma = 1": by_place(clean, TRAPPED, "clean"),
        "gain at sigma = 1": less(clean, TRAPPED, ONE, "clean"),
        "three networks, their vote": by_place(clean, vote, "clean"),
        "its gain": less(clean, vote, ONE, "clean"),
    }
    cells = pd.DataFrame(cells).dropna(subset=["gain", "gain at sigma = 1"], how="all")
    cells = cells.astype(object)
    theirs = {depth: pair for depth, *pair in zip(paper["depth"], paper["plain"], paper["soe"])}
    for place in cells.index:
        if place.data != "digits" and place.depth in theirs:
            one, soe = theirs[place.depth]
            for column, value in {"one network": one, "SoE": soe, "gain": soe - one}.items():
                cells.loc[place, column] = f"{cells[column].fillna('-')[place]} ({value:.1f})"
    return table(cells)


def figure2(runs: pd.DataFrame) -> str:
    """SoE with and without stage 2, on images made against other networks."""
    readings = []
    for reading, of_reading in {"": runs, "sigma = 1": trapped(runs)}.items():
        measured = counted(of_reading).query("eps > 0")
        pairs = compared(measured, SOE, ("soe-stage1", 3), *TRANSFER)
        readings.append(pairs.assign(reading=reading))
    pairs = pd.concat(readings)
    pairs["column"] = pairs["column"].str.removeprefix("transfer")
    cells = {"accuracy": accuracy, "accuracy of theirs": accuracy, "difference": signed}
    cells = pairs.groupby(["reading", "place", "column"]).agg(cells).reset_index("reading")
    names = {"accuracy": "soe", "accuracy of theirs": "soe-stage1"}
    return table(cells.rename(columns=names), "", "variants")


def figures34(runs: pd.DataFrame) -> str:
    """Accuracy by M, the number of experts."""
    cells = figures.by_number(runs).pivot_table("accuracy", ["place", "line"], "M", accuracy)
    return table(cells.reindex(columns=range(1, 6)).rename(columns="M = {}".format), "", "")


def softened(runs: pd.DataFrame) -> str:
    """Experts of SoE, or of SoE in the trap, as they are: the most confident one answers, all by
    their weights, or a vote; each attacked itself. On the seeds that all rows of a place have."""
    in_trap = runs["method"].str.contains(TRAP, regex=False).any()
    measured = counted(trapped(runs) if in_trap else runs).query(
        "M == 3 and column in ['clean', 'square', 'worst']"
    )
    measured = measured[measured["method"].str.fullmatch("soe|soe at T = .*|soe's vote")]
    rows = measured.groupby("place")["method"].transform("nunique")
    of_seed = measured.groupby(["place", "seed"])["method"].transform("nunique")
    measured = measured[(rows > 1) & (of_seed == rows)]
    who = measured["method"].str[4:].str.strip("s ").replace("", "the most confident")
    # in the order of T: at 0 the most confident one answers, at infinity all weigh the same
    T = who.replace({"the most confident": "0", "vote": "inf"}).str.removeprefix("at T = ")
    measured = measured.assign(T=T.map(float), who=who)
    rows = ["place", "T", "who", "column"]
    cells = measured.groupby(rows)["accuracy"].agg(accuracy).unstack()
    more = less_first(measured, "soe", *rows).unstack().rename(columns=HEADINGS)
    return table(cells.join(more.add_suffix(", more")).droplevel("T"), "", "who answers")


# ---------------------------------------------------------------------------- readings, and claims


def readings(runs: pd.DataFrame) -> str:
    """Each reading of the paper, and whether it does what the paper states: (a) its experts' clean
    accuracies lie within 3 points, none ahead of the collaboration; (b) trained without attacks it
    is not below one network, (c) under Square not below plain-together, by more than the interval.
    """
    (depth,), (data,) = set(runs["depth"]), set(runs["data"])
    if rivals := matching(f"soft-tuning/{data}-plain-*-depth{depth}-n3-eps0.03-*.json"):
        runs = pd.concat([runs, frame(rivals)], ignore_index=True)
    measured = measurements(runs)
    soe = measured[measured["method"].str.startswith("soe")]

    def answer(yes: bool, shown: str) -> str:
        return f"{'yes' if yes else 'no'}: {shown}"

    def not_below(rival: str) -> pd.Series:
        differences = paired(soe, measured.query(rival)).groupby("method")["difference"]
        return differences.agg(lambda d: answer(sum(interval(np.stack([*d]))) >= 0, signed(d)))

    clean = not_below("M == 1 and eps == 0")
    square = not_below("method == 'plain-together' and column == 'square'")
    stages, rows = {"": "half and half", "0": "2 alone"}, []
    attacked = runs.query("eps > 0").sort_values("worst", ascending=False, kind="stable")
    for run in attacked.itertuples():
        reading, _, first = run.method.partition(" --stage1-epochs ")
        is_soe = reading.startswith("soe")
        # without attacks the stages have one loss, so either alone is the same run
        at_eps_0 = f"{reading} --stage1-epochs 0" if first else reading
        spread, lead = max(run.experts) - min(run.experts), run.clean - max(run.experts)
        alike = answer(round(spread, 1) <= 3 and lead >= 0, f"{spread:.1f}, {lead:+.1f}")
        met = {
            "(a) spread, lead": alike if is_soe else "-",
            "(b) less one network": clean.get(at_eps_0, "-"),
            "(c) less plain-together": square.get(run.method, "-"),
        }
        supported = all(one.startswith("yes") for one in met.values())
        row = {
            "reading": reading,
            "stages": stages.get(first, "1 alone") if is_soe else "-",
            "clean": f"{run.clean:.1f}",
            "each expert": ", ".join(f"{accuracy:.1f}" for accuracy in run.experts),
            "Square": f"{run.square:.1f}",
            "worst": f"{run.worst:.1f}",
        }
        rows.append(row | met | {"supported": "**yes**" if supported else "-"})
    return table(pd.DataFrame(rows).set_index("reading"), "reading")


def claims(runs: pd.DataFrame) -> str:
    """A row for each claim: the verdict, with a link to all that was measured, and the measurement
    that stands for them: of most seeds, then on photographs, then where networks are deepest."""
    rows = {}
    for number, (claim, at_1) in enumerate(zip(judged(runs), judged(trapped(runs))), 1):
        example = ["-", "-"]
        if claim.evidence:
            one = max(reversed(claim.evidence), key=lambda one: (one.seeds, "photos" in one.where))
            example = [one.where, f"[{one}]({one.file})"]
        said = f"[**{claim.verdict}**](claims.md#{number})"
        rows[number] = [claim.text, claim.place, said, *example, at_1.verdict]
    head = ["the paper's claim", "appendix", "verdict", "for example", "difference", "at sigma = 1"]
    return table(pd.DataFrame.from_dict(rows, "index", columns=head))


def evidence(runs: pd.DataFrame) -> str:
    """Every measurement that speaks of a claim, a table a claim."""
    parts = []
    for number, (claim, at_1) in enumerate(zip(judged(runs), judged(trapped(runs))), 1):
        where = "not in the paper" if claim.place == "-" else f"appendix {claim.place}"
        parts.append(f"### {number}\n\n{claim.text} ({where}): **{claim.verdict}**")
        for heading, judgement in {"": claim, "at sigma = 1": at_1}.items():
            says = [[f"[{one}]({one.file})", claim.says(one)] for one in judgement.evidence]
            if says and not (heading and judgement.evidence == claim.evidence):
                places = [one.where for one in judgement.evidence]
                cells = pd.DataFrame(says, places, ["difference", "says"])
                parts.append(table(cells, heading))
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------- the command

MAKERS = [comparison, routing, decided, attacked, stronger, steps, ways, tools, run, summary]
MAKERS += [table2, table3, table4, figure2, figures34, softened, readings, claims, evidence]
MAKERS = {maker.__name__: maker for maker in MAKERS}


def written(content: str) -> str:
    """A text with its tables made anew. Raises ValueError where a mark finds no files."""

    def replace(mark: re.Match) -> str:
        opening, maker, pattern, end = mark.groups()
        if not (records := matching(pattern)):
            raise ValueError(f"no record {pattern}")
        return f"{opening}\n{MAKERS[maker](frame(records))}\n\n{end}"

    return MARK.sub(replace, content)


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.results")
    parser.parse_args(argv)
    with parser.errors_in_one_line():
        for path in TEXTS:
            files.write(path, written(path.read_text()).encode())
            print(f"wrote {path}")
        for name, picture in figures.drawn().items():
            files.write(HERE / "figures" / name, picture)
            print(f"wrote figures/{name}")


if __name__ == "__main__":
    main()
