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
from collections.abc import Callable
from itertools import product
from pathlib import Path, PurePath

import numpy as np
import pandas as pd

from experiments import figures
from experiments.claims import ONE, SOE, TRANSFER, compared, counted, judged, select
from experiments.intervals import interval
from experiments.records import NAMES, by_title, frame, matching, measurements, paired, trained_as
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
    shown = "{:+.1f} ± {:.1f}".format(*interval(np.stack(list(differences))))
    return shown + mark * (len(differences) == 1)


def markdown(rows: list[list[str]]) -> str:
    """The heading is the first row."""
    head, *rest = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rest])


def table(cells: pd.DataFrame, *labels: str) -> str:
    """A frame of texts, "-" where there is none; `labels` are headings of its index."""
    head = [*(labels or [""]), *(HEADINGS.get(column, column) for column in cells.columns)]
    rows = cells.astype(object).fillna("-").reset_index().astype(str)
    return markdown([head, *rows.values.tolist()])


def titled(make: Callable) -> Callable:
    """The tables of all titles, each under its own if there are several."""

    def made(runs: pd.DataFrame) -> str:
        parts = {title: make(of_title) for title, of_title in by_title(runs)}
        several = [f"**{title}**\n\n{part}" for title, part in parts.items()]
        return "\n\n".join(several if len(parts) > 1 else parts.values())

    return made


# ----------------------------------------------------------------------- methods beside each other


def comparison(runs: pd.DataFrame) -> str:
    """Each method attacked itself; the differences are from the first method, on the same seeds.
    Below, what the referee doubts of these runs (`evaluate.doubts`)."""
    first, record = runs["method"].iloc[0], runs["record"].iloc[0]
    columns = ["clean", *record["evaluation"]["attack"], "worst"]
    columns = columns if record["settings"]["eps"] else ["clean"]
    runs = runs.assign(**{column: np.nan for column in columns if column not in runs})
    # differences are those of the last column: worst; the only attack, or clean, where that is all
    last, decisive = list(record["correct"])[-1], [[*bits.values()][-1] for bits in runs["correct"]]
    measured = measurements(runs.assign(correct=[{last: bits} for bits in decisive]))
    pairs = paired(measured.query("method != @first"), measured.query("method == @first"))
    methods = runs.groupby("method", sort=False)
    cells = methods[columns].agg(accuracy)
    cells.insert(0, "units", methods["units"].first().map("{:,.0f}".format))
    cells[f"{last} less {first}'s"] = pairs.groupby("method")["difference"].agg(signed)
    parts = [table(cells.join(methods[["alone", "any"]].agg(accuracy)))]
    for method, seed, record in zip(runs["method"], runs["seed"], runs["record"]):
        parts += [
            f"Doubtful, {method}, seed {seed}: {doubt}." for doubt in record.get("doubts", [])
        ]
    return "\n\n".join(parts)


def routing(runs: pd.DataFrame) -> str:
    """How the experts divide the work on clean images, for methods in which one answers."""
    rows = []
    for method, record in zip(runs["method"], runs["record"]):
        if division := record["specialisation"].get("clean"):
            share = statistics.mean(map(max, zip(*division["answers"])))
            rows.append({"method": method, **division["disagree"], "class share": share})
    columns = ["method", "images", "answering", "best fixed", "any", "class share"]
    cells = pd.DataFrame(rows, columns=columns).groupby("method", sort=False).agg(accuracy)
    names = {"images": "images disagreed on", "answering": "correct: answering"}
    return table(cells.rename(columns=names))


def decided(runs: pd.DataFrame) -> str:
    """Of all seeds together, the images that each attack took, and that no other took."""
    rows = []
    for method, record in zip(runs["method"], runs["record"]):
        for attack, counts in record["decided"].items():
            rows.append({"method": method, "attack": attack, **counts})
    counts = pd.DataFrame(rows, columns=["method", "attack", "took", "alone"])
    total = counts.groupby(["method", "attack"]).sum().astype(str)
    cells = (total["took"] + " (" + total["alone"] + ")").unstack()
    cells = cells.loc[counts["method"].unique(), counts["attack"].unique()]
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
    pairs = paired(measured.query("method == @second"), measured.query("method == @first"))
    cells.loc[f"{second}, more"] = pairs.groupby("column")["difference"].agg(signed)
    return table(cells[list(max(correct, key=len))])  # a vote has no adaptive attack


def steps(runs: pd.DataFrame) -> str:
    """Table 1: time of a training step; a file of experiments.bench_step."""
    (record,) = runs["record"]
    seconds = pd.DataFrame(record["seconds"]).T.add_prefix("stage ")
    mean, hours = seconds.mean(axis=1), pd.Series(record["table 1"])
    cells = seconds.map(duration, na_action="ignore")
    cells["mean / SoE's"] = (mean / mean["soe"]).map("{:.2f}".format)
    cells["hours of Table 1 / SoE's"] = hours.map("{:.2f}".format, na_action="ignore")
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


def run_table(runs: pd.DataFrame) -> str:
    """What a run prints at its end: the metrics.json of one."""
    (record,) = runs["record"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print_report(record, "collaboration", record["images"], record["settings"]["eps"])
    return f"```\n{printed.getvalue().strip()}\n```"


# ------------------------------------------------------------------- the paper's tables and figures


def by_place(measured: pd.DataFrame, method: str, M: int, column: str) -> pd.Series:
    """For each place, a method's accuracy."""
    return select(measured, method, M, column).groupby("place")["accuracy"].agg(accuracy)


def less(
    measured: pd.DataFrame, ours: tuple, theirs: tuple, column: str, mark: str = ""
) -> pd.Series:
    """For each place, what one (method, M) has more than another."""
    return compared(measured, ours, theirs, column).groupby("place")["difference"].agg(signed, mark)


def summary(runs: pd.DataFrame) -> str:
    """SoE, the ensemble and soft synergy: clean accuracy, and what is left of it under the worst
    attack, at the paper's eps 0.03, on digits at 0.1. † marks one seed of training."""
    tuned = "soft-synergy --lr 0.03 --temperature 3"  # on photographs
    digits = counted(runs).query("data == 'digits' and eps == 0.1 and method != @tuned")
    photos = counted(runs).query("data != 'digits' and eps == 0.03 and method != 'soft-synergy'")
    measured = pd.concat([digits, photos.replace({"method": {tuned: "soft-synergy"}})])
    names = {"soe": "SoE", "plain-together": "the ensemble", "soft-synergy": "soft synergy"}
    mean = measured.query("M == 3 and column in ['clean', 'worst']")
    mean = mean.groupby(["place", "method", "column"])["accuracy"].mean()
    mean = mean.map("{:.1f}".format).unstack().reindex(columns=["clean", "worst"]).astype(object)
    cells = (mean["clean"] + " → **" + mean["worst"] + "**").unstack()
    cells = cells.reindex(columns=list(names)).rename(columns=names)
    ensemble, soft = ("plain-together", 3), ("soft-synergy", 3)
    cells["the ensemble, less SoE"] = less(measured, ensemble, SOE, "worst", "†")
    cells["soft synergy, less the ensemble"] = less(measured, soft, ensemble, "worst", "†")
    return table(cells.dropna(subset="the ensemble"), "clean → under the worst attack")


def table2(runs: pd.DataFrame) -> str:
    """Clean accuracy of SoE and of each expert, from the best to the worst."""
    paper, ranks = PAPER["table 2"], ["best expert", "second", "third"]
    soe = select(counted(runs).query("eps > 0"), *SOE, "clean")
    best = [sorted(accuracies, reverse=True) for accuracies in soe["experts"]]
    soe = soe.join(pd.DataFrame(best, soe.index, ranks))
    cells = soe.groupby("place")[["accuracy", *ranks, "any"]].agg(accuracy)
    theirs = [f"{value:.1f}" for value in (paper["soe"], *sorted(paper["experts"], reverse=True))]
    theirs = pd.DataFrame([[*theirs, "-"]], ["the paper, eps 0.02"], cells.columns)
    cells = pd.concat([theirs, cells])
    return table(cells.rename(columns={"accuracy": "SoE", "any": "any correct"}))


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
        "one network": by_place(clean, *ONE, "clean"),
        "SoE": by_place(clean, *SOE, "clean"),
        "gain": less(clean, SOE, ONE, "clean"),
        "three networks, their vote": by_place(clean, *vote, "clean"),
        "its gain": less(clean, vote, ONE, "clean"),
    }
    cells = pd.DataFrame(cells).dropna(subset="gain")
    for place in cells.index:
        if place.data != "digits" and place.depth in paper["depth"]:
            one, soe = (paper[m][paper["depth"].index(place.depth)] for m in ("plain", "soe"))
            for column, theirs in {"one network": one, "SoE": soe, "gain": soe - one}.items():
                cells.loc[place, column] += f" ({theirs:.1f})"
    return table(cells)


def readings(runs: pd.DataFrame) -> str:
    """Each reading of the paper, and whether it does what the paper states: (a) its experts' clean
    accuracies lie within 3 points, none ahead of the collaboration; (b) trained without attacks it
    is not below one network, (c) under Square not below plain-together, by more than the interval.
    """
    (depth,), (data,) = set(runs["depth"]), set(runs["data"])
    if rivals := matching(f"soft-tuning/{data}-plain-*-depth{depth}-n3-eps0.03-*.json"):
        runs = pd.concat([runs, frame(rivals)], ignore_index=True)
    measured = measurements(runs)
    one = measured.query("M == 1 and eps == 0")
    together = measured.query("method == 'plain-together' and column == 'square'")
    soe = measured[measured["method"].str.startswith("soe")]

    def answer(yes: bool, shown: str) -> str:
        return f"{'yes' if yes else 'no'}: {shown}"

    def not_below(theirs: pd.DataFrame) -> pd.Series:
        differences = paired(soe, theirs).groupby("method")["difference"]
        return differences.agg(lambda d: answer(sum(interval(np.stack([*d]))) >= 0, signed(d)))

    clean, square, rows = not_below(one), not_below(together), []
    stages = {"": "half and half", "0": "2 alone"}
    attacked = runs.query("eps > 0").sort_values("worst", ascending=False, kind="stable")
    for run in attacked.itertuples():
        reading, _, first = run.method.partition(" --stage1-epochs ")
        spread, lead = max(run.experts) - min(run.experts), run.clean - max(run.experts)
        # without attacks the stages have one loss, so either alone is the same run
        met = [answer(round(spread, 1) <= 3 and lead >= 0, f"{spread:.1f}, {lead:+.1f}")]
        met += [clean.get(f"{reading} --stage1-epochs 0" if first else reading, "-")]
        met += [square.get(run.method, "-")]
        stage = stages.get(first, "1 alone")
        if not reading.startswith("soe"):
            stage, met = "-", ["-"] * 3
        experts = ", ".join(f"{accuracy:.1f}" for accuracy in run.experts)
        row = [reading, stage, f"{run.clean:.1f}", experts, f"{run.square:.1f}", f"{run.worst:.1f}"]
        supported = all(one.startswith("yes") for one in met)
        rows.append([*row, *met, "**yes**" if supported else "-"])
    head = ["reading", "stages", "clean", "each expert", "Square", "worst", "(a) spread, lead"]
    head += ["(b) less one network", "(c) less plain-together", "supported"]
    return markdown([head, *rows])


def figures34(runs: pd.DataFrame) -> str:
    """Accuracy by M, the number of experts."""
    cells = figures.by_number(runs).pivot_table("accuracy", ["place", "line"], "M", accuracy)
    return table(cells.reindex(columns=range(1, 6)).rename(columns="M = {}".format), "", "")


def figure2(runs: pd.DataFrame) -> str:
    """SoE with and without stage 2, on images made against other networks."""
    pairs = compared(counted(runs).query("eps > 0"), SOE, ("soe-stage1", 3), *TRANSFER)
    pairs["column"] = pairs["column"].str.removeprefix("transfer")
    cells = {"accuracy": accuracy, "accuracy of theirs": accuracy, "difference": signed}
    cells = pairs.groupby(["place", "column"]).agg(cells)
    return table(cells.set_axis(["soe", "soe-stage1", "difference"], axis=1), "", "variants")


def softened(runs: pd.DataFrame) -> str:
    """SoE's experts as they are: the most confident one answers, all by their weights, or a vote;
    each attacked itself. On the seeds that all rows of a place have."""
    measured = counted(runs).query("M == 3 and column in ['clean', 'worst']")
    measured = measured[measured["method"].str.fullmatch("soe|soe at T = .*|soe's vote")]
    rows = measured.groupby("place")["method"].transform("nunique")
    of_seed = measured.groupby(["place", "seed"])["method"].transform("nunique")
    measured = measured[(rows > 1) & (of_seed == rows)]
    # in the order of T: at 0 the most confident one answers, at infinity all weigh the same
    T = (
        measured["method"]
        .replace({"soe": "0", "soe's vote": "inf"})
        .str.removeprefix("soe at T = ")
    )
    who = measured["method"].str[4:].str.strip("s ").replace("", "the most confident")
    measured = measured.assign(T=T.map(float), who=who)
    pairs = paired(measured.query("method != 'soe'"), measured.query("method == 'soe'"))
    rows = ["place", "T", "who", "column"]
    cells = measured.groupby(rows)["accuracy"].agg(accuracy).unstack()
    more = pairs.groupby(rows)["difference"].agg(signed).unstack().add_suffix(", more")
    return table(cells.join(more).droplevel("T"), "", "who answers")


def claims(runs: pd.DataFrame) -> str:
    """A row for each claim: the verdict, with a link to all that was measured, and the measurement
    that stands for them: of most seeds, then on photographs, then where networks are deepest."""
    rows = [["", "the paper's claim", "appendix", "verdict", "for example", "difference"]]
    for number, claim in enumerate(judged(runs), 1):
        example = ["-", "-"]
        if claim.evidence:
            one = max(reversed(claim.evidence), key=lambda one: (one.seeds, "photos" in one.where))
            example = [one.where, f"[{one}]({one.file})"]
        said = f"[**{claim.verdict}**](claims.md#{number})"
        rows.append([str(number), claim.text, claim.place, said, *example])
    return markdown(rows)


def evidence(runs: pd.DataFrame) -> str:
    """Every measurement that speaks of a claim, a table a claim."""
    parts = []
    for number, claim in enumerate(judged(runs), 1):
        rows = [["", "difference", "says"]]
        for one in claim.evidence:
            rows.append([one.where, f"[{one}]({one.file})", claim.says(one).strip("†")])
        where = "not in the paper" if claim.place == "-" else f"appendix {claim.place}"
        title = f"### {number}\n\n{claim.text} ({where}): **{claim.verdict}**"
        parts.append(f"{title}\n\n{markdown(rows)}" if claim.evidence else title)
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------- the command

MAKERS = {"run": run_table, "comparison": titled(comparison), "routing": titled(routing)}
MAKERS |= {"decided": titled(decided), "attacked": attacked, "stronger": stronger, "tools": tools}
MAKERS |= {"steps": steps, "ways": ways, "claims": claims, "evidence": evidence}
MAKERS |= {"summary": summary, "table2": table2, "table3": table3, "table4": table4}
MAKERS |= {"figure2": figure2, "figures34": figures34, "softened": softened, "readings": readings}


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
