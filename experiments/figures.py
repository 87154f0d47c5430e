"""The figures of what was measured, as PNG files: each is drawn from a frame of records."""

import itertools
import math

import pandas as pd

from experiments.claims import counted
from experiments.records import by_title, frame, matching
from experiments.transfer_set import TRANSFER
from support.pictures import Figure, Rectangle, as_png, subplots

MARKERS = "osD^v<>p"


def accuracy_by_eps(tables: dict[float, dict[str, float]], row: str) -> bytes:
    """{eps: {attack: percent}}: a line for each attack, clean accuracy as a reference."""
    figure, axis = subplots(figsize=(6, 4))
    for column, marker in zip(next(iter(tables.values())), itertools.cycle(MARKERS)):
        if column != "own":
            values = [table[column] for table in tables.values()]
            style = {"clean": "k--", "worst": "k:"}.get(column, f"{marker}-")
            width = 4 if column == "worst" else 1.5  # wide, below the attack that it is the same as
            order = 3 - width / 4
            axis.plot(list(tables), values, style, lw=width, ms=4, label=column, zorder=order)
    axis.set(xlabel="eps", ylabel=f"accuracy of the {row} (%)", ylim=(0, 100))
    axis.legend(fontsize=8)
    return as_png(figure)


def panels(count: int, width: float, height: float) -> tuple[Figure, list]:
    """A figure and its axes side by side, each `width` x `height` inches."""
    figure, axes = subplots(1, count, figsize=(width * count, height), squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    return figure, axes[0]


def legend_below(figure: Figure, columns: int) -> bytes:
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=columns, fontsize=8)
    return as_png(figure)


def experts_by_class(runs: pd.DataFrame) -> bytes:
    """A panel for each title, its first SoE: each expert's clean accuracy on each class, in numbers
    and shades, and a frame around who answers most of it."""
    titles = by_title(runs)
    figure, axes = subplots(math.ceil(len(titles) / 2), 2, figsize=(11, 2 * len(titles) / 2))
    for axis, (title, of_title) in zip(axes.flat, titles):
        record = of_title["record"].iloc[0]
        accuracy, answers = (record["specialisation"]["clean"][k] for k in ("accuracy", "answers"))
        classes = record["settings"].get("class_names") or [*map(str, range(len(answers[0])))]
        axis.imshow(accuracy, cmap="Blues", vmin=0, vmax=150, aspect="auto")
        for k in range(len(classes)):
            for j, of_expert in enumerate(accuracy):
                axis.text(k, j, f"{of_expert[k]:.0f}", ha="center", va="center", fontsize=8)
            most = max(range(len(answers)), key=lambda j: answers[j][k])
            axis.add_patch(Rectangle((k - 0.46, most - 0.44), 0.92, 0.88, fill=False, lw=1.5))
        axis.set_xticks(range(len(classes)), [name[:6] for name in classes], fontsize=7)
        axis.set_yticks(range(len(accuracy)), [f"expert {j + 1}" for j in range(len(accuracy))])
        axis.set_title(title, fontsize=9)
    return as_png(figure)


def by_number(runs: pd.DataFrame) -> pd.DataFrame:
    """Figures 3 and 4: `measurements` of methods with other than 1 and 3 experts; "line" names the
    method and the attack."""
    measured = counted(runs).query("eps > 0")
    measured = measured[measured["column"].isin(["square", *TRANSFER, "worst"])]
    methods = measured.query("M not in [1, 3]")[["place", "method"]].drop_duplicates()
    measured = measured.merge(methods, on=["place", "method"])
    return measured.assign(line=measured["method"] + ", " + measured["column"])


def draw_by_number(runs: pd.DataFrame) -> bytes:
    """A panel for each place, a line for each method under Square and the worst attack."""
    places = list(by_number(runs).query("column not in @TRANSFER").groupby("place"))
    figure, axes = panels(len(places), 3.6, 3.8)
    for axis, (place, of_place) in zip(axes, places):
        for i, (line, of_line) in enumerate(of_place.groupby("line")):
            points = of_line.groupby("M")["accuracy"]
            style = {"fmt": f"{'os^D'[i // 2]}{'-:'[i % 2]}", "color": f"C{i // 2}", "ms": 5}
            mean, spread = points.mean(), points.std().fillna(0)
            axis.errorbar(mean.index, mean, spread, **style, capsize=2, label=line)
        axis.set(title=str(place), xlabel="M, the number of experts", ylim=(0, None))
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("accuracy (%)")
    return legend_below(figure, min(4, 2 * len(places)))


def dial(runs: pd.DataFrame) -> bytes:
    """A panel for each place: accuracies of SoE, half and half, where sigma alone is not the
    default, against sigma, infinity as the last mark."""
    alike = runs["method"].str.fullmatch(r"soe( --sigma \S+)?")
    runs = runs[alike & (runs["eps"] > 0)]
    sigma = [record["settings"]["sigma"] for record in runs["record"]]
    vote = [record["table"]["vote"]["clean"] for record in runs["record"]]
    runs = runs.assign(sigma=sigma, vote=vote).sort_values("sigma")
    lines = {"alone": "an expert alone", "any": "any expert", "vote": "the vote"}
    lines |= {"clean": "the collaboration", "worst": "the collaboration, worst attack"}
    places = list(runs.groupby("place"))
    figure, axes = panels(len(places), 5.2, 4)
    for axis, (place, of_place) in zip(axes, places):
        for (column, line), style in zip(lines.items(), ("C0o-", "C0^:", "C1s-", "C3D-", "k*-")):
            points = of_place.groupby("sigma")[column]
            mean, spread = points.mean(), points.std().fillna(0)  # over seeds
            axis.errorbar(range(len(mean)), mean, spread, fmt=style, ms=5, capsize=2, label=line)
        marks = [f"{sigma:g}".replace("inf", "$\\infty$") for sigma in mean.index]
        axis.set_xticks(range(len(mean)), marks)
        axis.set(title=str(place), xlabel="$\\sigma$", ylabel="accuracy (%)", ylim=(0, 100))
    return legend_below(figure, 3)


def scaling(tables: dict[str, dict[int, dict[str, float]]]) -> bytes:
    """{axis: {value: {"stage 1", "predicted 1" and so on: seconds, "memory": GiB}}}:
    above the times, dashed what was predicted; below the memory."""
    size = (3.4 * len(tables), 5.5)
    figure, axes = subplots(2, len(tables), figsize=size, squeeze=False)
    for (above, below), (name, of_axis) in zip(axes.T, tables.items()):
        table = pd.DataFrame(of_axis).T
        values = table.index.astype(int)
        for stage, colour, marker in ((1, "C1", "o"), (2, "C2", "s")):
            measured, predicted = table[f"stage {stage}"], table[f"predicted {stage}"]
            above.plot(values, measured, f"{colour}{marker}-", label=f"stage {stage}")
            above.plot(values, predicted, f"{colour}--", label="predicted by its passes")
        below.plot(values, table["memory"], "ko-")
        above.set(ylim=(0, None), ylabel="seconds a step")
        below.set(ylim=(0, 1.1 * table["memory"].max()), ylabel="peak memory (GiB)", xlabel=name)
    axes[0, 0].legend(fontsize=8)
    return as_png(figure)


def drawn() -> dict[str, bytes]:
    """{name: PNG} of the pictures in figures/ that show results."""

    trapped = matching("compare/digits-soe-sigma1-confidenceehead-depth*-n3-eps0.1-*seed0.json")
    trapped += matching("photos/*-soe-sigma1-confidenceehead-depth*-n3-eps0.03-*seed0.json")
    by_sigma = matching("compare/digits-soe-*depth2-n3-eps0.1-epochs30-*.json")
    by_sigma += matching("dial/*.json")
    by_sigma += matching("readings/photos-val-soe-*depth2-*seed0.json")
    by_eps = matching("attacks/soe-by-eps.json")
    cells = {float(record["eps"]): record["table"]["collaboration"] for record in by_eps}
    return {
        "experts_by_class.png": experts_by_class(frame(trapped)),
        "by_number.png": draw_by_number(frame(matching("compare/digits-*-depth2-*.json"))),
        "attacks_by_eps.png": accuracy_by_eps(cells, "collaboration"),
        "scaling.png": scaling(matching("scaling_cpu.json")[0]["tables"]),
        "dial.png": dial(frame(by_sigma)),
    }
