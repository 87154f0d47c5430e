"""The pictures that the scripts draw, as PNG files."""

import io
import itertools
import math

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from torch import Tensor


def as_png(figure: plt.Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def curves(history: list[dict]) -> bytes:
    """A run's history: loss, accuracy, and each expert's share of the images."""
    epochs = [entry["epoch"] for entry in history]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    left.plot(epochs, [entry["loss"] for entry in history], "k.-")
    left.set_title("training loss")
    middle.plot(epochs, [entry["accuracy"] for entry in history], "k.-")
    middle.set_title("accuracy on clean training images (%)")
    lines = {key: line for key, line in {"answered": "-", "best": ":"}.items() if key in history[0]}
    for j in range(len(history[0]["best"])):
        for key, line in lines.items():
            share = [entry[key][j] for entry in history]
            right.plot(epochs, share, line, color=f"C{j}", label=f"expert {j + 1}, {key}")
    right.set_title(f"share of images (%): {', '.join(lines)}")
    right.set_ylim(0, 100)
    right.legend(fontsize=7, ncols=2)
    for axis in (left, middle, right):
        axis.set_xlabel("epoch; the gray line: stage 2 begins" if _stages(history) > 1 else "epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        for before, after in zip(history, history[1:]):
            if before["stage"] != after["stage"]:
                axis.axvline(after["epoch"] - 0.5, color="gray", linewidth=0.8)
    return as_png(figure)


def _stages(history: list[dict]) -> int:
    return len({entry["stage"] for entry in history})


def accuracy_by_eps(tables: dict[float, dict[str, float]], of: str) -> bytes:
    """{eps: {attack: percent}}: a line for each attack, clean accuracy as a reference."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for column in next(iter(tables.values())):
        if column != "own":
            values = [table[column] for table in tables.values()]
            style = {"clean": "k--", "worst": "k:"}.get(column, ".-")
            width = 4 if column == "worst" else 1.5  # wide, below the attack that it is the same as
            axis.plot(
                list(tables), values, style, linewidth=width, label=column, zorder=3 - width / 4
            )
    axis.set(xlabel="eps", ylabel=f"accuracy of the {of} (%)", ylim=(0, 100))
    axis.legend(fontsize=8)
    return as_png(figure)


def methods(
    tables: dict[str, dict[str, dict[str, list[float]]]], columns: tuple[str, ...]
) -> bytes:
    """{title: {method: {column: [mean, deviation]}}}: a panel for each title, a line for each
    method, a mark for each of `columns`."""
    rows = max(map(len, tables.values()))
    size = (4.6 * len(tables), 1.2 + 0.33 * rows)
    figure, axes = plt.subplots(1, len(tables), figsize=size, squeeze=False, layout="constrained")
    for axis, (title, table) in zip(axes[0], tables.items()):
        for column, marker in zip(columns, itertools.cycle("osD^v<>p")):
            values = [cells.get(column, [math.nan]) for cells in table.values()]
            means = [value[0] for value in values]
            spread = [value[1] if len(value) > 1 else 0 for value in values]
            axis.errorbar(
                means, range(len(table)), xerr=spread, fmt=marker, markersize=5, label=column
            )
        axis.set_yticks(range(len(table)), list(table))
        lowest = min(mean for cells in table.values() for mean, *_ in cells.values())
        axis.set(ylim=(len(table) - 0.5, -0.5), xlabel="accuracy (%)")
        axis.set_xlim(10 * math.floor(lowest / 10) - 1, 101)
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=8)
    return as_png(figure)


def scaling(tables: dict[str, dict[int, dict[str, float]]]) -> bytes:
    """{axis: {value: {"stage 1", "predicted 1" and so on: seconds, "memory": GiB}}}:
    above the times, dashed what was predicted; below the memory."""
    size = (3.4 * len(tables), 5.5)
    figure, axes = plt.subplots(2, len(tables), figsize=size, squeeze=False, layout="constrained")
    for (above, below), (name, table) in zip(axes.T, tables.items()):
        for stage in (1, 2):
            measured, predicted = (
                [point[f"{what} {stage}"] for point in table.values()]
                for what in ("stage", "predicted")
            )
            above.plot(list(table), measured, f"C{stage}o-", label=f"stage {stage}")
            above.plot(list(table), predicted, f"C{stage}--", label="predicted by its passes")
        memory = [point["memory"] for point in table.values()]
        below.plot(list(table), memory, "ko-")
        above.set(ylim=(0, None), ylabel="seconds a step")
        below.set(ylim=(0, 1.1 * max(memory)), ylabel="peak memory (GiB)", xlabel=name)
    axes[0, 0].legend(fontsize=8)
    return as_png(figure)


def answers(names: list[str], columns: dict[str, tuple[Tensor, list[str]]]) -> bytes:
    """A row for each name, a column {heading: (images [N, C, H, W] in [0, 1], their titles)}."""
    rows = len(names)
    figure, axes = plt.subplots(
        rows, len(columns), figsize=(5.5, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for column, (heading, (images, titles)) in enumerate(columns.items()):
        for row, (image, title) in enumerate(zip(images.cpu(), titles)):
            axis = axes[row, column]
            axis.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{heading}\n{title}" if row == 0 else title, fontsize=9)
            if column == 0:
                axis.set_ylabel(names[row], fontsize=9)
    return as_png(figure)
