"""The paper's tables and figures: trains and attacks what they need, and prints ours beside theirs.

    python -m experiments.paper table3     # digits; some results are there already
    python -m experiments.paper table3 --scale photos --data cifar10-10000.npz --dry-run
    python -m experiments.paper all --scale full --shard 2/8   # CIFAR-10 as in the paper: for GPUs

NAME is table1 .. table4, figure1 .. figure4, or all. The scales are digits (depths 2 and 8; eps
others than the paper's, as digits are easier), photos (10,000 images of `experiments.subset`,
depths 2 and 8, 12 epochs), and full (CIFAR-10, depth 20, 100 epochs). Every run is trained and
attacked by experiments/compare.py and leaves one JSON file in --results, for figures 2 to 4 a
second one. What is there, or among the project's records, is used again, so that the same command
resumes what was interrupted; to repeat what is recorded, name a folder as --results. Table 1 is
timed by `experiments.bench_step`.

The numbers of the paper are in paper.json, its claims and how they are judged in claims.py.
"""

import contextlib
import json
import re
import time
from argparse import Namespace
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

import data
import xor_demo
from experiments import claims, compare, evaluate, records, transfer_set
from experiments.claims import STRONGER
from experiments.results import MAKERS
from models import ResNet
from support import files, options, speed
from support.printing import duration

NAMES = "table3 table2 table4 figure3 figure4 figure2 figure1 table1".split()
DECIDING = ["soe", "plain-together", "gal", "plain-jointly"]  # three seeds at each scale
OTHERS = ["soe-stage1", "plain", "adp", "more", "dverge"]


class Scale(NamedTuple):
    """How large the runs are."""

    data: str
    folder: str  # of their results
    epochs: int
    images: int
    eps: dict[int, list[float]]  # by depth
    depths: list[int]  # Table 4's
    seeds: int  # of the methods that decide nothing


SCALES = {
    "digits": Scale(
        data="digits",
        folder="compare",
        epochs=30,
        images=data.MAX_IMAGES,
        eps={2: [0.02, 0.05, 0.1], 8: [0.1, 0.2, 0.3]},
        depths=[2, 8, 14, 20],
        seeds=3,
    ),
    "photos": Scale(
        data="cifar10-jpeg-10000.npz",
        folder="photos",
        epochs=12,
        images=500,
        eps={8: [0.02, 0.03, 0.05], 2: [0.03]},
        depths=[2, 8, 14, 20],
        seeds=1,
    ),
    "full": Scale(
        data="cifar10",
        folder="full",
        epochs=100,
        images=data.MAX_IMAGES,
        eps={20: [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07]},
        depths=[2, 8, 14, 20],
        seeds=1,
    ),
}


def jobs(name: str, scale: Scale, args: Namespace) -> list[Namespace]:
    """What experiments.compare has to do for a table or figure."""
    found = []

    def add(methods: list[str], depths: list[int], eps: list[float], M: int, seeds: int) -> None:
        images = 10_000 if eps == [0] else scale.images  # clean images cost nothing
        if args.scale == "digits":
            methods = [STRONGER.get(method, method) for method in methods]
        job = compare.comparison_parser().parse_args([])
        vars(job).update(methods=methods, depth=depths, eps=eps, n=M, seeds=seeds, images=images)
        vars(job).update(epochs=scale.epochs, data=args.data or scale.data, device=args.device)
        vars(job).update(out=str(Path(args.out) / args.scale), shard=args.shard)
        vars(job).update(results=str(Path(args.results) / scale.folder))
        found.append(job)

    if name == "table4":
        for methods, M in ((["soe"], 3), (["plain"], 1), (["plain"], 3)):
            add(methods, scale.depths, [0], M, scale.seeds)
    for depth, eps in scale.eps.items():
        if name == "table2":
            add(["soe"], [depth], eps, 3, 3)
        if name == "table3":
            add(DECIDING, [depth], eps, 3, 3)
            add(OTHERS, [depth], eps, 3, scale.seeds)
        if name == "figure2":
            add(["soe", "soe-stage1"], [depth], eps, 3, scale.seeds)
        if name in ("figure3", "figure4") and depth == min(scale.eps):
            for M in range(1, 6):
                add(["soe", "plain-together"], [depth], eps, M, scale.seeds)
    return found


# ----------------------------------------------------------------------------------- the dry run


def seconds_of_a_unit(depth: int, dataset: data.Data, device: torch.device) -> float:
    """Time of one forward pass of a batch of 128 here, half of a forward and a backward one."""
    settings = Namespace(precision=options.best_precision(device))
    channels, *sides = dataset.image_shape
    network = ResNet(depth, channels, dataset.num_classes, tuple(sides)).to(device)
    network = network.to(memory_format=torch.channels_last)
    x = torch.rand(128, *dataset.image_shape, device=device)
    y = torch.zeros(128, dtype=torch.long, device=device)

    def step() -> float:
        start = time.perf_counter()
        with speed.autocast(device, settings):
            loss = F.cross_entropy(network.logits(x), y)
        loss.backward()
        network.p_head.bias.grad.sum().item()  # waits for a GPU
        return time.perf_counter() - start

    return min(step() for _ in range(4)) / 2


def show_plan(names: list[str], scale: Scale, args: Namespace) -> None:
    """Prints the runs that these tables and figures need, what each costs, and what is there."""
    dataset, device = data.load(args.data or scale.data), options.pick_device(args.device)
    planned, costs, total = {}, {}, 0.0
    for job in (job for name in names for job in jobs(name, scale, args)):
        for run, (method, _) in compare.share(job, dataset.name).items():
            planned[run] = job, method
    for run, (job, method) in planned.items():
        depth = int(re.search(r"-depth(\d+)-", run)[1])
        stages = compare.units_of_a_batch(method, job.n, 10, eps=job.eps[0]).values()
        units = sum(stages) / len(stages) * job.epochs * max(1, len(dataset.x_train) // 128)
        kept = Path(job.results) / f"{run}.json"
        if kept.exists() or f"{kept.parent.name}/{kept.name}" in args.stored:
            print(f"{'there':>8}  {run}")
            continue
        if depth not in costs:
            costs[depth] = seconds_of_a_unit(depth, dataset, device)
        total += units * costs[depth]
        print(f"{duration(units * costs[depth]):>8}  {run}: {units:,.0f} units")
    print(f"{duration(total):>8}  in all, on {options.device_name(device)}; attacking comes on top")


# ---------------------------------------------------------------------------------------- the runs


def on_transferred(job: Namespace, transfer: Path, results: Path, stored: Container[str]) -> None:
    """Tries images made against other networks, made first where they are not there, on the runs of
    a job at one eps that have no result yet."""
    dataset = data.load(job.data)
    for run in compare.share(job, dataset.name):
        eps, kept = re.search(r"-eps([\d.e-]+)-", run)[1], results / f"{run}.json"
        if kept.exists() or f"transfer/{kept.name}" in stored:
            continue
        if not (Path(job.out) / run / "metrics.json").exists():
            continue
        images = transfer / f"{dataset.name}-eps{eps}.npz"
        common = ["--data", job.data, "--eps", eps]
        common += ["--images", str(min(job.images, len(dataset.x_test)))]
        common += ["--device", job.device] if job.device else []
        if not images.exists():
            surrogates = ["--surrogates", str(transfer / f"{dataset.name}-surrogates")]
            transfer_set.main([*common, *surrogates, "--out", str(images)])
        attack = ["--attack", *claims.TRANSFER, "--transfer", str(images), "--out", str(kept)]
        with open(Path(job.out) / f"{run}.log", "a") as log, contextlib.redirect_stdout(log):
            evaluate.main([str(Path(job.out) / run), *common, *attack])
        print(f"{run}: attacked by {images}")


def xor(path: Path) -> None:
    """Figure 1 from twenty random starts: {"vote", "joint", "trap": accuracies in percent}."""
    found = {"command": "python -m experiments.paper figure1", "versions": options.versions()}
    joint, trap = (
        [xor_demo.accuracies(s, loss) for s in range(20)]
        for loss in (xor_demo.collaboration_loss, xor_demo.trap_loss)
    )
    found |= {"vote": [vote for vote, *_ in joint], "joint": [of[1] for of in joint]}
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(found | {"trap": [of[1] for of in trap]}).encode())


def show(name: str, results: Path, recorded: bool) -> None:
    """Prints a table or figure, ours beside the paper's, and the verdicts on its claims."""
    kind, number = name[:-1].title(), name[-1]
    maker = {"figure3": "figures34", "figure4": "figures34", "table1": "steps"}.get(name, name)
    found = records.matching("*/*.json") if recorded else []
    found += [records.read(path) for path in sorted(results.glob("*/*.json"))]
    shown = records.matching("bench_step.json") if name == "table1" else found
    print(f"\n{kind} {number}\n")
    if maker in MAKERS and shown:
        print(MAKERS[maker](records.frame(shown)))
    print()
    for claim in claims.judged(records.frame(found)) if found else ():
        of = claim.place.partition(", ")[2]
        if of.startswith(kind) and number in of:
            print(f"- {claim.text} ({claim.place}): {claim.verdict}")
            for one in claim.evidence:
                print(f"    {one.where}: {one} {claim.says(one)}")


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.paper")
    add = parser.add_argument
    add(
        "name",
        metavar="NAME",
        choices=[*sorted(NAMES), "all"],
        help=", ".join(sorted(NAMES)) + ", all",
    )
    add("--scale", choices=SCALES, default="digits", help="how large the runs are")
    add("--data", help="the data set, where it is not the scale's own")
    add("--dry-run", action="store_true", help="say what would be run, and for how long")
    options.add_device(parser)
    add("--shard", type=options.part, default="1/1", metavar="I/K", help="do the I-th of K parts")
    add("--out", default="runs/paper", metavar="DIR", help="folder of all the runs")
    what = "folder of their JSON files (default: results in --out, beside the project's records)"
    add("--results", metavar="DIR", help=what)
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        args.stored = {} if args.results else records.stored()
        args.results = args.results or str(Path(args.out) / "results")
        failed = run(args)
    if failed:
        parser.exit(1, f"runs that failed, as said above: {failed}\n")


def run(args: Namespace) -> int:
    """What `main` does; returns how many runs failed. Raises ValueError, OSError, SystemExit."""
    scale, results, failed = SCALES[args.scale], Path(args.results), 0
    names = NAMES if args.name == "all" else [args.name]
    if args.dry_run:
        show_plan(names, scale, args)
        return 0
    for name in names:
        for job in jobs(name, scale, args):
            failed += compare.run(job, args.stored)[1]
            if name in ("figure2", "figure3", "figure4"):
                (results / "transfer").mkdir(parents=True, exist_ok=True)
                on_transferred(job, Path(args.out), results / "transfer", args.stored)
        drawn = results / "figure1" / "xor.json"
        if name == "figure1" and not args.stored and not drawn.exists():
            xor(drawn)
        show(name, results, bool(args.stored))
    return failed


if __name__ == "__main__":
    main()
