"""The full evaluation of a trained model: all attacks, several eps and seeds, or one part of it.

    python -m experiments.evaluate RUN --eps 0.02 0.05 0.1 --attack all --seeds 5
    python -m experiments.evaluate RUN --eps 0.1 --attack pgd adaptive --part vote    # or 1, 2 ..
    python -m experiments.evaluate RUN --attack transfer3 transfer30 --transfer transfer.npz

It prints a table for each eps and writes them, with every setting, to RUN/attacks.json
(attacks-2.json .. where that is taken); with several eps also a picture of accuracy against eps.
`--attack pgd --restarts 7` has as many gradient passes as `adaptive` on three experts.
"""

import json
import os
import statistics
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import attacks
import data
import infer
from attacks import Attack, in_batches, worst_of
from experiments.autopgd import auto_pgd
from experiments.transfer_set import load_transfer
from models import Collaboration, Ensemble, ask_experts
from support import files, options, pictures, speed
from support.tables import percent, print_report

# All attacks draw from one sequence of random numbers: a change of order changes the last digits.
ATTACKS = (*(name for name in attacks.ATTACKS if name != "adaptive"), "apgd", "adaptive")
TRANSFER = ("transfer3", "transfer30")  # ready-made images, see transfer_set.py


def attacks_at(
    names: Sequence[str],
    eps: float,
    steps: int = 20,
    restarts: int = 1,
    queries: int = 1000,
    rescale: bool = False,
) -> dict[str, Attack]:
    """{name: fn(model, x, y) -> x_adv, each image's worst point} for these names of ATTACKS.

    Of pgd and cw each image's worst of `restarts`; `rescale` is Square's. Raises KeyError for
    another name.
    """
    known = attacks.attacks_at(eps, steps, queries)
    known["square"] = partial(known["square"], rescale=rescale)
    known["apgd"] = in_batches(partial(auto_pgd, eps=eps, steps=steps))
    if restarts > 1:
        for name in ("pgd", "cw"):
            known[name] = in_batches(partial(restarted, attack=known[name], restarts=restarts))
    return {name: known[name] for name in names}


def restarted(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, restarts: int) -> Tensor:
    """Each image's worst point of several runs of an attack: x [B, C, H, W], y [B] -> x_adv."""
    return worst_of(model, x, y, (attack(model, x, y) for _ in range(restarts)))


def correct_on_transferred(
    model: nn.Module, y: Tensor, transfer: dict[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """{row: {column: which images are correct in every variant, bool [N]}}; transfer is {column:
    variants [V, N, C, H, W]}."""
    correct = {}
    for column, variants in transfer.items():
        for images in variants:
            for row, of_row in infer.correct_by_row(model, *ask_experts(model, images), y).items():
                cells = correct.setdefault(row, {})
                cells[column] = of_row & cells.get(column, True)
    return correct


def report(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: dict[str, Attack],
    transfer: dict[str, Tensor] | None = None,
    seeds: Sequence[int] = (0,),
) -> dict:
    """{"table": {row: {column: percent}}, "deviation": likewise, "specialisation": {column: ..}}.

    Rows and columns are those of `infer.evaluate`, the attacks being repeated from each seed: the
    table holds the means and `deviation`, with several seeds, the standard deviations; `worst`
    counts the images that are correct in all columns from all seeds; `specialisation` is the last
    seed's. `transfer` adds columns of ready-made images [V, N, C, H, W]; an image is correct where
    all its variants are.
    """
    transfer, runs = transfer or {}, []
    transferred = correct_on_transferred(model.eval(), y, transfer)
    for seed in seeds:
        torch.manual_seed(seed)
        correct, division = infer.judge(model, x, y, attacks)
        runs.append({row: cells | transferred.get(row, {}) for row, cells in correct.items()})
    table, deviation = {}, {}
    for row in runs[0]:
        columns = [c for c in ("clean", *attacks, *transfer, "own") if c in runs[0][row]]
        cells = {column: [run[row][column] for run in runs] for column in columns}
        percents = {column: list(map(percent, found)) for column, found in cells.items()}
        table[row] = {column: statistics.mean(values) for column, values in percents.items()}
        if len(runs) > 1:
            deviation[row] = {c: statistics.stdev(values) for c, values in percents.items()}
        if len(attacks) + len(transfer) > 1 or len(runs) > 1:
            every = [of_run for found in cells.values() for of_run in found]
            table[row]["worst"] = percent(torch.stack(every).all(0))
    return {"table": table, "deviation": deviation, "specialisation": division}


def part_of(model: nn.Module, part: str | None) -> nn.Module:
    """The model, its experts' vote, or one expert alone. Raises ValueError for another part."""
    if part is None:
        return model
    if part == "vote":
        return Ensemble(model.experts)
    if part.isdecimal() and 1 <= int(part) <= len(model.experts):
        return Collaboration([model.experts[int(part) - 1]])
    raise ValueError(f"--part is {part}: it must be vote, or an expert, 1 to {len(model.experts)}")


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.evaluate")
    add, count = parser.add_argument, options.count
    add("checkpoint", metavar="RUN", help="a run's folder, or its model.pt")
    what = "attack radius, or several (default: the checkpoint's)"
    add("--eps", type=options.radius, nargs="+", help=what)
    known = [*ATTACKS, *TRANSFER, "all"]
    what = f"of {', '.join(known)} (default: pgd)"
    add("--attack", nargs="+", choices=known, metavar="NAME", default=["pgd"], help=what)
    add("--part", help="attack the vote, or one expert (1, 2 ..), not the whole model")
    add("--images", type=count, help="at most so many test images, a fixed choice (default: 1000)")
    add("--steps", type=count, default=20, help="steps of the gradient attacks")
    add("--restarts", type=count, default=1, help="restarts of pgd and cw")
    add("--queries", type=count, default=1000, help="queries of square")
    what = "square: its sizes shrink faster; see attacks.py"
    add("--rescale", action="store_true", help=what)
    add("--seed", type=options.seed, help="of the attacks (default: the checkpoint's)")
    add("--seeds", type=count, default=1, help="how many seeds, from --seed on")
    add("--transfer", metavar="FILE", help="a file of transfer_set.py; all attacks use its images")
    add("--data", help="the data set, where its file has moved")
    options.add_device(parser)
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        run(args)


def run(args: Namespace) -> None:
    """What `main` does, once the arguments are parsed. Raises ValueError or OSError."""
    if "WORLD_SIZE" in os.environ:
        raise ValueError("not under torchrun: evaluation runs in one process")
    device = options.pick_device(args.device)
    model = part_of(infer.load(args.checkpoint, device), args.part)
    speed.gather(model)
    settings = files.load_checkpoint(args.checkpoint)["settings"]
    if args.eps is None and settings["eps"] == 0:
        raise ValueError("the checkpoint was trained without attacks: give --eps")
    args.eps = args.eps or [settings["eps"]]
    args.seed = settings["seed"] if args.seed is None else args.seed
    names = args.attack
    if "all" in names:
        names = [*ATTACKS, *(TRANSFER if args.transfer else ())]
    dataset = data.load_as_trained(settings, args.data)
    if args.transfer:
        chosen, transfer = load_transfer(args.transfer, dataset, args.eps, args.images)
    else:
        chosen, transfer = dataset.choose_test_images(args.images or data.MAX_IMAGES), {}
    if missing := [name for name in names if name in TRANSFER and name not in transfer]:
        raise ValueError(f"{missing[0]} needs --transfer FILE, from experiments/transfer_set.py")
    transfer = {name: images.to(device) for name, images in transfer.items() if name in names}
    made_here = [name for name in names if name not in TRANSFER]
    folder = Path(args.checkpoint)
    folder = folder if folder.is_dir() else folder.parent
    files.check_writable(folder)
    x, y = dataset.test_images(device, chosen)
    results = {}
    for eps in args.eps:
        how = (args.steps, args.restarts, args.queries, args.rescale)
        seeds = range(args.seed, args.seed + args.seeds)
        results[eps] = report(model, x, y, attacks_at(made_here, eps, *how), transfer, seeds)
        print_report(results[eps], model.row, len(x), eps)
    path = files.first_free(folder, "attacks", ".json", ".png")
    content = {
        "command": vars(args),
        "model": settings,
        "versions": options.versions(),
        "device": options.device_name(device),
        "images": chosen.tolist(),
        "eps": results,
    }
    files.write(path, json.dumps(content, indent=1).encode())
    written = path.name
    if len(args.eps) > 1:
        tables = {eps: result["table"][model.row] for eps, result in results.items()}
        picture = path.with_suffix(".png")
        files.write(picture, pictures.accuracy_by_eps(tables, model.row))
        written += f", {picture.name}"
    print(f"\nWrote {folder}: {written}")


if __name__ == "__main__":
    main()
