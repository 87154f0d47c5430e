"""SoE beside its rivals: the same data, epochs, training attack and evaluation for all of them.

    python -m experiments.compare --eps 0.1 --n 3 --depth 8 --seeds 3 --attack pgd adaptive square
    python -m experiments.compare --methods soe "adp, SGD" --equal-passes    # as many as soe

One run is one method at one depth, eps and seed. Its own script trains it in a folder of --out, its
log beside it; then it is attacked itself at its eps. The same command resumes where it was stopped;
`--shard 2/5` does the second of five parts. A run that fails stops no other: exit status 1.

ADP and GAL were published with Adam; "adp, SGD" and "gal, SGD" learn at the rate of all the others.

A batch costs so many gradient passes (one is a forward and a backward pass of one member, a forward
pass alone counts half), with M members, S steps of PGD, T = 10 of DVERGE's own:

    plain, plain-together, adp, more   M S + 2 M             the attack, clean and adversarial batch
    gal                                M S + 3 M             the second derivative counts M
    soe-stage1                         M S + M + M^2         every expert learns from M attacks
    soe                                as soe-stage1, then M S + 2 M, half of the epochs each
    dverge                             as plain, then M T + M / 2 + M S + M + M (M - 1), likewise
"""

import contextlib
import json
import os
import statistics
from argparse import Namespace
from itertools import product
from pathlib import Path

import data
import infer
import train_collab
import train_submodel
from baselines import adp, dverge, gal, more, plain
from experiments import train_or_resume
from experiments.evaluate import ATTACKS, attacks_at, report
from models import ResNet
from support import files, options, pictures, speed

METHODS = {  # name: the script that trains it, and its flags
    "soe": (train_collab.main, []),
    "soe-stage1": (train_submodel.main, []),
    "plain": (plain.main, []),
    "plain-together": (plain.main, ["--together"]),
    "adp": (adp.main, []),
    "adp, SGD": (adp.main, ["--optimizer=sgd"]),
    "gal": (gal.main, []),
    "gal, SGD": (gal.main, ["--optimizer=sgd"]),
    "dverge": (dverge.main, []),
    "more": (more.main, []),
}
COUNTS = ("seeds", "epochs", "passes")
ROUTING = ["answering", "best fixed", "any", "class share"]  # columns of a table of their own


def passes_of_a_batch(method: str, M: int, S: int, T: int = 10) -> dict[int, float]:
    """{stage: gradient passes of a batch}, as in the table above."""
    plainly, each = M * S + 2 * M, M * S + M + M**2
    stages = {"soe": {1: each, 2: plainly}, "soe-stage1": {1: each}, "gal": {1: plainly + M}}
    stages["dverge"] = {1: plainly, 2: M * T + M / 2 + M * S + M + M * (M - 1)}
    return stages.get(method.removesuffix(", SGD"), {1: plainly})


def epochs_at_equal_passes(method: str, first: str, epochs: int, M: int, S: int) -> int:
    """Epochs in which `method` has as many passes as `first` has in `epochs`."""
    theirs, ours = (statistics.mean(passes_of_a_batch(m, M, S).values()) for m in (first, method))
    return max(1, round(epochs * theirs / ours))


def plan(args: Namespace, data_name: str) -> dict[Path, tuple[str, str, list[str]]]:
    """{folder: (title of its table, method, flags of its script)} of every run asked for."""
    steps, runs = options.training_parser("", "").get_default("steps"), {}
    for depth, eps, method in product(args.depth, args.eps, args.methods):
        title = f"{data_name}, {args.n} x ResNet{depth}, eps {eps:g}"
        epochs = args.epochs or options.default_epochs(args.data)
        if args.equal_passes:
            epochs = epochs_at_equal_passes(method, args.methods[0], epochs, args.n, steps)
        for seed in range(args.seed, args.seed + args.seeds):
            of = {"depth": depth, "n": args.n, "eps": eps, "epochs": epochs, "seed": seed}
            name = [data_name, method.replace(", ", "-"), *(f"{k}{v}" for k, v in of.items())]
            flags = [*METHODS[method][1], *(f"--{k}={v}" for k, v in of.items())]
            runs[Path(args.out) / "-".join(name)] = title, method, flags
    return runs


def results_in(folder: Path) -> dict[str, dict]:
    """{way of evaluation: what `evaluate` has found}."""
    path = folder / "compared.json"
    return json.loads(path.read_text()) if path.exists() else {}


def evaluate(folder: Path, method: str, args: Namespace, dataset: data.Data, way: str) -> None:
    """Attacks the model in `folder` itself; keeps the report and the run's line of the table there,
    by the `way` it was done. Raises ValueError where it was trained on other data, OSError."""
    settings = files.load_checkpoint(folder)["settings"]
    if settings["data_checksum"] != dataset.checksum:
        raise ValueError(f"{folder} was trained on other images: name another --out")
    model = infer.load(folder, args.device)
    speed.gather(model)
    x, y = dataset.test_images(args.device, dataset.choose_test_images(args.images))
    attacks = attacks_at(args.attack, settings["eps"], args.steps, 1, args.queries, rescale=True)
    result = report(model, x, y, attacks)
    result["line"] = measures(method, settings, model.row, result)
    content = results_in(folder) | {way: result}
    files.write(folder / "compared.json", json.dumps(content, indent=1).encode())


def measures(method: str, settings: dict, row: str, result: dict) -> dict[str, float | None]:
    """A run's line of the tables, {column: number}; `row` is the model's in its own report."""
    table, division = result["table"], result["specialisation"].get("clean")
    cells = {column: v for column, v in table[row].items() if column != "own"}
    experts = [cells["clean"] for name, cells in table.items() if name.startswith("expert")]
    cells |= {"alone, clean": statistics.mean(experts), "any, clean": table["any"]["clean"]}
    stages = passes_of_a_batch(method, settings["n"], settings["steps"])
    passes = sum(stages[stage] * epochs for stage, epochs in settings["stage_epochs"].items())
    cells |= {"epochs": settings["epochs"], "passes": passes * settings["steps_per_epoch"]}
    if division:  # an expert answers alone, or weighs most
        cells |= {name: division["disagree"][name] for name in ROUTING[:3]}
        cells["class share"] = statistics.mean(map(max, zip(*division["answers"])))
    return cells


def summarise(lines: list[dict[str, float | None]]) -> dict[str, list[float]]:
    """{column: [mean, standard deviation over the seeds]}, the mean alone for a single seed."""
    summary = {"seeds": [len(lines)]}
    for column in lines[0]:
        values = [line[column] for line in lines if line[column] is not None]
        spread = [statistics.stdev(values)] if len(values) > 1 and column not in COUNTS else []
        summary[column] = [statistics.mean(values), *spread] if values else []
    return summary


def print_table(columns: list[str], rows: dict[str, dict[str, list[float]]]) -> None:
    """rows: {method: {column: [mean, deviation]}}."""
    print(" " * 14 + "".join(f"{column:>14}" for column in columns))
    for name, cells in rows.items():
        texts = [" ±".join(f"{v:.{0 if c in COUNTS else 1}f}" for v in cells[c]) for c in columns]
        print(f"{name:14}" + "".join(f"{text or '-':>14}" for text in texts))


def tabulate(runs: dict[Path, tuple[str, str, list[str]]], args: Namespace, way: str) -> None:
    """Prints, draws and writes all that was evaluated in this way, other shards' runs too."""
    lines: dict[str, dict[str, list[dict]]] = {}
    for folder, (title, method, _) in runs.items():
        if result := results_in(folder).get(way):
            lines.setdefault(title, {}).setdefault(method, []).append(result["line"])
    tables = {t: {m: summarise(v) for m, v in rows.items()} for t, rows in lines.items()}
    for title, rows in tables.items():
        print(f"\n{title}; accuracy (%), each model attacked itself")
        print_table([c for c in next(iter(rows.values())) if c not in ROUTING], rows)
        if routed := {name: cells for name, cells in rows.items() if "answering" in cells}:
            print("Correct (%) where experts disagree, clean; a class's share of its main expert:")
            print_table(ROUTING, routed)
    if tables:
        device = options.device_name(options.pick_device(args.device))
        content = {"command": vars(args), "versions": options.versions(), "device": device}
        path = files.first_free(Path(args.out), "compare", ".json", ".png")
        files.write(path, json.dumps(content | {"tables": tables}, indent=1).encode())
        files.write(path.with_suffix(".png"), pictures.methods(tables, ("clean", *args.attack)))
        print(f"\nWrote {path} and {path.with_suffix('.png').name}")


def shard(text: str) -> tuple[int, int]:
    """I/K -> (I, K). Raises ValueError unless 1 <= I <= K."""
    i, k = map(int, text.split("/"))
    if not 1 <= i <= k:
        raise ValueError
    return i, k


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.compare")
    add, count = parser.add_argument, options.count
    what = f"of {'; '.join(METHODS)} (default: all)"
    add("--methods", nargs="+", choices=METHODS, metavar="NAME", default=list(METHODS), help=what)
    add("--depth", type=int, nargs="+", default=[20], help="depths of each ResNet")
    add("--eps", type=options.radius, nargs="+", default=[0.03], help="radii of the attack")
    add("--n", type=count, default=3, help="M, the members of each")
    add("--epochs", type=count, help="of every method (default: as in training)")
    add("--equal-passes", action="store_true", help="as many passes as the first method has")
    add("--seed", type=options.seed, default=0, help="the first seed (default: 0)")
    add("--seeds", type=count, default=1, help="how many seeds, from there on")
    known, what = ["pgd", "square", "adaptive"], f"of {', '.join(ATTACKS)}"
    add("--attack", nargs="+", choices=ATTACKS, metavar="NAME", default=known, help=what)
    add("--steps", type=count, default=20, help="steps of the evaluation's gradient attacks")
    add("--queries", type=count, default=1000, help="queries of square, rescaled to them")
    add("--images", type=count, default=data.MAX_IMAGES, help="at most so many test images")
    add("--data", default="digits", help="as in training")
    options.add_device(parser)
    add("--shard", type=shard, default="1/1", metavar="I/K", help="do the I-th of K parts")
    add("--out", default="runs/compare", metavar="DIR", help="folder of all the runs")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        failed = run(args)
    if failed:
        parser.exit(1, f"runs that failed, as said above: {failed}\n")


def run(args: Namespace) -> int:
    """What `main` does; returns how many runs failed. Raises ValueError, OSError, SystemExit."""
    if "WORLD_SIZE" in os.environ:
        raise ValueError("not under torchrun: give each process its --shard instead")
    dataset = data.load(args.data)
    args.device = str(options.pick_device(args.device))
    for depth in args.depth:
        ResNet(depth)  # is there one?
    Path(args.out).mkdir(parents=True, exist_ok=True)
    way = f"{', '.join(args.attack)}: {args.steps} steps, {args.queries} queries, "
    way += f"{len(dataset.choose_test_images(args.images))} images of {dataset.checksum:08x}"
    runs, failed, (i, k) = plan(args, dataset.name), 0, args.shard
    mine = list(runs)[i - 1 :: k]
    for number, folder in enumerate(mine, 1):
        print(f"[{number}/{len(mine)}] {folder.name}", flush=True)
        _, method, flags = runs[folder]
        try:
            with open(f"{folder}.log", "a") as log, contextlib.redirect_stdout(log):
                train_or_resume(METHODS[method][0], folder, args.data, args.device, flags)
        except SystemExit as stop:  # the script has said why
            if stop.code == 130:
                raise
            failed += 1
        else:
            if way not in results_in(folder):
                evaluate(folder, method, args, dataset, way)
    tabulate(runs, args, way)
    return failed


if __name__ == "__main__":
    main()
