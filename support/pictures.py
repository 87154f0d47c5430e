"""The pictures that the scripts draw, as PNG files. Those of what was measured: experiments."""

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

PLAIN = {"fontsize": 9, "parse_math": False}  # names of files and classes, with $ in them


def subplots(rows: int = 1, columns: int = 1, squeeze: bool = True, **how) -> tuple[Figure, Any]:
    """A figure and its axes; without pyplot, whose settings are the user's (a notebook's, say)."""
    figure = Figure(layout="constrained", **how)
    return figure, figure.subplots(rows, columns, squeeze=squeeze)


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
    lines = {key: line for key, line in (("answered", "-"), ("best", ":")) if key in history[0]}
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


def grid(names: list[str], images: Tensor, titles: list[str], across: int = 6) -> bytes:
    """Images [N, C, H, W] in [0, 1], `across` in a row, each under its name and its title."""
    rows = math.ceil(len(names) / across)
    how = {"figsize": (1.7 * across, 2.1 * rows), "squeeze": False}
    figure, axes = subplots(rows, across, **how)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, name, title in zip(axes.flat, images.cpu(), names, titles):
        axis.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"{name}\n" + title.replace(", ", "\n"), **PLAIN | {"fontsize": 8})
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
            axis.set_title(title.replace(", ", "\n"), **PLAIN)
    for axis, name in zip(axes[0], names):
        axis.set_title(name.replace(", ", "\n") + "\n" + axis.get_title(), **PLAIN)
    return as_png(figure)
