"""The figures of what was measured, as PNG files."""

import itertools
import math

from matplotlib.patches import Rectangle

from support.pictures import as_png, subplots


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


def sigma_T_plane(tables: dict[str, dict[tuple[float, float], dict[str, float]]]) -> bytes:
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


def front(tables: dict[str, dict[str, dict[float, dict[str, list[float]]]]]) -> bytes:
    """{title: {method: {W: {"clean", "worst": [mean, deviation]}}}}: a panel for each title, a
    colour for each method, whatever its flags."""
    size, colours = (5.2 * len(tables), 4), {}
    figure, axes = subplots(1, len(tables), figsize=size, squeeze=False)
    for axis, (title, methods) in zip(axes[0], tables.items()):
        for (name, points), marker in zip(methods.items(), "os^D"):
            colour = colours.setdefault(name.split()[0], f"C{len(colours)}")
            weights = sorted(points)
            x, y = ([points[W][column] for W in weights] for column in ("clean", "worst"))
            spread = ([v[1] if len(v) > 1 else 0 for v in values] for values in (y, x))
            means = ([v[0] for v in values] for values in (x, y))
            axis.errorbar(*means, *spread, fmt=f"{colour}{marker}-", capsize=2, label=name)
            for W, clean, worst in zip(weights, x, y):
                at = {"textcoords": "offset points", "xytext": (5, 5), "fontsize": 8}
                axis.annotate(f"W = {W:g}", (clean[0], worst[0]), **at)
        axis.set(
            title=title, xlabel="clean accuracy (%)", ylabel="accuracy under the worst attack (%)"
        )
        axis.margins(0.12)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    return as_png(figure)


def dial(tables: dict[str, dict[float, dict[str, float]]]) -> bytes:
    """{title: {sigma: {line: percent}}}: a panel for each title, infinity as the last mark."""
    figure, axes = subplots(1, len(tables), figsize=(5.2 * len(tables), 4), squeeze=False)
    for axis, (title, of_sigma) in zip(axes[0], tables.items()):
        lines = next(iter(of_sigma.values()))
        for line, style in zip(lines, ("C0o-", "C0^:", "C1s-", "C3D-", "k*-")):
            axis.plot([of[line] for of in of_sigma.values()], style, ms=5, label=line)
        marks = ["$\\infty$" if sigma == math.inf else f"{sigma:g}" for sigma in of_sigma]
        axis.set_xticks(range(len(marks)), marks)
        axis.set(title=title, xlabel="$\\sigma$", ylabel="accuracy (%)", ylim=(0, 100))
        axis.grid(alpha=0.3)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=8)
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
