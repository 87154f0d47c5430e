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

import infer
from experiments import bench_step
from support import files, options, pictures
from train_collab import stage2_loss
from train_submodel import stage1_loss

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
    settings = Namespace(**vars(bench_step.SETTINGS) | point | {"precision": precision})
    settings.compile = device.type == "cuda"
    x = torch.rand(settings.batch_size, *settings.image_shape, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(settings.num_classes, (settings.batch_size,), device=device)
    found = {}
    for stage, make in ((1, stage1_loss), (2, stage2_loss)):
        model = infer.build(vars(settings)).to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
        step = bench_step.our_step(model, optimizer, make(model, settings), settings)
        bench_step.seconds(step, x, y)  # warms up
        times = [bench_step.seconds(step, x, y) for _ in range(repeats)]
        found[f"stage {stage}"] = statistics.median(times)
    return found | {"memory": bench_step.peak_gib(device)}


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(__doc__, prog="-m experiments.scaling")
    add = parser.add_argument
    add("--axes", nargs="+", choices=list(AXES), default=list(AXES), help="default: all four")
    add("--repeats", type=int, default=3, help="timed steps of each point (default: 3)")
    add("--device", help="cuda or cpu (default: the first that is there)")
    add("--precision", choices=["bfloat16", "float32"], help="(default: as in training)")
    add("--out", default="scaling.png", metavar="PNG", help="and a .json beside it")
    args = parser.parse_args(argv)
    out = Path(args.out)
    try:
        device = options.pick_device(args.device)
        if device.type == "mps" or sys.platform == "win32":
            raise ValueError("memory is measured on Linux, macOS' CPU and CUDA: give --device cpu")
        if args.repeats < 1:
            raise ValueError(f"--repeats is {args.repeats}: it must be at least 1")
        files.check_new_png(out, "--out")
        if out.with_suffix(".json").exists():
            raise ValueError(f"--out {out}: {out.with_suffix('.json')} is there already")
    except ValueError as error:
        parser.error(error)
    precision = args.precision or options.best_precision(device)
    base, gathered = BASE[device.type], device.type == "cpu"
    header = f"{options.device_name(device)}, {precision}, torch {torch.__version__}"
    print(f"{header}; 3 x 32 x 32, {', '.join(f'{LABELS[k]} {v}' for k, v in base.items())}")
    print(f"{'':22}" + "".join(f"{name:>16}" for name in ("stage 1, s", "stage 2, s", "GiB")))
    tables, scale = {}, {}
    fresh = multiprocessing.get_context("spawn")
    try:
        with fresh.Pool(1, maxtasksperchild=1) as pool:

            def ask(point: dict) -> dict[str, float]:
                return pool.apply(measure, (point, str(device), precision, args.repeats))

            at_base = ask(base)
            for stage in (1, 2):
                scale[stage] = at_base[f"stage {stage}"] / cost(stage, base, gathered)
            for axis in args.axes:
                for value in AXES[axis]:
                    point = base | {axis: value}
                    found = at_base if point == base else ask(point)
                    for stage in (1, 2):
                        predicted = scale[stage] * cost(stage, point, gathered)
                        found = found | {f"predicted {stage}": predicted}
                    tables.setdefault(LABELS[axis], {})[value] = found
                    cells = [
                        f"{found[f'stage {stage}']:.2f} ({found[f'predicted {stage}']:.2f})"
                        for stage in (1, 2)
                    ]
                    line = "".join(f"{cell:>16}" for cell in (*cells, f"{found['memory']:.2f}"))
                    print(f"{LABELS[axis]:16}{value:6}{line}", flush=True)
        content = {"command": vars(args), "device": header, "base": base, "tables": tables}
        files.write(out, pictures.scaling(tables))
        files.write(out.with_suffix(".json"), json.dumps(content, indent=1).encode())
        print(f"in brackets: what the passes predict. Wrote {out} and {out.with_suffix('.json')}")
    except OSError as error:
        parser.error(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
