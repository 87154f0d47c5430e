"""SoE beside its rivals: the same data, epochs, training attack and evaluation for all of them.

    python -m experiments.compare --eps 0.1 --n 3 --depth 8 --seeds 3 --attack pgd,adaptive,square

One run is one method at one depth, eps, learning rate and seed. Each is trained by the method's
own script, in a folder of its own in --out, then attacked itself at the eps that it was trained at.
What is there is used again, so the same command goes on where it was interrupted; `--shard 2/5`
does the second of five parts, on another machine for instance, and tabulates whatever it finds.

Learning rates: "published" is each method's default, "shared" SGD at 0.1 for all. Only ADP and GAL,
published with Adam, differ. Square shrinks its squares within the queries that it has
(`infer.py --rescale`).

Cost, in gradient passes: one is a forward and a backward pass of one member on one batch, to the
input or to the weights; a forward pass alone counts half. A batch costs, with M members, S steps of
PGD, T = 10 of DVERGE's own:

    plain, plain-together, adp, more   M S + 2 M             the attack, clean and adversarial batch
    gal                                M S + 3 M             the second derivative counts M
    soe-stage1                         M S + M + M^2         every expert learns from M attacks
    soe                                as soe-stage1, then M S + 2 M, half of the epochs each
    dverge                             as plain, then M T + M / 2 + M S + M + M (M - 1), likewise

`--equal-passes` scales the epochs so that each method has as many passes as the first one named.
"""

import contextlib
import json
import os
import statistics
import sys
from argparse import Namespace
from itertools import product
from pathlib import Path

import torch

import data
import infer
import train_collab
import train_submodel
from baselines import adp, dverge, gal, more, plain
from models import ResNet
from support import files, options, pictures

METHODS = {  # name: its script, and the flags that make it
    "soe": (train_collab.main, []),
    "soe-stage1": (train_submodel.main, []),
    "plain": (plain.main, []),
    "plain-together": (plain.main, ["--together"]),
    "adp": (adp.main, []),
    "gal": (gal.main, []),
    "dverge": (dverge.main, []),
    "more": (more.main, []),
}
PUBLISHED_WITH_ADAM = ("adp", "gal")
SHARED = ["--optimizer", "sgd"]


def passes_of_a_batch(method: str, M: int, S: int, T: int = 10) -> dict[int, float]:
    """{stage: gradient passes of a batch}, as in the table above."""
    plainly = M * S + 2 * M
    stages = {
        "soe": {1: M * S + M + M**2, 2: plainly},
        "soe-stage1": {1: M * S + M + M**2},
        "gal": {1: plainly + M},
        "dverge": {1: plainly, 2: M * T + M / 2 + M * S + M + M * (M - 1)},
    }
    return stages.get(method, {1: plainly})


def epochs_at_equal_passes(method: str, first: str, epochs: int, M: int, S: int) -> int:
    """Epochs in which `method` has as many passes as `first` has in `epochs`."""
    theirs, ours = (statistics.mean(passes_of_a_batch(m, M, S).values()) for m in (first, method))
    return max(1, round(epochs * theirs / ours))


def plan(args: Namespace, dataset: data.Data) -> list[Namespace]:
    """Every run that the arguments ask for, {method, rate, depth, eps, seed, epochs, folder}."""
    runs = []
    axes = (args.depth, args.eps, args.methods, args.rates)
    for depth, eps, method, rate in product(*map(dict.fromkeys, axes)):
        if rate == "shared" and method not in PUBLISHED_WITH_ADAM and "published" in args.rates:
            continue  # the two are the same
        epochs = args.epochs or options.default_epochs(args.data)
        if args.equal_passes:
            steps, *_ = options.OPTIONS["steps"]
            epochs = epochs_at_equal_passes(method, args.methods[0], epochs, args.n, steps)
        for seed in range(args.seed, args.seed + args.seeds):
            run = Namespace(
                method=method, rate=rate, depth=depth, eps=eps, seed=seed, epochs=epochs
            )
            rate_in_name = "-shared" if rate == "shared" and method in PUBLISHED_WITH_ADAM else ""
            run.label = method + (", SGD" if rate_in_name else "")
            run.folder = Path(args.out) / (
                f"{dataset.name}-{method}{rate_in_name}-depth{depth}-n{args.n}-eps{eps:g}"
                f"-epochs{epochs}-seed{seed}"
            )
            runs.append(run)
    return runs


def train(run: Namespace, args: Namespace) -> int:
    """Trains, goes on with, or finds finished what is in the run's folder; the script's status."""
    if (run.folder / "metrics.json").exists():
        return 0
    main, flags = METHODS[run.method]
    device = ["--device", args.device] if args.device else []
    if (run.folder / "model.pt").exists():
        flags = ["--resume", str(run.folder), "--data", args.data]
    else:
        wanted = {name: getattr(run, name) for name in ("depth", "eps", "seed", "epochs")}
        wanted |= {"n": args.n, "data": args.data, "out": run.folder}
        flags = flags + (SHARED if run.rate == "shared" else [])
        flags = flags + [
            word for name, value in wanted.items() for word in (f"--{name}", str(value))
        ]
    with open(run.folder.with_name(run.folder.name + ".log"), "a") as log:
        with contextlib.redirect_stdout(log):
            return main([*flags, *device])


def kept_results(run: Namespace, dataset: data.Data) -> dict:
    """{how it was evaluated: result}, of what stands in the run's folder. Raises ValueError where
    it was trained on other data."""
    path, metrics = run.folder / "compared.json", run.folder / "metrics.json"
    if metrics.exists():
        theirs = json.loads(metrics.read_text())["settings"]["data_checksum"]
        if theirs != dataset.checksum:
            raise ValueError(f"{run.folder} was trained on other images: name another --out")
    return json.loads(path.read_text()) if path.exists() else {}


def evaluate(run: Namespace, args: Namespace, dataset: data.Data, way: str) -> None:
    """Attacks a trained run itself by args.attack, and keeps what infer.report says of it as `way`
    in its folder."""
    kept = kept_results(run, dataset)
    if way in kept:
        return
    device = options.pick_device(args.device)
    model = infer.load(run.folder, device)
    x, y = infer.test_images(dataset, device, infer.choose_images(dataset, args.images))
    attacks = infer.make_attacks(args.attack, run.eps, args.steps, 1, args.queries, rescale=True)
    torch.manual_seed(0)
    kept[way] = infer.report(model, x, y, attacks) | {"row": infer.row_of(model)}
    files.write(run.folder / "compared.json", json.dumps(kept, indent=1).encode())


def measures(run: Namespace, result: dict) -> dict[str, float]:
    """One run's line of the table, {column: number}."""
    metrics = json.loads((run.folder / "metrics.json").read_text())
    settings, table = metrics["settings"], result["table"]
    cells = {name: v for name, v in table[result["row"]].items() if name != "own"}
    experts = [row["clean"] for name, row in table.items() if name.startswith("expert")]
    cells["alone, clean"], cells["any, clean"] = statistics.mean(experts), table["any"]["clean"]
    cells["epochs"] = settings["epochs"]
    stages = passes_of_a_batch(run.method, settings["n"], settings["steps"])
    in_epochs = sum(stages[int(s)] * epochs for s, epochs in settings["stage_epochs"].items())
    cells["passes"] = settings["steps_per_epoch"] * in_epochs
    if division := result["specialisation"]:
        disagree = division["clean"]["disagree"]
        cells["chosen"], cells["best fixed"] = disagree["chosen"], disagree["best fixed"]
        cells["any of these"] = disagree["any"]
        cells["class share"] = statistics.mean(map(max, zip(*division["clean"]["answers"])))
    return cells


def summarise(lines: list[dict]) -> dict[str, list[float]]:
    """{column: [mean, standard deviation over the seeds]}, the mean alone for a single seed."""
    summary = {"seeds": [len(lines)]}
    for column in lines[0]:
        values = [line[column] for line in lines if line[column] is not None]
        spread = [statistics.stdev(values)] if len(values) > 1 else []
        summary[column] = [statistics.mean(values), *spread] if values else []
    return summary


COUNTS = ("seeds", "epochs", "passes")
ROUTING = {
    "chosen": "right: the chosen",
    "best fixed": "the best fixed",
    "any of these": "any expert",
    "class share": "largest class share",
}


def print_table(title: str, rows: dict[str, dict[str, list[float]]]) -> None:
    """rows: {method: {column: [mean, deviation]}}."""

    def text(column: str, value: list[float]) -> str:
        if column in COUNTS:
            return f"{value[0]:.0f}"
        return " ±".join(f"{number:.1f}" for number in value) or "-"

    def line(name: str, cells: list[str], width: int) -> None:
        print(f"{name:16}" + "".join(f"{cell:>{width}}" for cell in cells))

    columns = [column for column in next(iter(rows.values())) if column not in ROUTING]
    print(f"\n{title}")
    line("", columns, 13)
    for name, cells in rows.items():
        line(name, [text(column, cells[column]) for column in columns], 13)
    routed = {name: cells for name, cells in rows.items() if "chosen" in cells}
    if routed:
        print("Where its experts disagree on clean images (%); a class's share of its main expert:")
        line("", list(ROUTING.values()), 21)
        for name, cells in routed.items():
            line(name, [text(column, cells[column]) for column in ROUTING], 21)


def tabulate(runs: list[Namespace], args: Namespace, dataset: data.Data, way: str) -> None:
    """Prints, draws and writes all runs that are finished."""
    found: dict[tuple, dict[str, list[dict]]] = {}
    for run in runs:
        if result := kept_results(run, dataset).get(way):
            line = measures(run, result)
            found.setdefault((run.depth, run.eps), {}).setdefault(run.label, []).append(line)
    if not found:
        return
    tables = {}
    for (depth, eps), methods in found.items():
        title = f"{dataset.name}, {args.n} x ResNet{depth}, eps {eps:g}"
        tables[title] = {label: summarise(lines) for label, lines in methods.items()}
        print_table(f"{title}; accuracy (%), each model attacked itself", tables[title])
    path = files.first_free(Path(args.out), "compare", ".json", ".png")
    content = {"command": vars(args), "versions": options.versions(), "tables": tables}
    content["device"] = options.device_name(options.pick_device(args.device))
    files.write(path, json.dumps(content, indent=1).encode())
    shown = ("clean", *args.attack)
    files.write(path.with_suffix(".png"), pictures.methods(tables, shown))
    print(f"\nWrote {path} and {path.with_suffix('.png').name}")


def comma_list(kind: type, known: tuple[str, ...] = ()):
    """An argparse type: a,b,c -> [a, b, c], each of `known` where that is given."""

    def parse(text: str) -> list:
        words = [kind(word) for word in text.split(",")]
        if known and (unknown := [word for word in words if word not in known]):
            raise ValueError(f"unknown {unknown[0]}")
        return words

    parse.__name__ = f"list of {', '.join(known)}" if known else kind.__name__
    return parse


def shard(text: str) -> tuple[int, int]:
    i, k = map(int, text.split("/"))
    if not 1 <= i <= k:
        raise ValueError
    return i, k


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(__doc__, prog="-m experiments.compare")
    add = parser.add_argument
    names, rates = tuple(METHODS), ("published", "shared")
    add("--methods", type=comma_list(str, names), default=list(names), help="default: all")
    add("--depth", type=int, nargs="+", default=[20], help="default: 20")
    add("--eps", type=float, nargs="+", default=[0.03], help="default: 0.03")
    add("--n", type=int, default=3, help="members of each (default: 3)")
    add("--epochs", type=int, help="of every method (default: as in training)")
    add(
        "--equal-passes", action="store_true", help="scale them: as many passes as the first method"
    )
    add("--rates", type=comma_list(str, rates), default=list(rates), help="default: both")
    add("--seed", type=int, default=0, help="the first (default: 0)")
    add("--seeds", type=int, default=1, help="how many from there on (default: 1)")
    add("--attack", type=comma_list(str, infer.ATTACKS), default=["pgd", "square", "adaptive"])
    add("--steps", type=int, default=20, help="of the evaluation's gradient attacks (default: 20)")
    add("--queries", type=int, default=1000, help="of square (default: 1000)")
    add("--images", type=int, help="at most so many test images (default: 1000)")
    add("--data", default="digits", help="as in training (default: digits)")
    add("--device", help="cuda, mps or cpu (default: the first that is there)")
    add("--shard", type=shard, default=(1, 1), metavar="I/K", help="do the I-th of K parts")
    add("--out", default="runs/compare", help="folder of all the runs (default: runs/compare)")
    args = parser.parse_args(argv)
    failed = 0
    try:
        for name in ("n", "epochs", "seeds", "steps", "queries", "images"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise ValueError(f"--{name} is {getattr(args, name)}: it must be at least 1")
        for eps in args.eps:
            options.check_eps(eps)
        options.check_seed(args.seed)
        dataset = data.load(args.data)
        options.pick_device(args.device)
        for depth in args.depth:
            ResNet(depth)  # is there one?
        if "WORLD_SIZE" in os.environ:
            raise ValueError("not under torchrun: give each process its --shard instead")
        Path(args.out).mkdir(parents=True, exist_ok=True)
        args.images = min(args.images or infer.MAX_IMAGES, len(dataset.x_test))
        way = f"{args.steps} steps, {args.queries} queries (rescaled), {args.images} images"
        way = f"{', '.join(args.attack)}: {way}"
        runs = plan(args, dataset)
        i, k = args.shard
        for number, run in enumerate(mine := runs[i - 1 :: k], 1):
            print(f"[{number}/{len(mine)}] {run.folder.name}", flush=True)
            try:
                status = train(run, args)
            except SystemExit as error:  # it has said why
                status = error.code
            if status == 130:
                raise KeyboardInterrupt
            failed += status != 0
            if status == 0:
                evaluate(run, args, dataset, way)
        tabulate(runs, args, dataset, way)
    except (ValueError, OSError) as error:
        parser.error(error)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    if failed:
        print(f"{failed} of {len(mine)} runs failed, as said above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
