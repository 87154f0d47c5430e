"""The pictures that the scripts draw, as PNG files. Those of what was measured: experiments."""

import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor


def subplots(rows: int = 1, columns: int = 1, squeeze: bool = True, **size) -> tuple[Figure, Any]:
    """A figure and its axes, without pyplot, whose settings are the user's (a notebook's, say)."""
    figure = Figure(layout="constrained", **size)
    return figure, figure.subplots(rows, columns, squeeze=squeeze)


def as_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the font lacks a sign of a name
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def as_gif(figures: Iterable[Figure]) -> bytes:
    """One after the other, the last for two seconds."""
    frames = [Image.open(io.BytesIO(as_png(figure))).convert("RGB") for figure in figures]
    palette = frames[-1].quantize(64)
    first, *rest = (frame.quantize(64, palette=palette, dither=0) for frame in frames)
    times, buffer = [120] * len(rest) + [2000], io.BytesIO()
    first.save(
        buffer, "gif", optimize=True, save_all=True, append_images=rest, duration=times, loop=0
    )
    return buffer.getvalue()


def plane(x: Tensor, y: Tensor, panels: list[tuple[str, Callable, list]], heading: str) -> Figure:
    """Points x [N, 2] with labels y [N], -1 or +1, and for each panel who answers what where.

    A panel is (title, rule, lines): rule(z [B, 2]) -> (the answer's sign [B], who gives it [B], or
    None), and lines (name, style, a [2], b), where a . x + b = 0. Colours and symbols mean labels.
    """
    colours, side = {-1: "C0", 1: "C1"}, torch.linspace(-2.5, 2.5, 200)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)  # [200, 200, 2]
    figure, axes = subplots(1, len(panels), figsize=(9.5, 5.8))
    figure.suptitle(heading, fontsize=10)
    legend = {}
    for axis, (title, rule, lines) in zip(axes, panels):
        sign, answering = rule(grid.view(-1, 2))
        shades = {"colors": ["C0", "C1"], "alpha": 0.15}
        axis.contourf(side, side, sign.view(200, 200), [-2, 0, 2], **shades)
        for label, marker in ((-1, "o"), (1, "+")):
            style = {"color": colours[label], "marker": marker, "linewidths": 0.8, "s": 14}
            axis.scatter(*x[y == label].T, label=f"sample, $y = {label:+d}$", **style)
        for name, style, a, b in lines:
            # the line's point nearest to the origin, and its direction
            foot, along = -b * a / a.square().sum(), torch.stack([-a[1], a[0]]) / a.norm()
            axis.plot(*torch.stack([foot - 9 * along, foot + 9 * along]).T, style, label=name)
        for j in range(2) if answering is not None else ():
            inner = (slice(10, -10, 10), slice(20, -20, 10))
            area = grid[inner][(answering == j).view(200, 200)[inner]]  # of expert j
            if len(area):  # its name stands where no samples are
                place = area[torch.cdist(area, x).min(1).values.argmax()]
                box = {"facecolor": "white", "edgecolor": "black", "boxstyle": "round"}
                axis.text(*place, f"$f_{j + 1}$ answers", ha="center", fontsize=9, bbox=box)
        axis.set(title=title, xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal")
        axis.set(xlabel="$x_1$", ylabel="$x_2$")
        legend |= {name: handle for handle, name in zip(*axis.get_legend_handles_labels())}
    for label in (-1, 1):
        patch = Rectangle((0, 0), 1, 1, color=colours[label], alpha=0.15)
        legend[f"answered there: ${label:+d}$"] = patch
    figure.legend(legend.values(), legend, fontsize=8, loc="outside lower center", ncols=4)
    return figure


def curves(history: list[dict]) -> bytes:
    """A run's history: loss, accuracy, and each expert's share of the images. Each stage has a line
    of its own for its loss."""
    epochs = [entry["epoch"] for entry in history]
    figure, (left, middle, right) = subplots(1, 3, figsize=(13, 4))
    for stage in dict.fromkeys(entry["stage"] for entry in history):
        losses = {entry["epoch"]: entry["loss"] for entry in history if entry["stage"] == stage}
        line = "k.-" if stage == 1 else "ks--"
        left.plot(list(losses), list(losses.values()), line, ms=4, label=f"stage {stage}")
    left.set_title("training loss")
    middle.plot(epochs, [entry["accuracy"] for entry in history], "k.-", label="clean")
    if "robust" in history[0]:
        middle.plot(epochs, [entry["robust"] for entry in history], "ks--", ms=4, label="attacked")
    middle.set_title("accuracy on training images (%)")
    keys = [key for key in ("answered", "best") if key in history[0]]
    for j, marker in zip(range(len(history[0]["best"])), itertools.cycle("osD^v<>p")):
        for key in keys:
            share, style = [entry[key][j] for entry in history], {"color": f"C{j}", "ms": 5}
            style |= {"marker": marker} if key == keys[0] else {"lw": 1}
            line = "-" if key == "answered" else ":"
            right.plot(epochs, share, line, label=f"expert {j + 1} {key}", **style)
    right.set_title("share of the clean images (%)")
    meanings = {"answered": "its confidence is highest", "best": "its loss is lowest"}
    for axis in (left, middle, right):
        axis.set_xlabel("epoch")
        axis.legend(fontsize=7, ncols=len(keys) if axis is right else 1)
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
        for before, after in zip(history, history[1:]):
            if before["stage"] != after["stage"]:
                axis.axvline(after["epoch"] - 0.5, color="gray", linewidth=0.8)
    middle.set_ylim(-2, 102)
    right.set_ylim(-2, 102)
    right.set_xlabel("\n".join(["epoch", *(f"{key}: {meanings[key]}" for key in keys)]))
    return as_png(figure)


def _show(axis: Any, image: Tensor, *titles: str, size: int) -> None:
    """An image [C, H, W] in [0, 1]. Names of files and classes, with $ in them, are no formulas."""
    axis.imshow(image.permute(1, 2, 0).squeeze(-1).cpu().numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.set_title("\n".join(titles).replace(", ", "\n"), fontsize=size, parse_math=False)


def grid(names: list[str], images: Tensor, titles: list[str]) -> bytes:
    """Images [N, C, H, W] in [0, 1], six in a row, each under its name and its title."""
    rows = math.ceil(len(names) / 6)
    figure, axes = subplots(rows, 6, squeeze=False, figsize=(10.2, 2.4 * rows))
    for axis, image, name, title in zip(axes.flat, images, names, titles):
        _show(axis, image, name, title, size=8)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    return as_png(figure)


def change(x: Tensor, x_adv: Tensor, eps: float) -> tuple[str, Tensor]:
    """x_adv - x around grey, ten times as large, or so that eps is white; and what to call it."""
    times = min(10, 0.5 / eps)
    return f"the change, times {times:.3g}, grey: none", (0.5 + times * (x_adv - x)).clamp(0, 1)


def strip(names: list[str], rows: dict[str, tuple[Tensor, list[str]]]) -> bytes:
    """A column for each name, a row {heading: (images [N, C, H, W] in [0, 1], their titles)}."""
    size = (1.8 * len(names), 2.1 * len(rows))
    figure, axes = subplots(len(rows), len(names), squeeze=False, figsize=size)
    for i, (heading, (images, titles)) in enumerate(rows.items()):
        axes[i, 0].set_ylabel(heading.replace(", ", "\n"), fontsize=9)
        for axis, image, name, title in zip(axes[i], images, names, titles):
            _show(axis, image, *([name] if i == 0 else []), title, size=9)
    return as_png(figure)
