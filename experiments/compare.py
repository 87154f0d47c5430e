"""SoE beside its rivals: the same data, epochs, training attack and evaluation for all of them.

    python -m experiments.compare --eps 0.1 --n 3 --depth 2 8 --seeds 3
    python -m experiments.compare --methods soe "soe --sigma 0.3" plain-jointly --equal-cost
    python -m experiments.compare --between A.json B.json    # the difference of any two runs, or
    python -m experiments.compare --between "photos/*-soe-depth2*eps0.03*" "photos/*-gal-depth2*"

A method is a name of METHODS, perhaps with flags of its script behind it. A run is one method at
one depth, eps and seed. The method's script trains it in a folder of its own in --out. Then it is
attacked itself, at the eps of its training, by the attacks of experiments/evaluate.py. A log and
its results, one JSON file, stand beside the folder.

The same command resumes what was interrupted; the table shows whatever has finished. `--shard 2/5`
does the second of five parts, on another machine for instance. A run that fails does not stop the
others; the exit status is then 1.

`--equal-cost` scales the epochs so that each method costs as much as the first one named, in the
units of `baselines.methods.units_of_a_batch`.
"""

import contextlib
import json
import statistics
from argparse import ArgumentTypeError, Namespace
from collections.abc import Container
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

import data
import infer
from baselines import methods
from baselines.methods import Method
from experiments import machine, records, soft_synergy, train_or_resume
from experiments.evaluate import ATTACKS, DECIDE, attacks_at, measure
from experiments.results import accuracy, comparison, signed, table
from experiments.soft_synergy import SoftSettings, soft_loss
from models import ResNet
from support import checkpoints, files, options
from train_submodel import Settings

METHODS = dict(methods.METHODS)
METHODS["soft-synergy"] = Method(soft_synergy.main, SoftSettings, "soft", (soft_loss,))
DEFAULT = [*methods.METHODS, "adp --optimizer sgd", "gal --optimizer sgd"]
MEANING = "± behind an accuracy: its standard deviation over the seeds of training; behind a "
MEANING += "difference: half its 95 % interval, over images and seeds (of one seed, images alone)."
SHARED = "--depth --eps --n --epochs --seed --data --device --out --resume".split()


def known_method(text: str) -> str:
    """A name of METHODS, perhaps with flags of its script."""
    name, *flags = text.split() or [""]
    if name not in METHODS:
        raise ArgumentTypeError(f"unknown method {text!r}: it must begin with {', '.join(METHODS)}")
    for flag in flags:
        if flag.split("=")[0] in SHARED:
            advice = "give it to the comparison itself"
            raise ArgumentTypeError(f"{flag} in {text!r} would differ between methods: {advice}")
    return text


@cache
def units_of_a_batch(method: str, M: int, S: int, eps: float = 1) -> dict[int, int]:
    """{stage: units of a batch} of a method, perhaps with flags: M members, S steps of PGD."""
    name, *flags = method.split()
    return methods.units_of_a_batch(METHODS[name], M, S, eps, flags)


def mean_units(method: str, M: int, eps: float) -> float:
    """Units of a batch, the mean over the stages, at the default steps of PGD."""
    return statistics.mean(units_of_a_batch(method, M, Settings.steps, eps).values())


class Run(NamedTuple):
    """One method at one depth, eps and seed."""

    name: str  # of its folder, log and JSON file
    method: str  # perhaps with flags
    script: Method  # what trains it
    flags: list[str]  # of the script
    command: str  # what trains it, in one line
    eps: float
    epochs: int


def plan(args: Namespace, data_name: str) -> list[Run]:
    """Every run that is asked for, once; of these the I-th of K parts, for --shard I/K."""
    runs, seeds = {}, range(args.seed, args.seed + args.seeds)
    for depth, eps, method, seed in product(args.depth, args.eps, args.methods, seeds):
        epochs = args.epochs or options.default_epochs(args.data)
        if args.equal_cost:
            first, own = (mean_units(each, args.n, eps) for each in (args.methods[0], method))
            epochs = max(1, round(epochs * first / own))
        values = {"depth": depth, "n": args.n, "eps": f"{eps:g}", "epochs": epochs, "seed": seed}
        name = f"{data_name}-{method.replace(' --', '-').replace(' ', '').replace('/', '_')}"
        name += "".join(f"-{key}{value}" for key, value in values.items())
        base, *own_flags = method.split()
        script = METHODS[base]
        flags = [*script.flags.split(), *own_flags, *(f"--{k}={v}" for k, v in values.items())]
        command = " ".join(["python -m", script.main.__module__, f"--data={args.data}", *flags])
        runs[name] = Run(name, method, script, flags, command, eps, epochs)
    i, k = args.shard
    return list(runs.values())[i - 1 :: k]


def evaluation(args: Namespace, dataset: data.Data) -> dict:
    """How a run is evaluated, where it was trained with attacks."""
    attacks = {name: getattr(args, name) for name in ("attack", "steps", "queries")}
    return attacks | {"images": min(args.images, len(dataset.x_test)), "seed": 0}


def evaluate(run: Run, args: Namespace, dataset: data.Data) -> dict:
    """The record of a trained run: its model attacked itself, and all that it takes to repeat that.
    Raises ValueError where it was trained on other images, OSError."""
    folder = Path(args.out) / run.name
    checkpoint = checkpoints.load(folder)
    settings = checkpoint["settings"]
    if settings["data_checksum"] != dataset.checksum:
        raise ValueError(f"{folder} was trained on other images: name another --out")
    model = infer.load(folder, args.device)
    x, y = dataset.test_images(args.device, dataset.choose_test_images(args.images))
    eps = settings["eps"]
    attacks = attacks_at(args.attack, model, eps, args.steps, args.queries) if eps else {}
    stages = units_of_a_batch(run.method, settings["n"], settings["steps"], eps)
    units = sum(stages[stage] * epochs for stage, epochs in settings["stage_epochs"].items())
    return {
        "method": run.method,
        "command": run.command,
        **machine(torch.device(args.device)),
        "trained_on": sorted({epoch.get("device", "?") for epoch in checkpoint["history"]}),
        "settings": settings | {"out": None},
        "evaluation": evaluation(args, dataset),
        "units": units * settings["steps_per_epoch"],
        "row": model.row,
        **measure(model, x, y, attacks),
    }


def check_record(path: Path, run: Run, args: Namespace, dataset: data.Data) -> None:
    """Raises ValueError where a run's JSON file is of another command, other images or attacks."""
    with files.reading(path, "result of a run"):
        (record,) = records.read(path)
        kept = record["command"], record["settings"]["data_checksum"], record["evaluation"]
    asked = run.command, dataset.checksum, evaluation(args, dataset)
    for part, theirs, ours in zip(("command", "data set", "evaluation"), kept, asked):
        if theirs != ours:
            raise ValueError(f"{path} is of another {part} ({theirs}): move it elsewhere")


def check_strength(args: Namespace) -> None:
    """Raises ValueError where the methods would be judged by unequal attacks."""
    votes = [m for m in args.methods if args.n == 1 or METHODS[m.split()[0]].model == "ensemble"]
    if votes and max(args.eps) and "adaptive" in args.attack and "apgd" not in args.attack:
        why = "it has no router that adaptive could mislead"
        raise ValueError(f"{votes[0]} would be judged by weaker attacks: {why}; add apgd")


def train_and_attack(args: Namespace, stored: Container[str] = ()) -> tuple[list[Path], int]:
    """Does the runs of the plan that have no JSON file and are not `stored`. Returns all JSON files
    of the plan, and how many runs failed. Raises ValueError, OSError, SystemExit."""
    check_strength(args)
    dataset, out, failed = data.load(args.data), Path(args.out), 0
    args.device = str(options.pick_device(args.device))
    for depth in args.depth:
        ResNet(depth)  # refuses a depth that there is not
    runs = plan(args, dataset.name)
    spelled: dict[str, str] = {}  # {what is trained: the method's words}
    for run in runs:  # refuses bad flags, and two spellings of one method
        asked = options.training_parser(run.script.settings).parse_args(run.flags)
        first = spelled.setdefault(f"{run.script.main.__module__} {asked}", run.method)
        if first != run.method:
            raise ValueError(f"{first!r} and {run.method!r} are the same: name one of them")
    out.mkdir(parents=True, exist_ok=True)
    files.check_writable(out)
    results = {out / f"{run.name}.json": run for run in runs}
    for number, (path, run) in enumerate(results.items(), 1):
        if f"{out.name}/{path.name}" in stored:
            continue
        print(f"[{number}/{len(runs)}] {run.name}", flush=True)
        if path.exists():
            check_record(path, run, args, dataset)
            print("  is there already; after a change of code move it elsewhere, or name an --out")
            continue
        try:
            with open(out / f"{run.name}.log", "a") as log, contextlib.redirect_stdout(log):
                train_or_resume(run.script.main, out / run.name, args.data, args.device, run.flags)
            files.write(path, json.dumps(evaluate(run, args, dataset)).encode())
        except SystemExit as stop:  # the script has said why
            if stop.code == 130:
                raise
            failed += 1
        except RuntimeError as error:  # no memory is left on the GPU, say
            print(f"  {str(error).splitlines()[0]}")
            failed += 1
    return [path for path in results if path.exists()], failed


def show(finished: list[Path], args: Namespace) -> None:
    """Prints the tables of these files, and writes their numbers to --csv."""
    runs = records.frame(record for path in finished for record in records.read(path))
    of_soe = any(method.startswith("soe") for method in args.methods)
    first = "soe" if of_soe else args.methods[0]
    for title, runs_of_title in records.by_title(runs, first):
        print(f"\n{title}; accuracy (%), each model attacked itself\n")
        print(comparison(runs_of_title, first))
    print(f"\n{MEANING}\nWrote {args.out}: a JSON file for each run")
    if args.csv:
        numbers = runs.drop(columns=["place", "experts", "correct", "record", "name"])
        files.write(Path(args.csv), numbers.to_csv(index=False).encode())


def measured(name: str) -> pd.DataFrame:
    """The measurements of one method in a JSON file, or in the project's records whose names fit.
    Raises ValueError where there are none, or of several."""
    fitting = records.read(Path(name)) if Path(name).is_file() else records.matching(name)
    if not fitting:
        raise ValueError(f"there is no file, and no record, {name}")
    runs = records.frame(fitting)
    if len(runs[["method", "M", "depth"]].drop_duplicates()) > 1:
        raise ValueError(f"{name} names several methods, numbers of experts or depths")
    return records.measurements(runs)


def strength(record: dict) -> str:
    """How a record's model was attacked."""
    how = {"rescale": True, "seeds": 1} | (record.get("evaluation") or record["command"])
    names = ("attack", "steps", "queries", "rescale", "seeds")
    return ", ".join(f"{name} {how.get(name)}" for name in names)


def between(a: str, b: str) -> str:
    """A table of two runs, or attacked models, and their difference in each column that both have;
    several seeds are paired. Raises ValueError where they have not seen the same images."""
    ours, theirs = measured(a), measured(b)
    if len({strength(record) for record in [*ours["record"], *theirs["record"]]}) > 1:
        raise ValueError(f"{a} and {b} were attacked by other attacks, steps, queries or seeds")
    same = ["data", "checksum", "images", "eps", "column"]
    same += ["seed"] if max(ours["seed"].nunique(), theirs["seed"].nunique()) > 1 else []
    pairs = ours.merge(theirs, on=same, suffixes=("", " of B"))
    if pairs.empty:
        raise ValueError(f"{a} and {b}: no attack at one eps, on the same images, is in both")
    pairs["difference"] = pairs["correct"] - pairs["correct of B"]
    cells = {"accuracy": accuracy, "accuracy of B": accuracy, "difference": signed}
    cells = pairs.groupby(["eps", "column"], sort=False).agg(cells)
    return table(cells.set_axis(["A", "B", "A less B"], axis=1), "eps", "")


def comparison_parser() -> options.Parser:
    parser = options.Parser(__doc__, prog="-m experiments.compare")
    add, count = parser.add_argument, options.count
    known = "of METHODS, perhaps with flags (default: all but soft-synergy; adp, gal by SGD too)"
    add("--methods", nargs="+", type=known_method, metavar="METHOD", default=DEFAULT, help=known)
    add("--depth", type=options.depth, nargs="+", default=[20], help="depths of each ResNet")
    add("--eps", type=options.radius_or_0, nargs="+", default=[0.03], help="radii of the attack")
    add("--n", type=count, default=3, help="M, the members of each")
    add("--epochs", type=count, help="of every method (default: as in training)")
    add("--equal-cost", action="store_true", help="as much training as the first method has")
    add("--seed", type=options.seed, default=0, help="the first seed")
    add("--seeds", type=count, default=1, help="how many seeds, from there on")
    known = f"of {', '.join(ATTACKS)} (default: {' '.join(DECIDE)})"
    add("--attack", nargs="+", choices=ATTACKS, metavar="NAME", default=list(DECIDE), help=known)
    add("--steps", type=count, default=20, help="steps of AutoPGD, also in the adaptive attack")
    add("--queries", type=count, default=1000, help="queries of square, rescaled to them")
    add("--images", type=count, default=data.MAX_IMAGES, help="at most so many test images")
    add("--data", default="digits", help="as in training")
    options.add_device(parser)
    add("--shard", type=options.part, default="1/1", metavar="I/K", help="do the I-th of K parts")
    add("--out", default="runs/compare", metavar="DIR", help="folder of all the runs")
    add("--csv", metavar="FILE", help="also write a row of numbers for each run")
    two = "only compare two runs: JSON files of this script or of evaluate, or names of records"
    add("--between", nargs=2, metavar=("A", "B"), help=two)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = comparison_parser()
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        if args.between:
            print(f"{between(*args.between)}\n\n{MEANING}")
            return
        if args.csv:
            files.check_new(Path(args.csv), ".csv", "--csv")
        finished, failed = train_and_attack(args)
        if finished:
            show(finished, args)
    if failed:
        parser.exit(1, f"runs that failed, as said above: {failed}\n")


if __name__ == "__main__":
    main()
