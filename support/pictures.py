"""The pictures that the scripts draw, as PNG files."""

import io
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor


def subplots(rows: int = 1, columns: int = 1, **how) -> tuple[Figure, Any]:
    """A figure and its axes; without pyplot, whose settings are the user's (a notebook's, say)."""
    squeeze = {"squeeze": how.pop("squeeze", True)}
    figure = Figure(layout="constrained", **how)
    return figure, figure.subplots(rows, columns, **squeeze)


def as_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def as_gif(figures: Iterable[Figure], seconds: float = 0.12) -> bytes:
    """One after the other, the last for two seconds."""
    frames = [Image.open(io.BytesIO(as_png(figure))).convert("RGB") for figure in figures]
    palette = frames[-1].quantize(64)
    frames = [frame.quantize(64, palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times, buffer = [int(1000 * seconds)] * (len(frames) - 1) + [2000], io.BytesIO()
    how = {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0}
    frames[0].save(buffer, "gif", optimize=True, **how)
    return buffer.getvalue()


def plane(x: Tensor, y: Tensor, panels: list[tuple[str, Callable, list]], heading: str) -> Figure:
    """Points x [N, 2] with labels y [N], -1 or +1, and for each panel (title, rule, lines) what is
    answered where: rule(z [B, 2]) -> (the answer's sign [B], who gives it [B], or None), and lines
    (name, style, a [2], b) where a . x + b = 0. Colours and symbols mean labels throughout."""
    colours, side = {-1: "C0", 1: "C1"}, torch.linspace(-2.5, 2.5, 200)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)  # [200, 200, 2]
    figure, axes = subplots(1, len(panels), figsize=(9.5, 5.8))
    figure.suptitle(heading, fontsize=10)
    shades = {
        f"answered there: ${label:+d}$": Rectangle((0, 0), 1, 1, color=colour, alpha=0.15)
        for label, colour in colours.items()
    }
    told = {}
    for axis, (title, rule, lines) in zip(axes, panels):
        sign, answering = rule(grid.view(-1, 2))
        shade = {"colors": list(colours.values()), "alpha": 0.15}
        axis.contourf(side, side, sign.view(200, 200), [-2, 0, 2], **shade)
        for label, marker in ((-1, "o"), (1, "+")):
            style = {"color": colours[label], "marker": marker, "linewidths": 0.8, "s": 14}
            axis.scatter(*x[y == label].T, label=f"sample, $y = {label:+d}$", **style)
        for name, style, a, b in lines:
            # the line a . x + b = 0: its point nearest to the origin, and its direction
            foot, along = -b * a / a.square().sum(), torch.stack([-a[1], a[0]]) / a.norm()
            ends = torch.stack([foot - 9 * along, foot + 9 * along])
            axis.plot(*ends.T, style, label=name)
        for j in range(2) if answering is not None else ():
            mine = grid[10:-10:10, 20:-20:10][(answering == j).view(200, 200)[10:-10:10, 20:-20:10]]
            if len(mine):  # where no samples are
                where = mine[torch.cdist(mine, x).min(1).values.argmax()]
                box = {"facecolor": "white", "edgecolor": "black", "boxstyle": "round"}
                axis.text(*where, f"$f_{j + 1}$ answers", ha="center", fontsize=9, bbox=box)
        axis.set(title=title, xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal")
        axis.set(xlabel="$x_1$", ylabel="$x_2$")
        told |= {name: handle for handle, name in zip(*axis.get_legend_handles_labels())}
    told |= shades
    figure.legend(told.values(), told, fontsize=8, loc="outside lower center", ncols=4)
    return figure


def curves(history: list[dict]) -> bytes:
    """A run's history: loss, accuracy, and each expert's share of the images; a stage's loss is not
    another's, so that each has a line of its own."""
    epochs = [entry["epoch"] for entry in history]
    figure, (left, middle, right) = subplots(1, 3, figsize=(13, 4))
    for stage in dict.fromkeys(entry["stage"] for entry in history):
        mine = [entry for entry in history if entry["stage"] == stage]
        values = [[entry[key] for entry in mine] for key in ("epoch", "loss")]
        left.plot(*values, ".-" if stage == 1 else "s--", color="k", ms=4, label=f"stage {stage}")
    left.set_title("training loss")
    middle.plot(epochs, [entry["accuracy"] for entry in history], "k.-", label="clean")
    if "robust" in history[0]:
        middle.plot(epochs, [entry["robust"] for entry in history], "ks--", ms=4, label="attacked")
    middle.set_title("accuracy on training images (%)")
    lines = {"answered": "-", "best": ":"}
    lines = {key: line for key, line in lines.items() if key in history[0]}
    for j, marker in zip(range(len(history[0]["best"])), itertools.cycle("osD^v<>p")):
        for key, line in lines.items():
            share, style = [entry[key][j] for entry in history], {"color": f"C{j}", "ms": 5}
            style |= {"marker": marker} if key == "answered" or len(lines) == 1 else {"lw": 1}
            right.plot(epochs, share, line, label=f"expert {j + 1} {key}", **style)
    right.set_title("share of the clean images (%)")
    told = {"answered": "answered: its confidence is highest", "best": "best: its loss is lowest"}
    right.set_xlabel("epoch\n" + "\n".join(told[key] for key in lines))
    right.set_ylim(-2, 102)
    middle.set_ylim(-2, 102)
    for axis in (left, middle, right):
        axis.set_xlabel(axis.get_xlabel() or "epoch")
        axis.legend(fontsize=7, ncols=len(lines) if axis is right else 1)
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
        for before, after in zip(history, history[1:]):
            if before["stage"] != after["stage"]:
                axis.axvline(after["epoch"] - 0.5, color="gray", linewidth=0.8)
    return as_png(figure)


def accuracy_by_eps(tables: dict[float, dict[str, float]], of: str) -> bytes:
    """{eps: {attack: percent}}: a line for each attack, clean accuracy as a reference."""
    figure, axis = subplots(figsize=(6, 4))
    for column, marker in zip(next(iter(tables.values())), itertools.cycle("osD^v<>p")):
        if column != "own":
            values = [table[column] for table in tables.values()]
            style = {"clean": "k--", "worst": "k:"}.get(column, f"{marker}-")
            width = 4 if column == "worst" else 1.5  # wide, below the attack that it is the same as
            axis.plot(
                list(tables), values, style, lw=width, ms=4, label=column, zorder=3 - width / 4
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
    figure, axes = subplots(1, len(tables), figsize=size, squeeze=False)
    for axis, (title, table) in zip(axes[0], tables.items()):
        for column, marker in zip(columns, itertools.cycle("osD^v<>p")):
            values = [cells.get(column, [math.nan]) for cells in table.values()]
            means = [value[0] for value in values]
            spread = [value[1] if len(value) > 1 else 0 for value in values]
            axis.errorbar(
                means, range(len(table)), xerr=spread, fmt=marker, markersize=5, label=column
            )
        axis.set_yticks(range(len(table)), list(table))
        axis.set(ylim=(len(table) - 0.5, -0.5), xlabel="accuracy (%)")
        axis.set_xlim(-1, 101)  # the same in every panel
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=8)
    return as_png(figure)


def experts_by_class(
    tables: dict[str, tuple[list[str], list[list[float]], list[list[float]]]],
) -> bytes:
    """{title: (classes, each expert's accuracy on each class, its share of the answers there)}, in
    percent, [M][K]: the first in numbers and shades, a frame around who answers most."""
    figure, axes = subplots(math.ceil(len(tables) / 2), 2, figsize=(11, 2 * len(tables) / 2))
    for axis, (title, (classes, accuracy, answers)) in zip(axes.flat, tables.items()):
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


def by_number(tables: dict[str, dict[str, dict[int, list[float]]]]) -> bytes:
    """{title: {line: {M: [mean, deviation]}}}: a panel for each title."""
    size = (3.6 * len(tables), 3.8)
    figure, axes = subplots(1, len(tables), figsize=size, squeeze=False)
    for axis, (title, lines) in zip(axes[0], tables.items()):
        for i, (name, points) in enumerate(lines.items()):
            means = [value[0] for value in points.values()]
            spread = [value[1] if len(value) > 1 else 0 for value in points.values()]
            style = {"fmt": f"{'os^D'[i // 2]}{'-:'[i % 2]}", "color": f"C{i // 2}", "ms": 5}
            axis.errorbar(list(points), means, spread, **style, capsize=2, label=name)
        axis.set(title=title, xlabel="M, the number of experts", ylim=(0, None))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("accuracy (%)")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(4, 2 * len(tables)), fontsize=8)
    return as_png(figure)


def between(tables: dict[str, dict[tuple[float, float], dict[str, float]]]) -> bytes:
    """{title: {(sigma, T): {column: %}}}: a row of panels for each title, a panel for each column,
    sigma downwards, T to the right, infinity last."""
    first = next(iter(next(iter(tables.values())).values()))
    size = (4.8 * len(first), 3.2 * len(tables))
    figure, axes = subplots(len(tables), len(first), figsize=size, squeeze=False)
    for of_row, (title, cells) in zip(axes, tables.items()):
        sigmas, Ts = (sorted(set(values)) for values in zip(*cells))
        for axis, column in zip(of_row, first):
            shown = [[cells.get((s, T), {}).get(column, math.nan) for T in Ts] for s in sigmas]
            low, high = (f(of[column] for of in cells.values()) for f in (min, max))
            axis.imshow(shown, cmap="Blues", vmin=low, vmax=2 * high - low, aspect="auto")
            for (i, sigma), (k, T) in itertools.product(enumerate(sigmas), enumerate(Ts)):
                if (sigma, T) in cells:
                    axis.text(k, i, f"{shown[i][k]:.1f}", ha="center", va="center", fontsize=9)
            ends = {0.0: "0\nSoE", math.inf: "$\\infty$\nvote"}
            axis.set_xticks(range(len(Ts)), [ends.get(T, f"{T:g}") for T in Ts])
            axis.set_yticks(
                range(len(sigmas)), ["$\\infty$" if s == math.inf else f"{s:g}" for s in sigmas]
            )
            axis.set(xlabel="$T$", ylabel="$\\sigma$")
            axis.set_title(f"{title}: {column} (%)", fontsize=9)
    return as_png(figure)


def scaling(tables: dict[str, dict[int, dict[str, float]]]) -> bytes:
    """{axis: {value: {"stage 1", "predicted 1" and so on: seconds, "memory": GiB}}}:
    above the times, dashed what was predicted; below the memory."""
    size = (3.4 * len(tables), 5.5)
    figure, axes = subplots(2, len(tables), figsize=size, squeeze=False)
    for (above, below), (name, table) in zip(axes.T, tables.items()):
        for stage in (1, 2):
            measured, predicted = (
                [point[f"{what} {stage}"] for point in table.values()]
                for what in ("stage", "predicted")
            )
            above.plot(list(table), measured, f"C{stage}{'os'[stage - 1]}-", label=f"stage {stage}")
            above.plot(list(table), predicted, f"C{stage}--", label="predicted by its passes")
        memory = [point["memory"] for point in table.values()]
        below.plot(list(table), memory, "ko-")
        above.set(ylim=(0, None), ylabel="seconds a step")
        below.set(ylim=(0, 1.1 * max(memory)), ylabel="peak memory (GiB)", xlabel=name)
    axes[0, 0].legend(fontsize=8)
    return as_png(figure)


def grid(names: list[str], images: Tensor, titles: list[str], across: int = 6) -> bytes:
    """Images [N, C, H, W] in [0, 1], `across` in a row, each under its name and its title."""
    rows = math.ceil(len(names) / across)
    how = {"figsize": (1.7 * across, 2.1 * rows), "squeeze": False}
    figure, axes = subplots(rows, across, **how)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, name, title in zip(axes.flat, images.cpu(), names, titles):
        axis.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"{name}\n{title}", fontsize=8)
    return as_png(figure)


def change(x: Tensor, x_adv: Tensor, eps: float) -> tuple[str, Tensor]:
    """x_adv - x around grey, ten times as large, or so that eps is white; and what to call it."""
    times = min(10, 0.5 / eps)
    return f"the change, times {times:.3g}, grey: none", (0.5 + times * (x_adv - x)).clamp(0, 1)


def strip(names: list[str], rows: dict[str, tuple[Tensor, list[str]]]) -> bytes:
    """A column for each name, a row {heading: (images [N, C, H, W] in [0, 1], their titles)}."""
    how = {"figsize": (1.8 * len(names), 2.1 * len(rows)), "squeeze": False}
    figure, axes = subplots(len(rows), len(names), **how)
    for of_row, (heading, (images, titles)) in zip(axes, rows.items()):
        of_row[0].set_ylabel(heading.replace(", ", "\n"), fontsize=9)
        for axis, image, title in zip(of_row, images.cpu(), titles):
            axis.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.set_title(title.replace(", ", "\n"), fontsize=9)
    for axis, name in zip(axes[0], names):
        axis.set_title(name.replace(", ", "\n") + "\n" + axis.get_title(), fontsize=9)
    return as_png(figure)
