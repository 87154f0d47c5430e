"""SoE beside its rivals: the same data, epochs, training attack and evaluation for all of them.

    python -m experiments.compare --eps 0.1 --n 3 --depth 2 8 --seeds 3
    python -m experiments.compare --methods soe "soe --sigma 0.3" plain-jointly --equal-cost

A method is a name of METHODS, or one with flags of its script behind it. One run is one method at
one depth, eps and seed. It is trained by the method's own script, in a folder of its own in --out
with its log beside it, then attacked itself, at the eps of its training, by the attacks of
experiments/evaluate.py, AutoPGD in 20 steps. Its results are one JSON file in --results. What is
there is used again, so the same command resumes where it was interrupted; `--shard 2/5` does the
second of five parts, on another machine for instance. The table shows whatever is finished. A run
that fails does not stop the others; the exit status is then 1.

Cost is counted in units (`baselines.methods.units_of_a_batch`): one member's forward pass on one
batch; a step of an attack costs 2 and learning a batch 3.

`--equal-cost` scales the epochs so that each method costs as much as the first one named.
"""

import contextlib
import functools
import json
import statistics
from argparse import ArgumentTypeError, Namespace
from collections.abc import Container
from itertools import product
from pathlib import Path

import torch

import baselines.methods
import data
import infer
from baselines.methods import Method
from experiments import figures, records, soft_synergy, train_or_resume
from experiments.evaluate import ATTACKS, DECIDE, attacks_at, doubts, report
from experiments.results import comparison
from models import ResNet
from support import checkpoints, files, options
from train_submodel import Settings

METHODS = baselines.methods.METHODS | {
    "soft-synergy": Method(
        soft_synergy.main, soft_synergy.SoftSettings, "soft", (soft_synergy.soft_loss,)
    )
}
DEFAULT = [*baselines.methods.METHODS, "adp --optimizer sgd", "gal --optimizer sgd"]
OURS = "--depth --eps --n --epochs --seed --data --device --out --resume".split()
OF_ALL = "give it to the comparison itself"


@functools.cache
def units_of_a_batch(method: str, M: int, S: int, eps: float = 1) -> dict[int, int]:
    """{stage: units of a batch} of a method, perhaps with flags: M members, S steps of PGD."""
    name, *flags = method.split()
    return baselines.methods.units_of_a_batch(METHODS[name], M, S, eps, flags)


def epochs_at_equal_cost(
    method: str, first: str, epochs: int, M: int, S: int, eps: float = 1
) -> int:
    """Epochs in which `method` costs what `first` costs in `epochs`."""
    of = (units_of_a_batch(m, M, S, eps=eps) for m in (first, method))
    theirs, ours = (statistics.mean(stages.values()) for stages in of)
    return max(1, round(epochs * theirs / ours))


def known_method(text: str) -> str:
    """A name of METHODS, perhaps with flags of its script."""
    if not text.split() or text.split()[0] not in METHODS:
        raise ArgumentTypeError(f"unknown method {text!r}: it must begin with {', '.join(METHODS)}")
    for word in text.split():
        if word.split("=")[0] in OURS:
            raise ArgumentTypeError(f"{word} in {text!r} would differ between methods: {OF_ALL}")
    return text


def plan(args: Namespace, data_name: str) -> dict[str, tuple[str, list[str]]]:
    """{name: (method, flags of its script)} of every run asked for."""
    runs = {}
    for depth, eps, method in product(args.depth, args.eps, args.methods):
        epochs = args.epochs or options.default_epochs(args.data)
        if args.equal_cost:
            epochs = epochs_at_equal_cost(
                method, args.methods[0], epochs, args.n, Settings.steps, eps
            )
        words = method.split()
        for seed in range(args.seed, args.seed + args.seeds):
            of = {"depth": depth, "n": args.n, "eps": f"{eps:g}", "epochs": epochs, "seed": seed}
            name = f"{data_name}-{method.replace(' --', '-').replace(' ', '').replace('/', '_')}"
            name += "".join(f"-{k}{v}" for k, v in of.items())
            flags = [
                *METHODS[words[0]].flags.split(),
                *words[1:],
                *(f"--{k}={v}" for k, v in of.items()),
            ]
            runs[name] = method, flags
    return runs


def share(args: Namespace, data_name: str) -> dict[str, tuple[str, list[str]]]:
    """The part of the plan that --shard is to do."""
    (i, k), runs = args.shard, plan(args, data_name)
    return {name: runs[name] for name in list(runs)[i - 1 :: k]}


def evaluate(
    folder: Path, method: str, flags: list[str], args: Namespace, dataset: data.Data
) -> dict:
    """What the model in `folder` does when it is attacked itself, with all that it takes to repeat
    it. Raises ValueError where it was trained on other data, OSError."""
    checkpoint = checkpoints.load(folder)
    settings = checkpoint["settings"]
    if settings["data_checksum"] != dataset.checksum:
        raise ValueError(f"{folder} was trained on other images: name another --out")
    model = infer.load(folder, args.device)
    x, y = dataset.test_images(args.device, dataset.choose_test_images(args.images))
    eps = settings["eps"]
    how = attacks_at(args.attack, model, eps, args.steps, args.queries) if eps else {}
    result = report(model, x, y, how)
    stages = units_of_a_batch(method, settings["n"], settings["steps"], eps=eps)
    units = sum(stages[stage] * epochs for stage, epochs in settings["stage_epochs"].items())
    return {
        "method": method,
        "command": command(method, flags, args),
        "threads": torch.get_num_threads(),
        "device": options.device_name(torch.device(args.device)),
        "trained_on": sorted({epoch.get("device", "?") for epoch in checkpoint["history"]}),
        "versions": options.versions(),
        "settings": settings | {"out": None},
        "evaluation": evaluation(args, len(x)),
        "units": units * settings["steps_per_epoch"],
        "row": model.row,
        "doubts": doubts(model, x, y, result["table"][model.row]),
        **result,
    }


def command(method: str, flags: list[str], args: Namespace) -> str:
    """What trains a run."""
    script = METHODS[method.split()[0]].main.__module__
    return " ".join(["python -m", script, f"--data={args.data}", *flags])


def evaluation(args: Namespace, images: int) -> dict:
    """How a run is evaluated, where it was trained with attacks."""
    how = {name: getattr(args, name) for name in ("attack", "steps", "queries")}
    return {**how, "images": images, "seed": 0}


def comparison_parser() -> options.Parser:
    parser = options.Parser(__doc__, prog="-m experiments.compare")
    add, count = parser.add_argument, options.count
    what = "names of METHODS, perhaps with flags (default: all but ours, and adp, gal by SGD)"
    add("--methods", nargs="+", type=known_method, metavar="METHOD", default=DEFAULT, help=what)
    add("--depth", type=options.depth, nargs="+", default=[20], help="depths of each ResNet")
    add("--eps", type=options.radius_or_0, nargs="+", default=[0.03], help="radii of the attack")
    add("--n", type=count, default=3, help="M, the members of each")
    add("--epochs", type=count, help="of every method (default: as in training)")
    add("--equal-cost", action="store_true", help="as much training as the first method has")
    add("--seed", type=options.seed, default=0, help="the first seed (default: 0)")
    add("--seeds", type=count, default=1, help="how many seeds, from there on")
    what = f"of {', '.join(ATTACKS)} (default: {' '.join(DECIDE)})"
    add("--attack", nargs="+", choices=ATTACKS, metavar="NAME", default=list(DECIDE), help=what)
    add("--steps", type=count, default=20, help="steps of AutoPGD, also in the adaptive attack")
    add("--queries", type=count, default=1000, help="queries of square, rescaled to them")
    add("--images", type=count, default=data.MAX_IMAGES, help="at most so many test images")
    add("--data", default="digits", help="as in training")
    options.add_device(parser)
    add("--shard", type=options.part, default="1/1", metavar="I/K", help="do the I-th of K parts")
    add("--out", default="runs/compare", metavar="DIR", help="folder of all the runs")
    add("--results", metavar="DIR", help="folder of their JSON files (default: that of --out)")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = comparison_parser()
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        finished, failed = run(args)
        show(finished, args)
    if failed:
        parser.exit(1, f"runs that failed, as said above: {failed}\n")


def run(args: Namespace, stored: Container[str] = ()) -> tuple[list[Path], int]:
    """Trains and attacks what is asked for and neither there yet nor `stored`; returns the JSON
    files of all runs that have finished, and how many failed. Raises ValueError, OSError,
    SystemExit."""
    dataset = data.load(args.data)
    args.device = str(options.pick_device(args.device))
    for depth in args.depth:
        ResNet(depth)  # is there one?
    runs, mine, failed = plan(args, dataset.name), share(args, dataset.name), 0
    for method, flags in runs.values():
        options.training_parser(METHODS[method.split()[0]].settings).parse_args(
            flags
        )  # unknown ones
    out, results = Path(args.out), Path(args.results or args.out)
    for folder in (results, out):
        folder.mkdir(parents=True, exist_ok=True)
        files.check_writable(folder)
    wanted = evaluation(args, len(dataset.choose_test_images(args.images)))
    for number, (name, (method, flags)) in enumerate(mine.items(), 1):
        if f"{results.name}/{name}.json" in stored:
            continue
        print(f"[{number}/{len(mine)}] {name}", flush=True)
        kept = results / f"{name}.json"
        if kept.exists():
            with files.reading(kept, "result of a run"):
                found = records.read(kept)
                made_by, evaluated = found["command"], found["evaluation"]
                images = found["settings"]["data_checksum"]
            if made_by != command(method, flags, args):
                raise ValueError(f"{kept} was made by {made_by}: name another --out")
            if images != dataset.checksum:
                raise ValueError(f"{kept} is of other images: name another --out")
            if evaluated != wanted:
                raise ValueError(f"{kept} was evaluated in another way: name another --results")
            print("  is there already; after a change of code name another --out")
            continue
        try:
            with open(out / f"{name}.log", "a") as log, contextlib.redirect_stdout(log):
                main = METHODS[method.split()[0]].main
                train_or_resume(main, out / name, args.data, args.device, flags)
        except SystemExit as stop:  # the script has said why
            if stop.code == 130:
                raise
            failed += 1
        else:
            found = evaluate(out / name, method, flags, args, dataset)
            files.write(kept, json.dumps(found).encode())
    return [path for name in runs if (path := results / f"{name}.json").exists()], failed


def show(finished: list[Path], args: Namespace) -> None:
    """Prints the tables of these files, and draws them. Raises OSError."""
    if finished:
        runs = records.frame(map(records.read, finished))
        for title, of_title in records.by_title(runs):
            print(f"\n{title}; accuracy (%), each model attacked itself\n")
            print(comparison(of_title))
        picture = files.new(Path(args.out), "compare", ".png")
        files.write(picture, figures.methods(runs, ("clean", *args.attack, "worst")))
        print(f"\nWrote {args.results or args.out}: a JSON file for each run; and {picture}")


if __name__ == "__main__":
    main()
