"""The README's table of attacks: a collaboration, its vote and an expert, each attacked itself.

    python -m experiments.attack_table CHECKPOINT --eps 0.03 0.1

PGD is run once more with M + 4 restarts, the number of attacks that `adaptive` is made of, so that
both cost the same number of gradient passes.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch

import infer
from attacks import adaptive, auto_pgd, pgd, square
from support import files, options


def attacks_at(eps: float, queries: int, M: int) -> dict[str, infer.Attack]:
    """{column: fn(model, x, y) -> x_adv}"""
    pgd20 = partial(pgd, eps=eps, alpha=eps / 5, steps=20, random_start=True, keep_best=True)
    attacks = {
        "FGSM": partial(pgd, eps=eps, alpha=eps, steps=1, keep_best=True),
        "PGD-20": pgd20,
        f"PGD-20 x {M + 4}": partial(pgd20, restarts=M + 4),
        "AutoPGD-20": partial(auto_pgd, eps=eps, steps=20),
        f"Square-{queries}": partial(square, eps=eps, n_queries=queries, rescale=True),
        "adaptive": partial(adaptive, eps=eps, alpha=eps / 5, steps=20),
    }
    attacks[f"Square-{queries}"].takes_all_images = True
    return attacks


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(__doc__, prog="-m experiments.attack_table")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--eps", type=float, nargs="+", help="default: the checkpoint's")
    parser.add_argument("--queries", type=int, default=1000, help="of Square (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--out", required=True, metavar="FILE", help="the .json file to write")
    args = parser.parse_args(argv)
    out = Path(args.out)
    try:
        options.check_seed(args.seed)
        settings = files.load_checkpoint(args.checkpoint)["settings"]
        model = infer.load(args.checkpoint)
        for eps in args.eps or [settings["eps"]]:
            options.check_eps(eps)
        if args.queries < 1:
            raise ValueError(f"--queries is {args.queries}: it must be at least 1")
        if out.exists() or out.suffix != ".json" or not out.parent.is_dir():
            raise ValueError(f"--out {out}: give a new .json file in an existing folder")
        x, y = infer.test_images(infer.load_data_of(settings, None), "cpu")
        results = {}
        for eps in args.eps or [settings["eps"]]:
            for part in (None, "vote", "1"):
                torch.manual_seed(args.seed)
                target = infer.part_of(model, part)
                attacks = attacks_at(eps, args.queries, len(model.experts))
                table = infer.report(target, x, y, attacks)["table"]
                name = {None: "collaboration", "vote": "vote", "1": "expert 1"}[part]
                cells = table[infer.row_of(target)]
                cells.pop("own")
                if not results:
                    print("| eps | | " + " | ".join(cells) + " |\n|" + "---|" * (len(cells) + 2))
                row = " | ".join(f"{value:.1f}" for value in cells.values())
                print(f"| {eps:g} | {name} | {row} |", flush=True)
                results[f"{name}, eps {eps:g}"] = cells
        content = {"command": vars(args), "model": settings, "versions": options.versions()}
        files.write(out, json.dumps(content | {"table": results}, indent=1).encode())
    except (ValueError, OSError) as error:
        parser.error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
