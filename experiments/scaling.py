"""How a training step's time and memory grow: with experts, batch, depth and attack steps.

    python -m experiments.scaling --out scaling.png

One of the four is varied at a time. The others stay at a base: on a GPU the paper's setting, on a
CPU a smaller one, so that all of it takes minutes. Every point is measured in a process of its own:
the median step, and the peak memory of the process or the GPU. Beside each time stands what the
units of the step predict, scaled to the base's measured time.
"""

import json
import multiprocessing
import sys
from argparse import Namespace
from pathlib import Path

import torch

from baselines.methods import METHODS
from experiments import bench_step, figures, machine
from experiments.compare import units_of_a_batch
from support import files, options
from support.printing import duration

AXES = {  # {setting: (its name, its values)}
    "n": ("M, experts", (1, 2, 3, 4, 5, 6, 7, 8)),
    "batch_size": ("batch size", (16, 32, 64, 128, 256)),
    "depth": ("depth", (8, 14, 20, 32, 44, 56)),
    "steps": ("attack steps", (1, 2, 5, 10, 20)),
}
BASE = {
    "cuda": {"n": 3, "batch_size": 128, "depth": 20, "steps": 10},
    "cpu": {"n": 3, "batch_size": 32, "depth": 8, "steps": 5},
}


def cost(stage: int, point: dict, gathered: bool) -> int:
    """What a step costs, in one expert's forward passes of an image through one convolution. Where
    the attack is `gathered`, it asks all experts and differentiates the answering one alone."""
    M, S = point["n"], point["steps"]
    units = units_of_a_batch("soe", M, S)[stage]
    if gathered and stage == 2:
        units -= S * max(0, M - 2)  # M backward passes less; one pass both ways more
    return units * point["batch_size"] * (point["depth"] - 2)


def peak_gib(device: torch.device) -> float:
    """Peak memory so far, in GiB: the GPU's, or this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved() / 2**30  # "allocated" leaves out graphs' pools
    import resource  # which Windows lacks

    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(point: dict, device_name: str, repeats: int) -> dict[str, float]:
    """{"stage 1" and "stage 2": seconds, "memory": GiB} of one point, measured in this process."""
    device, soe = torch.device(device_name), METHODS["soe"]
    settings = bench_step.settings_of(soe, **point, precision=options.best_precision(device))
    steps = bench_step.our_steps("soe", soe, settings, device)
    times = bench_step.medians(steps, *bench_step.random_batch(settings, device), repeats)
    memory = {"memory": peak_gib(device)}
    return {f"stage {stage}": median for (_, stage), median in times.items()} | memory


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.scaling")
    add = parser.add_argument
    add("--repeats", type=options.count, default=3, help="timed steps of each point")
    options.add_device(parser)
    add("--out", default="scaling.png", metavar="PNG", help="and a .json beside it")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        run(args)


def run(args: Namespace) -> None:
    """What `main` does, once the arguments are parsed. Raises ValueError or OSError."""
    device, picture = options.pick_device(args.device), Path(args.out)
    table_file = picture.with_suffix(".json")
    if device.type == "mps" or sys.platform == "win32":
        raise ValueError("memory is measured on Linux, macOS' CPU and CUDA: give --device cpu")
    files.check_new(picture, ".png", "--out")
    files.check_new(table_file, ".json", "--out")
    base, gathered, tables = BASE[device.type], device.type == "cpu", {}
    precision, measured_on = options.best_precision(device), machine(device)
    print(f"{measured_on['device']}, {precision}; 3 x 32 x 32, {base}. In brackets: as predicted.")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        at_base = pool.apply(measure, (base, str(device), args.repeats))
        for axis, (name, values) in AXES.items():
            for value in values:
                point, measured = base | {axis: value}, dict(at_base)
                if point != base:
                    measured = pool.apply(measure, (point, str(device), args.repeats))
                line = f"{name} {value}: {measured['memory']:.2f} GiB"
                for stage in (1, 2):
                    ratio = cost(stage, point, gathered) / cost(stage, base, gathered)
                    predicted = measured[f"predicted {stage}"] = at_base[f"stage {stage}"] * ratio
                    seconds = measured[f"stage {stage}"]
                    line += f", stage {stage} {duration(seconds)} ({duration(predicted)})"
                print(line, flush=True)
                tables.setdefault(name, {})[value] = measured
    content = {"command": vars(args), **measured_on, "precision": precision}
    content |= {"base": base, "tables": tables}
    files.write(picture, figures.scaling(tables))
    files.write(table_file, json.dumps(content, indent=1).encode())
    print(f"Wrote {picture} and {table_file}")


if __name__ == "__main__":
    main()
