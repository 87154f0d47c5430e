"""The capstone: find a loss, or another way to combine the experts, that raises the worst case.

    python -m exercises.capstone mine.py            # trains, attacks, and ranks it
    python -m exercises.capstone mine.py --quick    # one fold, a tenth of the passes: does it run?

An entry is a file with

    COMBINE = "vote"                        # or "collaboration", "mixture", "soft" (T = 1)
    def loss(model, x, y, settings): ...    # as everywhere: x [B, C, H, W] in [0, 1], y [B]
    LEARNING_RATE = 0.1                     # if another is wanted

settings has n = 3, eps, alpha, steps, sigma, lambda_, and progress, from 0 to 1. All entries have
as many passes, forward with gradients, of one expert on one image; what is cheaper has more epochs.
The rate falls to 1/10 at a half and three quarters of them. The score is the share of the 1,797
digits that are correct under all attacks. Beside METHOD.py come METHOD.json, the result, and
METHOD.pt, its weights: in exercises/entries they are in the table, and attack the next. How it is
judged, and what signs of masked gradients are: README.md.
"""

import ast
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import data
from baselines.models import build
from exercises import HERE, ROOT, handout, sandbox
from exercises.answers import read_answers
from exercises.check import submitted
from exercises.entry import BATCH, EPS, settings_of
from experiments.evaluate import DECIDE, attacks_at, measure
from experiments.intervals import paired_difference
from support import checkpoints, files, options

FOLDS, SECONDS = 5, 900  # of a fold, at most
BUDGET = 36 * BATCH * 11 * 30  # that of an ensemble attacked as a whole, in 30 epochs


def declared(entry: Path) -> str:
    """The COMBINE of an entry, read without running it. Raises ValueError."""
    content = submitted(entry)
    if content is None:
        raise ValueError(f"no file {entry}")
    try:
        assigned = [node for node in ast.parse(content).body if isinstance(node, ast.Assign)]
        values = {ast.unparse(node.targets[0]): node.value for node in assigned}
        combine = ast.literal_eval(values.get("COMBINE", "None"))
    except Exception as error:  # whatever there is in a student's file
        raise ValueError(f"{entry}: {type(error).__name__}: {error}") from None
    settings_of(combine)
    return combine


def model_of(combine: str, state: dict[str, Tensor]) -> nn.Module:
    """A model of an entry, in eval mode, from its weights."""
    model = build(vars(settings_of(combine)))
    model.load_state_dict(state)
    return model.eval()


def trained(entry: Path, tree: Path, x: Tensor, y: Tensor, budget: int, seed: int, graded: bool):
    """An entry's model, trained on x uint8 [N, C, H, W], y [N] in another process. Raises
    ValueError where that fails."""
    with sandbox.folder() as folder:
        method, images = folder / "method.py", folder / "train.npz"
        method.write_bytes(submitted(entry) or b"")
        np.savez(images, x=x.numpy(), y=y.numpy())
        words = ["exercises.entry", method, images, budget, seed]
        raw, ended = sandbox.run(words, tree, SECONDS, graded)
    answers, _ = read_answers(raw)
    if "error" in answers:
        raise ValueError(f"{entry}: {answers['error']}")
    try:
        state = {name: torch.from_numpy(parts[""]).float() for name, parts in answers.items()}
        model = model_of(declared(entry), state)
    except Exception:  # whatever a student's process has written
        raise ValueError(f"{entry} left no weights of our networks: it {ended}") from None
    if not all(value.isfinite().all() for value in state.values()):
        raise ValueError(f"{entry} left weights that are NaN or infinite")
    return model


def other_entries(entry: Path) -> dict[str, list[nn.Module]]:
    """The models of the entries of other names whose weights are there, one a fold."""
    others = {}
    for path in sorted((HERE / "entries").glob("*.pt")):
        if path.stem != entry.stem:
            result = json.loads(path.with_suffix(".json").read_text())
            states = torch.load(path, weights_only=True)
            others[path.stem] = [model_of(result["combine"], state) for state in states]
    return others


def attacked(model: nn.Module, others: list[nn.Module], x: Tensor, y: Tensor) -> dict:
    """`evaluate.measure` of an entry's model on test images, also on those that PGD makes against
    the others' models: x [N, C, H, W], y [N]."""
    transfer = {}
    if others:
        images = [attacks_at(["pgd"], other, EPS)["pgd"](other, x, y) for other in others]
        transfer["transfer"] = torch.stack(images)
    attacks = attacks_at([*DECIDE, *transfer], model, EPS, 20, 1000, transfer=transfer)
    return measure(model, x, y, attacks)


def judge(entry: Path, folds: int, budget: int, graded: bool) -> tuple[dict, list[dict]]:
    """An entry's result, that is what it has correct, "0110..", of all digits of these folds, by
    column; and its weights, a fold each."""
    digits = data.load("digits")
    x = torch.cat([digits.x_train, digits.x_test])
    y = torch.cat([digits.y_train, digits.y_test])
    part = torch.from_numpy(np.random.default_rng(0).permutation(len(x)) % FOLDS)
    combine = declared(entry)
    correct, signs, weights, others = {}, [], [], other_entries(entry)
    with sandbox.folder() as folder:
        tree = handout.for_child(folder / "tree", None)
        for k in range(folds):
            test = part == k
            model = trained(entry, tree, x[~test], y[~test], budget, k, graded)
            weights.append(model.state_dict())
            images = x[test].float() / 255
            measured = attacked(model, [of[k] for of in others.values()], images, y[test])
            for column, bits in measured["correct"].items():
                correct[column] = correct.get(column, "") + bits
            signs += [f"fold {k + 1}: {sign}" for sign in measured["doubts"]]
            worst = measured["table"][model.row]["worst"]
            print(f"fold {k + 1} of {folds}: {worst:.1f} % under the worst attack", flush=True)
    told = {"entry": entry.stem, "combine": combine, "folds": folds, "budget": budget}
    told |= {"others": list(others), "versions": options.versions()}
    return told | {"correct": correct, "doubts": signs}, weights


def table(entries: list[dict]) -> str:
    """The entries, the best first, those with signs of masked gradients last; which of them the
    first is level with."""
    entries = sorted(entries, key=lambda e: (bool(e["doubts"]), -e["correct"]["worst"].count("1")))
    columns = ["clean", *DECIDE, "transfer", "worst"]
    lines = [f"{'':22}" + "".join(f"{c:>10}" for c in columns) + "   less the first's"]
    for e in entries:
        shares = [e["correct"].get(c) for c in columns]
        shown = [f"{100 * s.count('1') / len(s):.1f}" if s else "-" for s in shares]
        pair = [e["correct"]["worst"]], [entries[0]["correct"]["worst"]]
        difference, half = paired_difference(*pair)
        beside = "" if e is entries[0] else f"   {difference:+.1f} ± {half:.1f}"
        beside += ", level" if beside and abs(difference) <= half else ""
        flag = "  not ranked: look at its signs" if e["doubts"] else ""
        lines.append(f"{e['entry'][:21]:22}" + "".join(f"{s:>10}" for s in shown) + beside + flag)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m exercises.capstone")
    add = parser.add_argument
    add("entry", metavar="METHOD.py", help="the file that is handed in")
    add("--quick", action="store_true", help="one fold and a tenth of the budget")
    add("--graded", action="store_true", help="as root: students' code gets a user of its own")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        entry = Path(args.entry)
        declared(entry)
        out, weights_out = entry.with_suffix(".json"), entry.with_suffix(".pt")
        if not args.quick:
            files.check_new(out, ".json", "the result")
            files.check_new(weights_out, ".pt", "the weights")
        if args.graded:
            sandbox.check_graded([ROOT], [out.absolute().parent])
        folds, budget = (1, BUDGET // 10) if args.quick else (FOLDS, BUDGET)
        result, weights = judge(entry, folds, budget, args.graded)
        for sign in result["doubts"]:
            print(f"Doubtful, {sign}.")
        if args.quick:
            print("a tenth of the budget: nothing is written")
            return
        files.write(out, json.dumps(result).encode())
        checkpoints.save(weights_out, weights)
        entries = (HERE / "entries").glob("*.json")
        others = [path for path in entries if path != out.resolve()]
        print(table([result, *(json.loads(path.read_text()) for path in sorted(others))]))
        print(f"wrote {out} and {weights_out.name}")


if __name__ == "__main__":
    main()
