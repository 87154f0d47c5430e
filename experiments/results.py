"""Writes the tables of the READMEs from the records in results/: no number is typed by hand.

    python -m experiments.results    # rewrites what stands between the marks, and draws figures/

A mark names one of the functions in MAKERS and the records it reads (records.py):

    <!-- comparison: compare/digits-*-depth2-*.json -->
    <!-- end -->
"""

import contextlib
import io
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path, PurePath

from experiments import figures
from experiments.claims import (
    NAMES,
    TRANSFER,
    differences,
    judged,
    placed,
    trained_as,
    with_column,
)
from experiments.intervals import interval, mean_and_deviation, paired_difference
from experiments.records import matching
from support import files, options
from support.tables import duration, print_report

HERE = Path(__file__).parent
TEXTS = (HERE.parent / "README.md", *sorted(HERE.glob("*.md")))
MAIN = "digits-*-n3-eps0.1-*.json"  # the comparison with all the rivals
MARK = re.compile(r"(<!-- (\w+): (\S+) -->\n).*?(<!-- end -->)", re.S)
HEADINGS = {"pgd": "PGD-20", "apgd": "AutoPGD", "square": "Square"}
Rows = list[list[str]]  # the heading first


PAPER = json.loads((HERE / "paper.json").read_text())  # its numbers


def group(results: Iterable[dict]) -> dict[str, dict[str, list[dict]]]:
    """{title: {method: its runs, in the order of their seeds}}; all folds of a data set together,
    as each has a seed of its own."""
    grouped = {}
    for result in sorted(results, key=lambda result: result["settings"]["seed"]):
        s = result["settings"]
        data_name = re.sub(r"-fold\d+$", "-folds", s["data_name"])
        title = f"{data_name}, {s['n']} x ResNet{s['depth']}, eps {s['eps']:g}"
        grouped.setdefault(title, {}).setdefault(result["method"], []).append(result)
    return {
        title: dict(sorted(methods.items(), key=_soe_first)) for title, methods in grouped.items()
    }


def _soe_first(item: tuple[str, list[dict]]) -> tuple[bool, str]:
    return not item[0].startswith("soe"), item[0]


# ---------------------------------------------------------------------------------- what is shown


def text(values: list[float]) -> str:
    return " ± ".join(f"{value:.1f}" for value in values) or "-"


def cells(results: list[dict], column: str, row: str | None = None) -> list[float]:
    """Mean and deviation of one column; nothing where it was not measured."""
    found = [r["table"][row or r["row"]].get(column) for r in results]
    return [] if None in found or not found else mean_and_deviation(found)


def comparison(methods: dict[str, list[dict]]) -> Rows:
    """Each method attacked itself; the last column is paired with the first method."""
    first, *_ = methods.values()
    attacks = first[0]["evaluation"]["attack"] if first[0]["settings"]["eps"] else []
    columns = ["clean", *attacks, *(["worst"] if attacks else [])]
    decisive = list(first[0]["correct"])[-1]  # worst; the only attack, or clean, where that is all
    of_first = f"{decisive} less {first[0]['method']}'s"
    rows = [["", "units", *(HEADINGS.get(c, c) for c in columns), of_first, "alone", "any"]]
    for method, results in methods.items():
        difference = "-"
        by_seed = [{r["settings"]["seed"]: r for r in part} for part in (results, first)]
        seeds = sorted(by_seed[0].keys() & by_seed[1].keys())  # the others have no pair
        if method != first[0]["method"] and seeds:
            pair = [[list(of[seed]["correct"].values())[-1] for seed in seeds] for of in by_seed]
            difference = "{:+.1f} ± {:.1f}".format(*paired_difference(*pair))
        experts = [statistics.mean(alone(r)) for r in results]
        shown = [text(cells(results, column)) for column in columns]
        others = [text(mean_and_deviation(experts)), text(cells(results, "clean", "any"))]
        rows.append([method, f"{results[0]['units']:,}", *shown, difference, *others])
    return rows


def routing(methods: dict[str, list[dict]]) -> Rows:
    """How the experts divide the work on clean images, for methods in which one answers."""
    rows = [["", "images disagreed on", "correct: answering", "best fixed", "any", "class share"]]
    for method, results in methods.items():
        if "clean" in (of := results[0]["specialisation"]):
            columns = {
                key: [r["specialisation"]["clean"]["disagree"][key] for r in results]
                for key in of["clean"]["disagree"]
            }
            share = [
                statistics.mean(map(max, zip(*r["specialisation"]["clean"]["answers"])))
                for r in results
            ]
            shown = [
                text(mean_and_deviation(v)) if None not in v else "-"
                for v in (*columns.values(), share)
            ]
            rows.append([method, *shown])
    return rows


def decided(methods: dict[str, list[dict]]) -> Rows:
    """Of all seeds together, the images that each attack took, and that no other took."""
    first, *_ = methods.values()
    attacks = list(first[0]["decided"])
    rows = [["images taken (by it alone)", *(HEADINGS.get(a, a) for a in attacks)]]
    for method, results in methods.items():
        shown = []
        for attack in attacks:
            counts = [r["decided"].get(attack, {}) for r in results]
            took, alone = (sum(c.get(k, 0) for c in counts) for k in ("took", "alone"))
            shown.append(f"{took} ({alone})" if counts[0] else "-")
        rows.append([method, *shown])
    return rows


def attacked(results: list[dict]) -> Rows:
    """Models, or parts of one, each attacked itself: files of experiments.evaluate."""
    columns, found = {}, []
    for result in results:
        what = result["command"]["part"] or result["row"]
        what = f"expert {what}" if what.isdecimal() else what
        for eps, of_eps in result["eps"].items():
            cells = of_eps["table"][result["row"]]
            deviation = of_eps["deviation"].get(result["row"], {})
            columns |= dict.fromkeys(column for column in cells if column != "own")
            trained = f"{trained_as(result['model'])}, ResNet{result['model']['depth']}"
            found.append((trained, eps, what, cells, deviation))
    rows = [["trained as", "eps", "attacked itself", *(HEADINGS.get(c, c) for c in columns)]]
    for *names, cells, deviation in found:
        values = [[cells[c], deviation[c]] if c in deviation else [cells.get(c)] for c in columns]
        rows.append([*names, *("-" if None in pair else text(pair) for pair in values)])
    return rows


def stronger(results: list[dict]) -> Rows:
    """Models attacked once more, over their seeds: files of experiments.evaluate, beside those of
    experiments.compare in photos/, on these images and on others that these never saw. The last row
    is the second method's less the first's."""
    methods: dict[str, list[dict]] = {}
    for result in sorted(results, key=lambda result: result["model"]["seed"]):
        (of_eps,) = result["eps"].values()
        (before,) = matching(f"photos/{PurePath(result['name']).name}")
        weaker = before["correct"]["worst"]
        again = {"worst, on these": of_eps["correct"]["worst"][: len(weaker)]}
        again["by the weaker attacks"] = weaker
        again["on the others"] = of_eps["correct"]["worst"][len(weaker) :]
        methods.setdefault(before["method"], []).append(of_eps["correct"] | again)
    (first, ours), (second, theirs) = methods.items()
    columns = list(max(ours[0], theirs[0], key=len))  # a vote has no adaptive attack
    rows = [["", *(HEADINGS.get(c, c) for c in columns)], [first], [second], [f"{second}, more"]]
    for column in columns:
        bits = [[correct[column] for correct in of if column in correct] for of in (ours, theirs)]
        for row, of_seeds in zip(rows[1:], bits):
            row.append(
                text(mean_and_deviation(list(map(percent_of, of_seeds)))) if of_seeds else "-"
            )
        rows[3].append(signed(*paired_difference(bits[1], bits[0])) if all(bits) else "-")
    return rows


def steps(results: list[dict]) -> Rows:
    """Time of a training step: a file of experiments.bench_step."""
    (result,) = results
    soe = statistics.mean(result["seconds"]["soe"].values())
    rows = [["", "stage 1", "stage 2", "mean / SoE's", "hours of Table 1 / SoE's"]]
    for method, of_stage in result["seconds"].items():
        shown = [duration(of_stage[s]) if s in of_stage else "-" for s in ("1", "2")]
        ratio = statistics.mean(of_stage.values()) / soe
        paper = result["table 1"].get(method)
        rows.append([method, *shown, f"{ratio:.2f}", f"{paper:.2f}" if paper else "-"])
    return rows


def ways(results: list[dict]) -> Rows:
    """Time of a step, one way down after the other: a file of experiments.bench_step --ablate."""
    (result,) = results
    rows = [["", "stage 1", "stage 2", "times as fast as the first"]]
    slowest = statistics.mean(next(iter(result["ways"].values())))
    for name, times in result["ways"].items():
        rows.append([name, *map(duration, times), f"{slowest / statistics.mean(times):.1f}"])
    return rows


def tools(results: list[dict]) -> Rows:
    """Other people's attacks beside ours: files of experiments.other_tools."""
    models = [result["model"] for result in results]
    rows = [["% left (taken of what our worst leaves)", *map(trained_as, models)]]
    left = [result["our worst"] for result in results]
    shown = [f"{100 * of['left'] / of['images']:.1f} ({of['left']} images)" for of in left]
    rows.append(["our worst of PGD, AutoPGD, Square, adaptive", *shown])
    for name in results[0]["rows"]:
        of_tool = [result["rows"][name] for result in results]
        rows.append([name, *(f"{of['correct']:.1f} ({of['of ours']})" for of in of_tool)])
    return rows


def run_table(results: list[dict]) -> str:
    """What a run prints at its end: the metrics.json of one."""
    (result,) = results
    printed, s = io.StringIO(), result["settings"]
    with contextlib.redirect_stdout(printed):
        print_report(result, "collaboration", result["images"], s["eps"])
    return f"```\n{printed.getvalue().strip()}\n```"


# ------------------------------------------------------------------- the paper's tables and figures


def beside(ours: str, paper: float | None) -> str:
    """Our number, and the paper's in brackets."""
    return ours if paper is None else f"{ours} ({paper:.1f})"


def summary(results: list[dict]) -> Rows:
    """SoE, the ensemble and soft synergy: clean accuracy, and what is left of it under the worst
    attack, at the paper's eps 0.03, on digits at 0.1. † marks one seed of training."""
    rows = [["clean → under the worst attack", "SoE", "the ensemble", "soft synergy"]]
    rows[0] += ["the ensemble, less SoE", "soft synergy, less the ensemble"]
    for place, methods in placed(results).items():
        digits = place.data == "digits"
        soft = "soft-synergy" + ("" if digits else " --lr 0.03 --temperature 3")
        if place.eps != (0.1 if digits else 0.03) or ("plain-together", 3) not in methods:
            continue
        row, names = [str(place)], ["soe", "plain-together", soft]
        for name in names:
            runs = [run for run in methods.get((name, 3), []) if "table" in run]
            clean, worst = (cells(runs, column)[:1] for column in ("clean", "worst"))
            row.append(f"{text(clean)} → **{text(worst)}**" if runs else "-")
        for theirs, ours in zip(names, names[1:]):
            if measured := differences(methods, (ours, 3), (theirs, 3), "worst"):
                row.append(signed(*interval(measured[0])) + "†" * (len(measured[0]) == 1))
            else:
                row.append("-")
        rows.append(row)
    return rows


def table2(results: list[dict]) -> Rows:
    """Clean accuracy of SoE and of each expert, from the best to the worst."""
    paper = PAPER["table 2"]
    rows = [["", "SoE", "best expert", "second", "third", "any correct"]]
    shown = [f"{value:.1f}" for value in (paper["soe"], *sorted(paper["experts"], reverse=True))]
    rows.append(["the paper, eps 0.02", *shown, "-"])
    for place, methods in placed(results).items():
        runs = [run for run in methods.get(("soe", 3), []) if "table" in run]
        if runs and place.eps:
            each = [sorted(alone(run), reverse=True) for run in runs]
            columns = [cells(runs, "clean"), *map(mean_and_deviation, zip(*each))]
            columns.append(cells(runs, "clean", "any"))
            rows.append([str(place), *map(text, columns)])
    return rows


def alone(result: dict) -> list[float]:
    """Clean accuracy of each expert."""
    table, M = result["table"], result["settings"]["n"]
    return [table[f"expert {j + 1}"]["clean"] for j in range(M)]


def table3(results: list[dict]) -> str:
    """Accuracy under Square, the paper's in brackets, and under the worst attack: by method and
    eps, a table for each data set and depth."""
    paper, grouped = PAPER["table 3"], {}
    for place, methods in placed(results).items():
        if place.eps:
            grouped.setdefault((place.data, place.depth), {})[place.eps] = methods
    parts = []
    for (name, depth), of_eps in grouped.items():
        rows = [["", *(f"{what}, eps {eps:g}" for eps in of_eps for what in ("Square", "worst"))]]
        for method in dict.fromkeys(m for methods in of_eps.values() for m, M in methods if M == 3):
            shown = []
            for eps, methods in of_eps.items():
                runs = [run for run in methods.get((method, 3), []) if "table" in run]
                theirs = paper.get(method.split()[0]) if name != "digits" else None
                known = theirs and eps in paper["eps"]
                number = theirs[paper["eps"].index(eps)] if known else None
                shown += [beside(text(cells(runs, "square")), number), text(cells(runs, "worst"))]
            if set(shown) != {"-"}:
                rows.append([method, *shown])
        parts.append(f"**{NAMES.get(name, name)}, 3 x ResNet{depth}**\n\n{markdown(rows)}")
    return "\n\n".join(parts)


def table4(results: list[dict]) -> Rows:
    """Clean accuracy by depth, trained without attacks; the paper's in brackets."""
    paper = PAPER["table 4"]
    rows = [["", "one network", "SoE", "gain", "three networks, their vote", "its gain"]]
    for place, methods in placed(results).items():
        if measured := differences(methods, ("soe", 3), ("plain", 1), "clean"):
            if place.eps:
                continue
            known = place.data != "digits" and place.depth in paper["depth"]
            theirs = [paper[m][paper["depth"].index(place.depth)] for m in ("plain", "soe")]
            theirs = theirs if known else [None, None]
            gain = None if not known else theirs[1] - theirs[0]
            single, soe, vote = (
                methods.get(w, []) for w in (("plain", 1), ("soe", 3), ("plain", 3))
            )
            voting = differences(methods, ("plain", 3), ("plain", 1), "clean")
            rows.append(
                [
                    str(place),
                    beside(text(cells(single, "clean")), theirs[0]),
                    beside(text(cells(soe, "clean")), theirs[1]),
                    beside(signed(*interval(measured[0])), gain),
                    text(cells(vote, "clean")),
                    signed(*interval(voting[0])) if voting else "-",
                ]
            )
    return rows


def readings(results: list[dict]) -> Rows:
    """Each reading of the paper, and whether it does what the paper states: (a) its experts' clean
    accuracies lie within 3 points, none ahead of the collaboration; (b) trained without attacks it
    is not below one network, (c) under Square not below plain-together, by more than the interval.
    """
    stages = {"0": "2 alone", "12": "1 alone", "": "half and half"}  # of 12 epochs
    (depth,) = {run["settings"]["depth"] for run in results}
    rivals = matching(f"soft-tuning/photos-val-plain-*-depth{depth}-n3-eps0.03-*.json")
    at = {(run["method"], run["settings"]["n"], run["settings"]["eps"]): run for run in results}
    at |= {(run["method"], 3, 0.03): run for run in rivals}

    def less(ours: dict | None, theirs: dict | None, column: str) -> tuple[bool | None, str]:
        if not (ours and theirs):
            return None, "-"
        difference = paired_difference([ours["correct"][column]], [theirs["correct"][column]])
        return sum(difference) >= 0, signed(*difference)

    rows = [["reading", "stages", "clean", "each expert", "Square", "worst"]]
    rows[0] += ["(a) spread, lead", "(b) less one network", "(c) less plain-together", "supported"]
    attacked = [run for (*_, eps), run in at.items() if eps]
    for run in sorted(attacked, key=lambda run: -run["table"][run["row"]]["worst"]):
        of_all, experts = run["table"][run["row"]], alone(run)
        flags, _, first = run["method"].partition(" --stage1-epochs ")
        row = [flags, "-", f"{of_all['clean']:.1f}", ", ".join(f"{of:.1f}" for of in experts)]
        row += [f"{of_all[column]:.1f}" for column in ("square", "worst")]
        met: list[tuple[bool | None, str]] = [(None, "-")] * 3
        if flags.startswith("soe"):
            row[1], spread = stages[first], max(experts) - min(experts)
            # without attacks the stages have one loss, so either alone is the same run
            clean = at.get((run["method"].replace("epochs 12", "epochs 0"), 3, 0))
            lead = of_all["clean"] - max(experts)  # of the collaboration
            met[0] = round(spread, 1) <= 3 and lead >= 0, f"{spread:.1f}, {lead:+.1f}"
            met[1] = less(clean, at.get(("plain", 1, 0)), "clean")
            met[2] = less(run, at.get(("plain-together", 3, 0.03)), "square")
        row += [said if yes is None else f"{'yes' if yes else 'no'}: {said}" for yes, said in met]
        rows.append([*row, "**yes**" if all(yes for yes, _ in met) else "-"])
    return rows


def dial(results: list[dict]) -> dict[str, dict[float, dict[str, float]]]:
    """{data: {sigma: {line: percent}}} of SoE, half and half, where sigma alone is not the default.
    Which rule of confidence it is `results` decide."""
    found: dict[str, dict] = {}
    for run in results:
        s, table = run["settings"], run["table"]
        if not s["eps"] or not set(run["method"].split()[1::2]) <= {"--confidence", "--sigma"}:
            continue
        of = {"an expert alone": statistics.mean(alone(run)), "any expert": table["any"]["clean"]}
        of |= {"the vote": table["vote"]["clean"], "the collaboration": table[run["row"]]["clean"]}
        of["the collaboration, worst attack"] = table[run["row"]]["worst"]
        title = f"{NAMES.get(s['data_name'], s['data_name'])}, ResNet{s['depth']}, eps {s['eps']:g}"
        found.setdefault(title, {})[s["sigma"]] = of
    return {title: dict(sorted(of.items())) for title, of in found.items()}


def signed(difference: float, half: float) -> str:
    return f"{difference:+.1f} ± {half:.1f}"


def by_number(results: list[dict]) -> dict[str, dict[str, dict[int, list[float]]]]:
    """{place: {"method, column": {M: [mean, deviation]}}}, M = 1 .. 5, as in Figures 3 and 4."""
    found: dict[str, dict] = {}
    for place, methods in placed(results).items():
        names = {method for method, M in methods if M not in (1, 3)} if place.eps else ()
        for method, column in product(sorted(names), ("square", *TRANSFER, "worst")):
            for M in range(1, 6):
                runs = methods.get((method, M), [])
                shares = [share(r, column) for r in runs if column in r["correct"]]
                if shares:
                    lines = found.setdefault(str(place), {}).setdefault(f"{method}, {column}", {})
                    lines[M] = mean_and_deviation(shares)
    return found


def figures34(results: list[dict]) -> Rows:
    rows = [["", "", *(f"M = {M}" for M in range(1, 6))]]
    for place, lines in by_number(results).items():
        rows += [
            [place, name, *(text(of.get(M, [])) for M in range(1, 6))] for name, of in lines.items()
        ]
    return rows


def sigma_T_plane(
    results: Iterable[dict], rates: dict[str, float]
) -> dict[str, dict[tuple[float, float], dict[str, float]]]:
    """{title: {(sigma, T): {"clean", "worst": mean over seeds}}}, of runs at their data's rate.
    T = 0 is the paper's method; T = infinity are ensembles: trained for their vote, or (sigma =
    infinity) each by itself."""
    ensembles = {"plain-jointly": (1.0, math.inf), "plain-together": (math.inf, math.inf)}
    found: dict[str, dict] = {}
    for title, methods in group(results).items():
        for method, runs in methods.items():
            name, *flags = method.split()
            s = runs[0]["settings"]
            where = ensembles.get(name, (s.get("sigma"), s.get("temperature", 0.0)))
            known = name in (*ensembles, "soe", "soft-synergy")
            alike = set(flags[::2]) <= {"--sigma", "--temperature", "--lr"}
            if known and alike and s["lr"] == rates[s["data_name"]]:
                of = {c: cells(runs, c)[0] for c in ("clean", "worst")}
                found.setdefault(title, {})[where] = of
    return found


def fronts(results: Iterable[dict]) -> dict[str, dict[str, dict[float, dict[str, list[float]]]]]:
    """{title: {method: {W, the weight of clean images: {"clean", "worst": [mean, deviation]}}}}."""
    found: dict[str, dict] = {}
    for title, methods in group(results).items():
        for method, runs in methods.items():
            name, W = method.split(" --clean-weight")[0], runs[0]["settings"].get("clean_weight", 1)
            of = {column: cells(runs, column) for column in ("clean", "worst")}
            data_name, _, rest = title.partition(",")
            place = f"{NAMES.get(data_name, data_name)},{rest}"
            found.setdefault(place, {}).setdefault(name, {})[W] = of
    return found


def share(run: dict, column: str) -> float:
    return percent_of(run["correct"][column])


def percent_of(bits: str) -> float:
    return 100 * bits.count("1") / len(bits)


def figure2(results: list[dict]) -> Rows:
    """SoE with and without stage 2, on images made against other networks."""
    rows = [["", "variants", "soe", "soe-stage1", "difference"]]
    for place, methods in placed(results).items():
        for column in TRANSFER if place.eps else ():
            if found := differences(methods, ("soe", 3), ("soe-stage1", 3), column):
                both = [with_column(methods, m, 3, column) for m in ("soe", "soe-stage1")]
                seeds = sorted(both[0].keys() & both[1].keys())
                shares = ([share(of[seed], column) for seed in seeds] for of in both)
                shown = [text(mean_and_deviation(values)) for values in shares]
                rows.append([str(place), column[8:], *shown, signed(*interval(found[0]))])
    return rows


def softened(results: list[dict]) -> Rows:
    """SoE's experts as they are: the most confident one answers, all by their weights, or a vote;
    each attacked itself."""
    rows = [["", "who answers", "clean", "worst", "clean, more", "worst, more"]]
    for place, methods in placed(results).items():
        names = sorted(
            (float(name.split("= ")[-1]) if "=" in name else 99 * ("vote" in name), name)
            for name, M in methods
            if M == 3 and (name == "soe" or name.startswith(("soe at T", "soe's vote")))
        )
        for _, name in names if len(names) > 1 else ():
            row = [str(place), {"soe": "the most confident"}.get(name, name[4:].strip("s "))]
            columns = ("clean", "worst")
            for column in columns:
                runs = with_column(methods, name, 3, column).values()
                row.append(text(mean_and_deviation([share(r, column) for r in runs])))
            for column in columns:
                found = differences(methods, (name, 3), ("soe", 3), column)
                row.append(signed(*interval(found[0])) if name != "soe" else "-")
            rows.append(row)
    return rows


def claims(results: list[dict]) -> Rows:
    """A row for each claim: the verdict, with a link to all that was measured, and the measurement
    that stands for them: of most seeds, then on photographs, then where networks are deepest."""
    rows = [["", "the paper's claim", "appendix", "verdict", "for example", "difference"]]
    for number, (claim, verdict, evidence) in enumerate(judged(results), 1):
        example = ["-", "-"]
        if evidence:
            found = reversed([of for of, _ in evidence])
            one = max(found, key=lambda of: (of.seeds, "photos" in of.where))
            example = [one.where, f"[{one}]({one.file})"]
        said = f"[**{verdict}**](claims.md#{number})"
        rows.append([str(number), claim.text, claim.place, said, *example])
    return rows


def evidence(results: list[dict]) -> str:
    """Every measurement that speaks of a claim, a table a claim."""
    parts = []
    for number, (claim, verdict, found) in enumerate(judged(results), 1):
        rows = [[one.where, f"[{one}]({one.file})", said.strip("†")] for one, said in found]
        where = "not in the paper" if claim.place == "-" else f"appendix {claim.place}"
        title = f"### {number}\n\n{claim.text} ({where}): **{verdict}**"
        table = markdown([["", "difference", "says"], *rows]) if rows else ""
        parts.append(f"{title}\n\n{table}".strip())
    return "\n\n".join(parts)


def markdown(rows: Rows) -> str:
    head, *rest = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rest])


def doubtful(methods: dict[str, list[dict]]) -> list[str]:
    """What the referee doubts of these runs (`evaluate.doubts`), a line each."""
    return [
        f"Doubtful, {method}, seed {run['settings']['seed']}: {doubt}."
        for method, runs in methods.items()
        for run in runs
        for doubt in run.get("doubts", [])
    ]


def grouped_markdown(make: Callable, below: Callable = lambda methods: []) -> Callable:
    """A maker's table of each title, and what stands `below`; the title above it where there are
    several."""

    def of(results: list[dict]) -> str:
        grouped = group(results)
        parts = ["\n\n".join([markdown(make(of)), *below(of)]) for of in grouped.values()]
        titled = [f"**{title}**\n\n{part}" for title, part in zip(grouped, parts)]
        return "\n\n".join(titled if len(titled) > 1 else parts)

    return of


MAKERS = {
    "comparison": grouped_markdown(comparison, doubtful),
    "routing": grouped_markdown(routing),
    "decided": grouped_markdown(decided),
    "attacked": lambda results: markdown(attacked(results)),
    "stronger": lambda results: markdown(stronger(results)),
    "steps": lambda results: markdown(steps(results)),
    "ways": lambda results: markdown(ways(results)),
    "tools": lambda results: markdown(tools(results)),
    "run": run_table,
    "claims": lambda results: markdown(claims(results)),
    "evidence": evidence,
    "readings": lambda results: markdown(readings(results)),
    "summary": lambda results: markdown(summary(results)),
    "table2": lambda results: markdown(table2(results)),
    "table3": table3,
    "table4": lambda results: markdown(table4(results)),
    "figure2": lambda results: markdown(figure2(results)),
    "softened": lambda results: markdown(softened(results)),
    "figures34": lambda results: markdown(figures34(results)),
}


def written(content: str) -> str:
    """A text with its tables made anew. Raises ValueError where a mark finds no files."""

    def replace(mark: re.Match) -> str:
        opening, maker, pattern, end = mark.groups()
        if not (found := matching(pattern)):
            raise ValueError(f"no record {pattern}")
        return f"{opening}\n{MAKERS[maker](found)}\n\n{end}"

    return MARK.sub(replace, content)


def summaries(methods: dict[str, list[dict]], columns: Iterable[str]) -> dict[str, dict]:
    """{method: {column: [mean, deviation]}}, for a picture."""
    known = ["clean", *columns, "worst"]
    return {m: {c: v for c in known if (v := cells(runs, c))} for m, runs in methods.items()}


def classes(results: list[dict]) -> dict[str, tuple]:
    """{title: (classes, accuracy, answers)}, of each expert on each class's clean images."""
    found = {}
    for title, methods in group(results).items():
        first, s = methods["soe"][0], methods["soe"][0]["settings"]
        division = first["specialisation"]["clean"]
        names = s.get("class_names") or [*map(str, range(s["num_classes"]))]
        found[title] = names, division["accuracy"], division["answers"]
    return found


def drawn() -> dict[str, bytes]:
    """{name: PNG} of the pictures in figures/ that show results."""
    compared = group(matching(f"compare/{MAIN}"))
    attacks = next(iter(next(iter(compared.values())).values()))[0]["evaluation"]["attack"]
    shown = {title: summaries(methods, attacks) for title, methods in compared.items()}
    (of_model,) = matching("attacks_by_eps.json")
    by_eps = {float(eps): r["table"][of_model["row"]] for eps, r in of_model["eps"].items()}
    scaling = matching("scaling_cpu.json")[0]["tables"]
    scaling = {axis: {int(v): of for v, of in table.items()} for axis, table in scaling.items()}
    numbers = by_number(matching("compare/digits-*-depth2-*.json"))
    numbers = {
        place: {name: line for name, line in lines.items() if "transfer" not in name}
        for place, lines in numbers.items()
    }
    of_soe = matching("compare/digits-soe-depth*-n3-eps0.1-*seed0.json")
    of_soe += matching("photos/*-soe-depth*-n3-eps0.03-*seed0.json")
    rates = {"digits-val": 0.1, "photos-val": 0.03}  # soft synergy's
    plane = sigma_T_plane(matching("*tuning/*-depth*-n3-*.json"), rates)
    # at rate 0.3 some seeds of soft synergy learn nothing: in the table, not in the picture
    weighed = matching("front/digits-*.json")
    weighed = [run for run in weighed if "soft-synergy-lr0.3" not in run["name"]]
    for name in ("plain-together", "plain-together-lr0.3", "soft-synergy"):  # W = 1
        weighed += matching(f"compare/digits-{name}-depth2-n3-eps0.1-*.json")
    weighed += matching("front/cifar10-jpeg-10000-*seed0.json")
    for name in ("plain-together", "soft-synergy-lr0.03-temperature3"):
        weighed += matching(f"photos/*-{name}-depth2-n3-eps0.03-epochs12-seed0.json")
    return {
        "front.png": figures.front(fronts(weighed)),
        "plane.png": figures.sigma_T_plane(plane),
        "experts_by_class.png": figures.experts_by_class(classes(of_soe)),
        "by_number.png": figures.by_number(numbers),
        "compare.png": figures.methods(shown, ("clean", *attacks, "worst")),
        "attacks_by_eps.png": figures.accuracy_by_eps(by_eps, of_model["row"]),
        "scaling.png": figures.scaling(scaling),
        "dial.png": figures.dial(
            dial(matching("readings/*-soe-confidencerectified-*depth2-*seed0.json"))
        ),
    }


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.results")
    parser.parse_args(argv)
    with parser.errors_in_one_line():
        for path in TEXTS:
            files.write(path, written(path.read_text()).encode())
            print(f"wrote {path}")
        for name, picture in drawn().items():
            files.write(HERE / "figures" / name, picture)
            print(f"wrote figures/{name}")


if __name__ == "__main__":
    main()
