"""The full evaluation behind every table: a trained model under the attacks that decide.

    python -m experiments.evaluate RUN --eps 0.1
    python -m experiments.evaluate RUN --eps 0.1 --part vote    # or 1, 2 .. for one expert
    python -m experiments.evaluate RUN --eps 0.1 --attack square --queries 5000 --seeds 5
    python -m experiments.evaluate RUN --attack transfer3 transfer30 --transfer transfer.npz

The attacks are PGD (20 steps), AutoPGD (cross-entropy and 9 targets), Square, and the adaptive
attack, which misleads the router. `worst` counts an image as correct only under all of them. Below
the table stand how many images each attack took, and what a referee would doubt.

The tables, one for each eps, are printed and written, with every setting, to RUN/attacks.json
(attacks-2.json .. where that is taken). Several eps also make a picture of accuracy against eps.
"""

import json
import statistics
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import attacks
import data
import infer
from attacks import Attack, cross_entropy, in_batches, pgd, routes, worst_of
from baselines.models import SoftCollaboration
from experiments import figures, machine
from experiments.autopgd import adaptive_auto_pgd, auto_pgd
from experiments.intervals import images
from experiments.transfer_set import TRANSFER, load_transfer
from models import Collaboration, Ensemble, ask_experts
from support import checkpoints, files, options
from support.printing import percent, print_report

ATTACKS = (*(name for name in attacks.ATTACKS if name != "adaptive"), "apgd", "adaptive")
DECIDE = ("pgd", "apgd", "square", "adaptive")


def attacks_at(
    names: Sequence[str],
    model: nn.Module,
    eps: float,
    steps: int = 100,
    queries: int = 1000,
    rescale: bool = True,
    transfer: dict[str, Tensor] | None = None,
) -> dict[str, Attack]:
    """{name: fn(model, x, y) -> x_adv, each image's worst point} for these names of ATTACKS, and of
    `transfer`, {name: ready-made variants [V, N, C, H, W] of x}: the worst variant.

    `steps` are AutoPGD's, also inside `adaptive`; all other gradient attacks have 20. `queries` and
    `rescale` are Square's. `adaptive` is left out where no score counts: nobody can be misled.
    Raises KeyError for another name.
    """
    known = attacks.attacks_at(eps, queries=queries)
    known["square"] = partial(known["square"], rescale=rescale)
    known["apgd"] = in_batches(partial(auto_pgd, eps=eps, steps=steps))
    known["adaptive"] = in_batches(partial(adaptive_auto_pgd, eps=eps, steps=steps))
    known |= {name: partial(worst_of, candidates=z) for name, z in (transfer or {}).items()}
    return {name: known[name] for name in names if name != "adaptive" or routes(model)}


def bits(correct: Tensor) -> str:
    """Which images are correct, bool [N], as "0110.."."""
    return "".join(map(str, correct.int().tolist()))


def measure(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: dict[str, Attack],
    seeds: Sequence[int] = (0,),
) -> dict:
    """{"table": {row: {column: percent}}, "deviation": likewise, "specialisation": {column: ..},
    "correct": {column: "0110.."}, "clean": {row: "0110.."}, "doubts": what `doubts` returns}.

    Rows and columns are those of `infer.evaluate`. The attacks are repeated from each seed: the
    table holds means, `deviation` standard deviations where there are several seeds,
    `specialisation` the last seed's. An image counts as correct for `worst` in all columns from all
    seeds. `correct` says which images the model has correct from all seeds, and `clean` which ones
    each expert and the vote have, for paired comparisons.
    """
    runs, table, deviation, always = [], {}, {}, {}
    for seed in seeds:
        torch.manual_seed(seed)
        correct, division = infer.judge(model, x, y, attacks)
        runs.append(correct)
    for row, columns in runs[0].items():
        percents = {c: [percent(run[row][c]) for run in runs] for c in columns}
        table[row] = {c: statistics.mean(values) for c, values in percents.items()}
        if len(runs) > 1:
            deviation[row] = {c: statistics.stdev(values) for c, values in percents.items()}
        always[row] = {c: torch.stack([run[row][c] for run in runs]).all(0) for c in columns}
    mine = always[model.row]
    if attacks:
        mine["worst"] = torch.stack(list(mine.values())).all(0)
        table[model.row]["worst"] = percent(mine["worst"])
    mine.pop("own", None)  # a column of the table alone
    return {
        "table": table,
        "deviation": deviation,
        "specialisation": division,
        "correct": {column: bits(correct) for column, correct in mine.items()},
        "clean": {r: bits(always[r]["clean"]) for r in always if r not in (model.row, "any")},
        "doubts": doubts(model, x, y, table[model.row]),
    }


# ---------------------------------------------------------------------------------- the referee


def who_decided(correct: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """{attack: {"took": how many of the images that are correct clean it took, "alone": how many of
    them no other attack took}}; correct is {column: 0 or 1 for each image, [N]}."""
    names = [name for name in correct if name not in ("clean", "worst")]
    taken = {name: correct["clean"] > correct[name] for name in names}
    takers = sum(taken.values())  # how many attacks took each image, [N]
    return {
        name: {"took": int(images.sum()), "alone": int((images & (takers == 1)).sum())}
        for name, images in taken.items()
    }


def doubts(model: nn.Module, x: Tensor, y: Tensor, table: dict[str, float]) -> list[str]:
    """What a referee would doubt in a row of the table, {column: percent}: signs that gradients are
    masked, so that the attacks are too weak. x [N, C, H, W], y [N]."""
    signs = []
    if {"pgd", "apgd"} <= set(table) and table["apgd"] > table["pgd"]:
        signs.append("AutoPGD takes fewer images than PGD, with more steps")
    gradients = [table[name] for name in table if name in ("pgd", "cw", "apgd", "adaptive")]
    if gradients and table.get("square", 100) < min(gradients):
        signs.append("Square, without gradients, takes more images than any gradient attack")
    transfer = [table[name] for name in table if name.startswith("transfer")]
    if gradients and transfer and min(transfer) < min(gradients):
        signs.append("images made against other networks take more than any gradient attack")
    x, y = x[:250], y[:250]
    z = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(model(z), y).sum(), z)
    zero = percent((grad == 0).flatten(1).all(1))
    if zero > 1:
        signs.append(f"the gradient is exactly zero on {zero:.0f} % of the images")
    anywhere = pgd(model, x, y, eps=1, alpha=0.2, steps=20, random_start=True, keep_best=True)
    left = percent(model.combine(*ask_experts(model, anywhere)).argmax(1) == y)
    if left > 0:
        signs.append(f"PGD leaves {left:.1f} % correct at eps 1, where any image is allowed")
    return signs


def print_referee(result: dict) -> None:
    """Prints what `who_decided` and `doubts` return, and what ± means in the table."""
    if result["deviation"]:
        print("\n±: the standard deviation over the seeds of the attacks, of one trained model")
    taken = who_decided({column: images([of])[0] for column, of in result["correct"].items()})
    parts = [f"{name} {n['took']} ({n['alone']})" for name, n in taken.items()]
    print(f"\nImages taken (by this attack alone): {', '.join(parts)}")
    for doubt in result["doubts"]:
        print(f"Doubtful: {doubt}.")


# ----------------------------------------------------------------------------------- the command


def part_of(model: nn.Module, part: str | None, T: float | None = None) -> nn.Module:
    """The model, its experts' vote, one expert alone, or all experts weighted by their scores at
    temperature T. Raises ValueError for another part, or where there are no E heads."""
    if T is not None:
        if part or not isinstance(model, Collaboration):
            raise ValueError("--temperature is for a whole model with E heads")
        return SoftCollaboration(model.experts, model.confidence, T)
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
    add("--eps", type=options.radius, nargs="+", help="attack radii (default: the checkpoint's)")
    names = [*ATTACKS, *TRANSFER]
    choice = f"of {', '.join(names)} (default: {' '.join(DECIDE)})"
    add("--attack", nargs="+", choices=names, metavar="NAME", default=DECIDE, help=choice)
    add("--part", help="attack the vote, or one expert (1, 2 ..), not the whole model")
    mixture = "all answer, weighted by softmax(score / T) (default: the most confident one answers)"
    add("--temperature", metavar="T", type=options.positive, help=mixture)
    add("--images", type=count, help="at most so many test images, a fixed choice (default: 1000)")
    add("--steps", type=count, default=100, help="steps of AutoPGD, also in the adaptive attack")
    add("--queries", type=count, default=1000, help="queries of square")
    schedule = "square: shrink within --queries, not by the authors' schedule, made for 5,000"
    add("--rescale", action=BooleanOptionalAction, default=True, help=schedule)
    add("--seed", type=options.seed, help="of the attacks (default: the checkpoint's)")
    add("--seeds", type=count, default=1, help="how many seeds, from --seed on")
    add("--transfer", metavar="FILE", help="a file of transfer_set.py; all attacks use its images")
    add("--data", help="the data set, where its file has moved")
    add("--out", metavar="FILE", help="the .json file (default: attacks.json in the run's folder)")
    add("--csv", metavar="FILE", help="also write the tables' numbers (default: in JSON alone)")
    options.add_device(parser)
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        run(args)


def run(args: Namespace) -> None:
    """What `main` does, once the arguments are parsed. Raises ValueError or OSError."""
    device = options.pick_device(args.device)
    model = part_of(infer.load(args.checkpoint, device), args.part, args.temperature)
    settings = checkpoints.load(args.checkpoint)["settings"]
    if args.eps is None and settings["eps"] == 0:
        raise ValueError("the checkpoint was trained without attacks: give --eps")
    args.eps = args.eps or [settings["eps"]]
    args.seed = settings["seed"] if args.seed is None else args.seed
    dataset = data.load_as_trained(settings, args.data)
    if args.transfer:
        chosen, transfer = load_transfer(args.transfer, dataset, args.eps, args.images)
    else:
        chosen, transfer = dataset.choose_test_images(args.images or data.MAX_IMAGES), {}
    if missing := set(args.attack) & set(TRANSFER) - set(transfer):
        raise ValueError(f"{min(missing)} needs --transfer FILE, from experiments/transfer_set.py")
    transfer = {name: images.to(device) for name, images in transfer.items()}
    if set(args.attack) == {"adaptive"} and not routes(model):
        raise ValueError("adaptive misleads a router, but no score says who answers: take apgd")
    if args.out:
        path = Path(args.out)
        files.check_new(path, ".json", "--out")
        files.check_new(path.with_suffix(".png"), ".png", "--out")
    else:
        folder = checkpoints.in_folder(args.checkpoint).parent
        files.check_writable(folder)
        path = files.new(folder, "attacks", ".json", ".png")
    if args.csv:
        files.check_new(Path(args.csv), ".csv", "--csv")
    (x, y), results = dataset.test_images(device, chosen), {}
    for eps in args.eps:
        schedule = args.steps, args.queries, args.rescale
        columns = attacks_at(args.attack, model, eps, *schedule, transfer)
        result = measure(model, x, y, columns, range(args.seed, args.seed + args.seeds))
        print_report(result, model.row, len(x), eps, dataset.class_names)
        print_referee(result)
        results[eps] = result
    content = {"command": vars(args), "row": model.row, "model": settings, **machine(device)}
    new = {}
    if len(args.eps) > 1:
        lines = {eps: result["table"][model.row] for eps, result in results.items()}
        new[path.with_suffix(".png")] = figures.accuracy_by_eps(lines, model.row)
    if args.csv:
        tables = {eps: pd.DataFrame(result["table"]).T for eps, result in results.items()}
        new[Path(args.csv)] = pd.concat(tables, names=["eps", "row"]).to_csv().encode()
    # last, as a sign that all is there
    new[path] = json.dumps(content | {"eps": results}, indent=1).encode()
    print()
    for file, written in new.items():
        files.write(file, written)
        print(f"Wrote {file}")


if __name__ == "__main__":
    main()
