"""How a training step's time and memory grow: with experts, batch, depth and attack steps.

    python -m experiments.scaling --out scaling.png

One of the four is varied at a time; the others stay at a base, on a GPU the paper's setting, on a
CPU a smaller one, so that all of it takes minutes. Every point is measured in a process of its own:
the median step, and the process's (or the GPU's) peak memory.

Beside each time stands what the passes predict, scaled to the base's measured time. In units of one
expert's forward pass (a backward pass for the input alone counts 1, for weights too 2) a step costs

    stage 1    2 M S + 3 (M + M^2)     the attack; then every expert learns from all M attacks
    stage 2    2 M S + 6 M             or M S + 2 S + 6 M where only who answers is attacked

with M experts and S attack steps; a unit grows with the batch and with the convolutions, depth - 2.
"""

import json
import multiprocessing
import statistics
import sys
from argparse import Namespace
from pathlib import Path

import torch

from experiments import bench_step, figures
from support import files, options
from support.printing import duration

AXES = {
    "n": (1, 2, 3, 4, 5, 6, 7, 8),
    "batch_size": (16, 32, 64, 128, 256),
    "depth": (8, 14, 20, 32, 44, 56),
    "steps": (1, 2, 5, 10, 20),
}
LABELS = {"n": "M, experts", "batch_size": "batch size", "depth": "depth", "steps": "attack steps"}
BASE = {
    "cuda": {"n": 3, "batch_size": 128, "depth": 20, "steps": 10},
    "cpu": {"n": 3, "batch_size": 32, "depth": 8, "steps": 5},
}


def cost(stage: int, point: dict, gathered: bool) -> int:
    """What the passes predict, in arbitrary units."""
    of_an_image = bench_step.units(stage, point["n"], point["steps"], gathered)
    return of_an_image * point["batch_size"] * (point["depth"] - 2)


def measure(point: dict, device_name: str, precision: str, repeats: int) -> dict[str, float]:
    """{"stage 1" and "stage 2": seconds, "memory": GiB} of one point, in this process."""
    device = torch.device(device_name)
    torch.manual_seed(0)
    how = {"precision": precision, "compile": device.type == "cuda"}
    settings = bench_step.soe_settings(**point, **how)
    x = torch.rand(settings.batch_size, *settings.image_shape, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(settings.num_classes, (settings.batch_size,), device=device)
    found = {}
    for stage, loss in bench_step.STAGES.items():
        step = bench_step.our_step(loss, bench_step.build_on(device, settings), settings)
        bench_step.seconds(step, x, y)  # warms up
        times = [bench_step.seconds(step, x, y) for _ in range(repeats)]
        found[f"stage {stage}"] = statistics.median(times)
    return found | {"memory": bench_step.peak_gib(device)}


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.scaling")
    add = parser.add_argument
    add("--axes", nargs="+", choices=list(AXES), default=list(AXES), help="(default: all four)")
    add("--repeats", type=options.count, default=3, help="timed steps of each point")
    options.add_device(parser)
    what = "(default: as in training)"
    add("--precision", choices=("bfloat16", "float32"), help=what)
    add("--out", default="scaling.png", metavar="PNG", help="and a .json beside it")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        run(args)


def run(args: Namespace) -> None:
    """What `main` does, once the arguments are parsed. Raises ValueError or OSError."""
    device, out = options.pick_device(args.device), Path(args.out)
    if device.type == "mps" or sys.platform == "win32":
        raise ValueError("memory is measured on Linux, macOS' CPU and CUDA: give --device cpu")
    files.check_new(out, ".png", "--out")
    if out.with_suffix(".json").exists():
        raise ValueError(f"--out {out}: {out.with_suffix('.json')} is there already")
    precision = args.precision or options.best_precision(device)
    base, gathered = BASE[device.type], device.type == "cpu"
    header = f"{options.device_name(device)}, {precision}, torch {torch.__version__}"
    print(f"{header}; 3 x 32 x 32, {', '.join(f'{LABELS[k]} {v}' for k, v in base.items())}")
    print(f"{'':22}" + "".join(f"{name:>18}" for name in ("stage 1", "stage 2", "GiB")))
    tables = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:

        def ask(point: dict) -> dict[str, float]:
            return pool.apply(measure, (point, str(device), precision, args.repeats))

        at_base = ask(base)
        for axis, value in ((name, v) for name in args.axes for v in AXES[name]):
            point = base | {axis: value}
            found = dict(at_base if point == base else ask(point))
            cells = []
            for stage in bench_step.STAGES:
                ratio = cost(stage, point, gathered) / cost(stage, base, gathered)
                found[f"predicted {stage}"] = at_base[f"stage {stage}"] * ratio
                times = (found[f"{what} {stage}"] for what in ("stage", "predicted"))
                cells.append("{} ({})".format(*map(duration, times)))
            tables.setdefault(LABELS[axis], {})[value] = found
            line = "".join(f"{cell:>18}" for cell in (*cells, f"{found['memory']:.2f}"))
            print(f"{LABELS[axis]:16}{value:6}{line}", flush=True)
    content = {"command": vars(args), "device": header, "base": base, "tables": tables}
    files.write(out, figures.scaling(tables))
    files.write(out.with_suffix(".json"), json.dumps(content, indent=1).encode())
    print(f"in brackets: what the passes predict. Wrote {out} and {out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
