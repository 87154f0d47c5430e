"""The appendix's Algorithm 1 on images, and a trained model's accuracy, clean and under attack.

    python infer.py RUN 17 zero.png                       # what each expert says
    python infer.py RUN 17 zero.png --save answers.png    # also after an attack, and a picture
    python infer.py RUN --eps 0.05 --attack pgd square    # the table of accuracies

Every expert gives a label and a confidence; the most confident expert answers. For the table every
attack is made on the model, the first also on each expert and the vote: an image made against
one model is only a transferred image for another. experiments/evaluate.py is the full evaluation.
"""

import warnings
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import torch
from torch import Tensor, nn

import data
from attacks import ATTACKS, Attack, attacks_at, expert_losses, routes
from baselines.models import build
from data.images import read_images
from models import Collaboration, Ensemble, ask_experts, vote
from support import checkpoints, files, options, pictures, speed
from support.printing import percent, print_answers, print_report, specialisation

BATCH_SIZE = 250


def load(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The trained model in a checkpoint file, or in a run's folder, in eval mode.

    Runs no code from it. Raises FileNotFoundError; ValueError where it does not fit models.py.
    """
    checkpoint = checkpoints.load(path)
    with files.reading(checkpoints.in_folder(path), "checkpoint of this version"):
        model = build(checkpoint["settings"])
        checkpoints.load_weights(model, checkpoint)
    return model.to(device).eval()


# ------------------------------------------------------------------------------------- the table


def correct_by_row(model: nn.Module, logits: Tensor, score: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Which images each row of the table has correct, {row: bool [N]}, from what the experts say:
    logits [M, N, K], score [M, N]."""
    correct = logits.argmax(-1) == y  # [M, N]
    rows = {f"expert {j + 1}": correct[j] for j in range(len(correct))}
    rows["vote"] = vote(logits).argmax(-1) == y
    rows[model.row] = model.combine(logits, score).argmax(-1) == y
    best = expert_losses(logits, y).argmin(0, keepdim=True)  # [1, N]
    rows["oracle"] = correct.gather(0, best).squeeze(0)
    rows["any"] = correct.any(0)
    return rows


def judge(
    model: nn.Module, x: Tensor, y: Tensor, attacks: dict[str, Attack], batch_size: int = BATCH_SIZE
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict]]:
    """{row: {column: which images are correct, bool [N]}}, and {column: `specialisation`}."""
    model.eval()
    fast = speed.for_attack(model)
    columns = {"clean": x} | {name: attack(fast, x, y) for name, attack in attacks.items()}
    for name, x_adv in columns.items():
        if x_adv.min() < 0 or x_adv.max() > 1:
            most = (x_adv - x).abs().max()
            warnings.warn(f"{name} leaves [0, 1]: it changed a pixel by {most:.3g}", stacklevel=3)
    correct, division = {}, {}
    for column, images in columns.items():
        logits, score = ask_experts(model, images, batch_size)
        for row, of_row in correct_by_row(model, logits, score, y).items():
            correct.setdefault(row, {})[column] = of_row
        if model.row != "vote":  # which prefers no expert
            division[column] = specialisation(logits, score, y)
    if attacks:
        name, attack = next(iter(attacks.items()))
        parts = {f"expert {j + 1}": Collaboration([e]) for j, e in enumerate(model.experts)}
        parts["vote"] = Ensemble(model.experts)
        for row, part in parts.items():
            if row != model.row:
                x_adv = attack(speed.for_attack(part.eval()), x, y)
                logits = part.combine(*ask_experts(part, x_adv, batch_size))
                correct[row]["own"] = logits.argmax(1) == y
        correct[model.row]["own"] = correct[model.row][name]
    return correct, division


def report(
    model: nn.Module, x: Tensor, y: Tensor, attacks: dict[str, Attack], batch_size: int = BATCH_SIZE
) -> dict:
    """{"table": what `evaluate` returns, "specialisation": {column: ..}}."""
    correct, division = judge(model, x, y, attacks, batch_size)
    table = {}
    for row, cells in correct.items():
        table[row] = {column: percent(of_row) for column, of_row in cells.items()}
    if len(attacks) > 1:  # in the other rows images were made against another model
        worst = torch.stack(list(correct[model.row].values())).all(0)
        table[model.row]["worst"] = percent(worst)
    return {"table": table, "specialisation": division}


def evaluate(
    model: nn.Module, x: Tensor, y: Tensor, attacks: dict[str, Attack], batch_size: int = BATCH_SIZE
) -> dict[str, dict[str, float]]:
    """Accuracy in percent, {row: {column: percent}}; the model is left in eval mode.

    x [N, C, H, W] in [0, 1], y [N], attacks {name: fn(model, x, y) -> x_adv}, as attacks_at makes
    them. Rows: each expert, the vote, the model, `oracle` (the expert with the lowest loss answers)
    and `any` (at least one expert is correct); oracle and any know the label, which no classifier
    does. Columns: `clean`; each attack, made against `model`, the same images in every row; `own`:
    each row attacked itself by the first attack; with several attacks, in the model's row, `worst`:
    correct in all of these columns.
    """
    return report(model, x, y, attacks, batch_size)["table"]


def pgd_report(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> dict:
    """The report of every run: clean, and PGD-20 where eps > 0."""
    return report(model, x, y, {"pgd-20": attacks_at(eps)["pgd"]} if eps else {})


# ----------------------------------------------------------------------------------- the command


def attack_name(text: str) -> str:
    if text not in ATTACKS:
        raise ArgumentTypeError(
            f"{text!r} is none of {', '.join(ATTACKS)}; experiments.evaluate has apgd, too"
        )
    return text


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="infer.py")
    add = parser.add_argument
    add("checkpoint", metavar="RUN", help="a run's folder, or its model.pt")
    images = "an image file, or the number of a test image; none: the table"
    add("images", nargs="*", default=[], metavar="IMAGE", help=images)
    add("--save", metavar="PNG", help="draw those images, clean and attacked")
    add("--eps", type=options.radius, help="attack radius (default: the checkpoint's)")
    names = f"of {', '.join(ATTACKS)} (default: pgd)"
    add("--attack", nargs="+", type=attack_name, metavar="NAME", help=names)
    add("--data", help="the data set, where its file has moved")
    options.add_device(parser)
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        run(args)


def run(args: Namespace) -> None:
    """What `main` does, once the arguments are parsed. Raises ValueError or OSError."""
    device = options.pick_device(args.device)
    model = load(args.checkpoint, device)
    settings = checkpoints.load(args.checkpoint)["settings"]
    eps = settings["eps"] if args.eps is None else args.eps
    attacks = {name: attacks_at(eps)[name] for name in args.attack or ["pgd"]}
    if "adaptive" in attacks and not routes(model):
        raise ValueError("adaptive misleads a router, but no score says who answers: take pgd")
    attacked = args.save or args.attack or args.eps or not args.images
    if eps == 0 and attacked:
        raise ValueError("the checkpoint was trained without attacks: give --eps")
    classes = settings.get("class_names") or [*map(str, range(settings["num_classes"]))]
    torch.manual_seed(settings["seed"])
    if not args.images:
        if args.save:
            raise ValueError("--save draws images: name some, such as 0 1 2")
        x, y = data.load_as_trained(settings, args.data).test_images(device)
        print_report(report(model, x, y, attacks), model.row, len(x), eps, classes)
        return
    if args.save:
        files.check_new(Path(args.save), ".png", "--save")
    names, x, labels = read_images(args.images, settings, args.data)
    answers, titles = print_answers(model, x.to(device), names, classes)
    if not attacked:
        return
    # A file has no label: the attack then leads away from the clean answer.
    y = [answer if label is None else label for answer, label in zip(answers.tolist(), labels)]
    rows, correct = {"clean": (x, titles)}, [a == b for a, b in zip(answers, y)]
    for name, attack in attacks.items():
        x_adv = attack(model, x.to(device), torch.tensor(y, device=device))
        print(f"\nafter {name} on the {model.row}, eps {eps:g}:")
        note = "already wrong, not attacked"
        told = [name if ok else f"{name}, {note}" for name, ok in zip(names, correct)]
        _, titles = print_answers(model, x_adv, told, classes)
        titles = [title if ok else note for title, ok in zip(titles, correct)]
        scale, changed = pictures.change(x, x_adv.cpu(), eps)
        rows[f"{name}: {scale}"] = (changed, [""] * len(x))
        rows[f"{name}, eps {eps:g}"] = (x_adv, titles)
    if args.save:
        files.write(Path(args.save), pictures.strip(names, rows))
        print(f"\nwrote {args.save}")


if __name__ == "__main__":
    main()
