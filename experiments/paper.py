"""The paper's tables and figures: trains and attacks what they need, and prints ours beside theirs.

    python -m experiments.paper table3     # digits; some results are there already
    python -m experiments.paper table3 --scale photos --data cifar10-10000.npz --dry-run
    python -m experiments.paper all --scale full --shard 2/8   # CIFAR-10 as in the paper: for GPUs

NAME is table1 .. table4, figure1 .. figure4, or all. experiments/compare.py trains and attacks the
runs, and leaves one JSON file of each in --out; figures 2 to 4 add a second one. A run whose file
is there, or among the project's records, is not repeated, unless with --again what is recorded.
Table 1 is timed by `experiments.bench_step`.

The numbers of the paper are in paper.json, its claims and their judge in claims.py.
"""

import contextlib
import json
from argparse import Namespace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import data
import xor_demo
from experiments import claims, compare, evaluate, records, transfer_set
from experiments.results import MAKERS
from support import files, options
from train_submodel import Settings


class Scale(NamedTuple):
    """How large the runs are."""

    data: str
    folder: str  # of their results
    epochs: int
    images: int
    seeds: int  # of the methods that decide nothing
    eps: dict[int, list[float]]  # by depth
    depths: list[int] = [2, 8, 14, 20]  # Table 4's


PHOTOS, FULL = {8: [0.02, 0.03, 0.05], 2: [0.03]}, {20: [n / 100 for n in range(1, 8)]}
SCALES = {
    "digits": Scale("digits", "compare", 30, data.MAX_IMAGES, 3, claims.DIGITS),
    "photos": Scale("cifar10-jpeg-10000.npz", "photos", 12, 500, 1, PHOTOS),
    "full": Scale("cifar10", "full", 100, data.MAX_IMAGES, 1, FULL),
}
DECIDING = ["soe", "plain-together", "gal", "plain-jointly"]
OTHERS = ["soe-stage1", "plain", "adp", "more", "dverge"]
BY_NUMBER = [(["soe", "plain-together"], M, None) for M in range(1, 6)]
RUNS = {  # [(methods, M, seeds or None for the scale's)]
    "table3": [(DECIDING, 3, 3), (OTHERS, 3, None)],
    "table2": [(["soe"], 3, 3)],
    "table4": [(["soe"], 3, None), (["plain"], 1, None), (["plain"], 3, None)],
    "figure3": BY_NUMBER,
    "figure4": BY_NUMBER,
    "figure2": [(["soe", "soe-stage1"], 3, None)],
    "figure1": [],
    "table1": [],
}


def comparisons(name: str, args: Namespace) -> list[Namespace]:
    """What a table or figure needs, each as the arguments of a comparison."""
    scale, jobs = SCALES[args.scale], []
    places = [([depth], eps) for depth, eps in scale.eps.items()]
    if name == "table4":
        places = [(scale.depths, [0])]
    elif name in ("figure3", "figure4"):
        places = [([min(scale.eps)], scale.eps[min(scale.eps)])]
    for (depths, eps), (methods, M, seeds) in product(places, RUNS[name]):
        if args.scale == "digits":
            methods = [claims.STRONGER.get(method, method) for method in methods]
        images = 10_000 if eps == [0] else scale.images  # clean images cost nothing
        job = compare.comparison_parser().parse_args([])
        vars(job).update(methods=methods, depth=depths, eps=eps, n=M, images=images)
        vars(job).update(seeds=seeds or scale.seeds, epochs=scale.epochs, shard=args.shard)
        vars(job).update(data=args.data or scale.data, device=args.device)
        job.out = f"{args.out}/{scale.folder}"
        jobs.append(job)
    return jobs


def is_there(path: Path, args: Namespace) -> bool:
    """Is a run's JSON file in its folder, or among the project's records?"""
    return path.exists() or f"{path.parent.name}/{path.name}" in args.stored


def show_plan(names: list[str], args: Namespace) -> None:
    """Prints the runs that these tables and figures need, the units of each, and what is there."""
    dataset = data.load(args.data or SCALES[args.scale].data)
    batches, total = max(1, len(dataset.x_train) // Settings.batch_size), 0.0
    jobs = [job for name in names for job in comparisons(name, args)]
    planned = {run.name: (run, job) for job in jobs for run in compare.plan(job, dataset.name)}
    for run, job in planned.values():
        if is_there(Path(job.out, f"{run.name}.json"), args):
            print(f"{'there':>12}  {run.name}")
            continue
        units = compare.mean_units(run.method, job.n, run.eps) * run.epochs * batches
        total += units
        print(f"{units:12,.0f}  {run.name}")
    print(f"{total:12,.0f}  units in all, a forward pass of a batch each; attacking comes on top")


def on_transferred(job: Namespace, args: Namespace) -> None:
    """Tries the trained runs of a comparison on images that were made against other networks; makes
    the images first, where they are not there."""
    dataset, out = data.load(job.data), Path(args.out)
    (out / "transfer").mkdir(parents=True, exist_ok=True)
    for run in compare.plan(job, dataset.name):
        folder, record = Path(job.out, run.name), out / "transfer" / f"{run.name}.json"
        if is_there(record, args) or not (folder / "metrics.json").exists():
            continue
        images = out / f"{dataset.name}-eps{run.eps:g}.npz"
        flags = [f"--data={job.data}", f"--eps={run.eps:g}", f"--device={job.device}"]
        if not images.exists():
            surrogates = out / f"{dataset.name}-surrogates"
            made = [f"--images={job.images}", f"--surrogates={surrogates}", f"--out={images}"]
            transfer_set.main([*flags, *made])
        flags += ["--attack", *transfer_set.TRANSFER, f"--transfer={images}", f"--out={record}"]
        with open(f"{folder}.log", "a") as log, contextlib.redirect_stdout(log):
            evaluate.main([str(folder), *flags])
        print(f"{run.name}: attacked by {images}")


def xor(path: Path) -> None:
    """Figure 1 from twenty random starts: {"vote", "joint", "trap": accuracies in percent}."""
    vote, joint, _ = zip(*map(xor_demo.accuracies, range(20)))
    _, trap, _ = zip(*(xor_demo.accuracies(seed, xor_demo.trap_loss) for seed in range(20)))
    record = {"command": "python -m experiments.paper figure1", "versions": options.versions()}
    record |= {"vote": vote, "joint": joint, "trap": trap}
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(record).encode())


def show(name: str, args: Namespace) -> None:
    """Prints a table or figure, ours beside the paper's, and the verdicts on its claims."""
    kind, number = name[:-1].title(), name[-1]
    maker = {"figure3": "figures34", "figure4": "figures34", "table1": "steps"}.get(name, name)
    results = records.matching("*/*.json") if args.stored else []
    for path in sorted(Path(args.out).glob("*/*.json")):
        results += records.read(path)
    shown = records.matching("bench_step.json") if name == "table1" else results
    print(f"\n{kind} {number}\n")
    if maker in MAKERS and shown:
        print(MAKERS[maker](records.frame(shown)))
    print()
    for claim in claims.judged(records.frame(results)) if results else ():
        place = claim.place.partition(", ")[2]
        if place.startswith(kind) and number in place:
            print(f"- {claim.text} ({claim.place}): {claim.verdict}")
            for one in claim.evidence:
                print(f"    {one.where}: {one} {claim.says(one)}")


def make(name: str, args: Namespace) -> int:
    """Trains and attacks what a table or figure needs, and shows it; returns how many runs failed.
    Raises ValueError, OSError, SystemExit."""
    failed, accuracies = 0, Path(args.out, "figure1", "xor.json")
    for job in comparisons(name, args):
        failed += compare.train_and_attack(job, args.stored)[1]
        if name.startswith("figure"):
            on_transferred(job, args)
    if name == "figure1" and not is_there(accuracies, args):
        xor(accuracies)
    show(name, args)
    return failed


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.paper")
    add, known = parser.add_argument, [*sorted(RUNS), "all"]
    add("name", metavar="NAME", choices=known, help=", ".join(known))
    add("--scale", choices=SCALES, default="digits", help="how large the runs are")
    add("--data", help="the data set, where it is not the scale's own")
    add("--dry-run", action="store_true", help="say what would be run, and what it costs")
    add("--again", action="store_true", help="repeat what is among the project's records, too")
    options.add_device(parser)
    add("--shard", type=options.part, default="1/1", metavar="I/K", help="do the I-th of K parts")
    add("--out", default="runs/paper", metavar="DIR", help="folder of all the runs")
    args, failed = parser.parse_args(argv), 0
    with parser.errors_in_one_line():
        if Path(args.out).is_file():
            raise ValueError(f"--out {args.out}: this is a file, not a folder of runs")
        known = [] if args.again else records.matching("*/*.json")
        args.stored = {record["name"] for record in known}
        names = list(RUNS) if args.name == "all" else [args.name]
        if args.dry_run:
            show_plan(names, args)
        else:
            failed = sum(make(name, args) for name in names)
    if failed:
        parser.exit(1, f"runs that failed, as said above: {failed}\n")


if __name__ == "__main__":
    main()
