"""Algorithm 1 on images, and a checkpoint's accuracy under attack.

    python infer.py CHECKPOINT image.png 17 --save answers.png   # what each expert says
    python infer.py CHECKPOINT --eps 0.05                         # the table of accuracies
    python infer.py CHECKPOINT --eps 0.02 0.05 --attack all       # .. under every attack

Every expert gives a label and a confidence; the most confident expert answers. The table attacks
the collaboration, and each expert and the vote as well, because an image made against one model is
only a transferred image for another.
"""

import json
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import data
from attacks import adaptive, auto_pgd, expert_losses, pgd, square
from models import Collaboration, Ensemble, Mixture, ResNet, vote
from support import files, options, pictures, ranks

MAX_IMAGES = 1000  # of the test set, in a table
BATCH_SIZE = 250

ATTACKS = ("pgd", "fgsm", "bim", "mim", "cw", "square", "apgd", "adaptive")
TRANSFER = ("transfer3", "transfer30")  # images from experiments/transfer_set.py

Classifier = Callable[[Tensor], Tensor]  # images [B, C, H, W] -> logits [B, K]
Attack = Callable[[Classifier, Tensor, Tensor], Tensor]  # (model, x, y) -> x_adv


# ---------------------------------------------------------------------------------- checkpoints


def build(settings: dict) -> nn.Module:
    """An untrained model of settings' method, n, depth, image_shape, num_classes; SoE's confidence
    and GAL's slope. Raises ValueError for an unknown method."""
    channels, *height_width = settings["image_shape"]
    shape = (settings["depth"], channels, settings["num_classes"], tuple(height_width))
    slope = settings.get("slope", 0.0)
    experts = [ResNet(*shape, slope=slope) for _ in range(settings["n"])]
    match settings["method"]:
        case "soe" | "soe-stage1":
            return Collaboration(experts, settings["confidence"])
        case "plain" | "adp" | "gal" | "dverge":
            return Ensemble(experts)
        case "more":
            features = sum(expert.p_head.in_features for expert in experts)
            return Mixture(experts, nn.Linear(features, len(experts)))
    raise ValueError(f"unknown method {settings['method']!r}")


def load_weights(model: nn.Module, checkpoint: dict) -> None:
    """Raises ValueError where the weights do not fit."""
    try:
        model.load_state_dict(checkpoint["model"])
    except (TypeError, AttributeError, RuntimeError):
        raise ValueError("the checkpoint is damaged: its weights do not fit its settings") from None


def load(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The trained model in a checkpoint file, in eval mode; runs no code from the file.

    Raises FileNotFoundError where there is none, ValueError for a file that is no checkpoint.
    """
    return _load(path, torch.device(device))[0]


def _load(path: str | Path, device: torch.device) -> tuple[nn.Module, dict]:
    checkpoint = files.load_checkpoint(path)
    try:
        model = build(checkpoint["settings"])
    except (KeyError, TypeError, AttributeError, RuntimeError):
        raise ValueError(f"{path} is damaged: its settings describe no model") from None
    load_weights(model, checkpoint)
    return model.to(device).eval(), checkpoint["settings"]


def load_data_of(settings: dict, moved_to: str | None) -> data.Data:
    """The data set that a model was trained on. Raises ValueError where it is another."""
    found = data.load(moved_to or settings["data"])
    theirs = (settings["num_classes"], list(settings["image_shape"]))
    if (found.num_classes, list(found.image_shape)) != theirs:
        raise ValueError(
            f"{found.name} has {found.num_classes} classes of images {found.image_shape}; the "
            f"checkpoint was trained on {settings['data_name']}, with {theirs[0]} of {theirs[1]}"
        )
    return found


# ----------------------------------------------------------------------------------- the table


def standard_pgd(eps: float, steps: int = 20) -> dict[str, Attack]:
    """PGD as every table here has it: random start, steps of eps / 5, each image's worst point."""
    return {f"pgd-{steps}": make_attacks(["pgd"], eps, steps=steps)["pgd"]}


def make_attacks(
    names: list[str],
    eps: float,
    steps: int = 20,
    restarts: int = 1,
    queries: int = 1000,
    rescale: bool = False,
) -> dict[str, Attack]:
    """The attacks of these names, each fn(model, x, y) -> x_adv, each image's worst point.

    Steps are eps / 5 as in the authors' evaluation, and a tenth of eps in MIM. Raises ValueError
    for an unknown name.
    """
    if unknown := [name for name in names if name not in ATTACKS]:
        known = ", ".join([*ATTACKS, *TRANSFER, "all"])
        raise ValueError(f"unknown attack {', '.join(unknown)}: known are {known}")
    pgd_, alpha = partial(pgd, eps=eps, keep_best=True), eps / 5
    free = {"alpha": alpha, "steps": steps, "random_start": True, "restarts": restarts}
    attacks = {
        "fgsm": partial(pgd_, alpha=eps, steps=1),
        "bim": partial(pgd_, alpha=alpha, steps=steps),
        "pgd": partial(pgd_, **free),
        "mim": partial(pgd_, alpha=eps / 10, steps=steps, momentum=0.9),
        "cw": partial(pgd_, loss="cw", **free),
        "square": partial(square, eps=eps, n_queries=queries, rescale=rescale),
        "apgd": partial(auto_pgd, eps=eps, steps=steps),
        "adaptive": partial(adaptive, eps=eps, alpha=alpha, steps=steps),
    }
    attacks["square"].takes_all_images = True  # it fills its batches itself
    return {name: attacks[name] for name in names}


def in_batches(
    attack: Attack, model: Classifier, x: Tensor, y: Tensor, batch_size: int, name: str
) -> Tensor:
    """attack(model, x, y) for x [N, C, H, W]; on a terminal a bar says how far it is."""

    def all_of(x: Tensor, y: Tensor) -> Tensor:
        if getattr(attack, "takes_all_images", False):
            return attack(model, x, y)
        pairs = list(zip(x.split(batch_size), y.split(batch_size)))
        bar = tqdm(pairs, f"attack on {name}", leave=False, disable=True if ranks.rank() else None)
        return torch.cat([attack(model, *pair) for pair in bar])

    return ranks.split(all_of, x, y)


@torch.no_grad()
def ask_experts(model: nn.Module, x: Tensor, batch_size: int = BATCH_SIZE) -> tuple[Tensor, Tensor]:
    """What `model.all_experts` says of x [N, C, H, W]: logits [M, N, K], score [M, N]."""
    logits, score = zip(*map(model.all_experts, x.split(batch_size)))
    return torch.cat(logits, 1), torch.cat(score, 1)


def first_output(expert: nn.Module) -> Classifier:
    """The expert as a classifier: its logits without the confidence."""
    return lambda x: expert(x)[0]


def right_by_row(model: nn.Module, logits: Tensor, score: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Which images each row of the table has right, {row: bool [N]}."""
    right = logits.argmax(-1) == y  # [M, N]
    rows = {f"expert {j + 1}": right[j] for j in range(len(right))}
    rows["vote"] = vote(logits).argmax(-1) == y
    rows[row_of(model)] = model.combine(logits, score).argmax(-1) == y
    best = expert_losses(logits, y).argmin(0, keepdim=True)  # [1, N]
    rows["oracle"] = right.gather(0, best).squeeze(0)
    rows["any"] = right.any(0)
    return rows


def row_of(model: nn.Module) -> str:
    """The row of the table that is `model` itself."""
    return {Ensemble: "vote", Mixture: "mixture"}.get(type(model), "collaboration")


def specialisation(logits: Tensor, score: Tensor, y: Tensor) -> dict:
    """How the experts divide the work, on images whose logits [M, N, K] and score [M, N] are given.

    Where they disagree: the number of images, and in % of them how often the chosen expert, the
    expert that is best on just these images, and any expert is right. Then, expert x class: the
    percentage of each class that each expert answers, and that it would have right.
    """
    prediction, chosen = logits.argmax(-1), score.argmax(0)  # [M, N], [N]
    right = prediction == y
    disagree = (prediction != prediction[0]).any(0)
    answers = chosen == torch.arange(len(right), device=y.device)[:, None]  # [M, N]
    classes = F.one_hot(y, logits.shape[-1]).float()  # [N, K]
    per_class = classes.sum(0).clamp(min=1)
    return {
        "disagree": {
            "images": int(disagree.sum()),
            "chosen": percent(right.gather(0, chosen[None])[0, disagree]),
            "best fixed": percent(max(right[:, disagree], key=lambda row: row.sum())),
            "any": percent(right.any(0)[disagree]),
        },
        "answers": (100 * (answers.float() @ classes) / per_class).tolist(),
        "accuracy": (100 * (right.float() @ classes) / per_class).tolist(),
    }


def percent(right: Tensor) -> float | None:
    return 100 * int(right.sum()) / len(right) if len(right) else None


def judge(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: dict[str, Attack],
    batch_size: int,
    transfer: dict[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """{row: {column: which images are right, bool [N]}}, and {column: `specialisation`}."""
    me = row_of(model)
    columns = {"clean": x[None]}  # {column: variants [V, N, C, H, W], all to be classified right}
    for name, attack in attacks.items():
        columns[name] = in_batches(attack, model, x, y, batch_size, me)[None]
    rights, division = {}, {}
    for column, variants in (columns | transfer).items():
        for images in variants:
            logits, score = ask_experts(model, images, batch_size)
            for row, right in right_by_row(model, logits, score, y).items():
                cells = rights.setdefault(row, {})
                cells[column] = cells[column] & right if column in cells else right
        if not isinstance(model, Ensemble) and len(variants) == 1:  # in a vote nobody is chosen
            division[column] = specialisation(logits, score, y)
    for name, attack in list(attacks.items())[:1]:
        rivals = {f"expert {j + 1}": Collaboration([e]) for j, e in enumerate(model.experts)}
        rivals["vote"] = Ensemble(model.experts)
        rivals.pop(me, None)
        for row, rival in rivals.items():
            x_adv = in_batches(attack, rival.eval(), x, y, batch_size, row)
            with torch.no_grad():
                prediction = torch.cat([rival(part).argmax(1) for part in x_adv.split(batch_size)])
            rights[row]["own"] = prediction == y
        rights[me]["own"] = rights[me][name]
    return rights, division


def report(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: dict[str, Attack],
    batch_size: int = BATCH_SIZE,
    transfer: dict[str, Tensor] | None = None,
    seeds: tuple[int, ...] = (),
) -> dict:
    """{"table": what `evaluate` returns, "deviation": likewise, "specialisation": {column: ..}}.

    `transfer` adds columns of ready-made images [V, N, C, H, W], of which every variant must be
    right. With `seeds` the attacks are repeated from each of them: the table then has their mean,
    `deviation` their standard deviation, and `specialisation` is that of the last one.
    """
    model.eval()
    runs = []
    for seed in seeds or (None,):
        if seed is not None:
            torch.manual_seed(seed)
        rights, division = judge(model, x, y, attacks, batch_size, transfer or {})
        runs.append(rights)
    table, deviation = {}, {}
    for row in runs[0]:
        cells = {column: [run[row][column] for run in runs] for column in runs[0][row]}
        percents = {column: list(map(percent, rights)) for column, rights in cells.items()}
        table[row] = {column: statistics.mean(values) for column, values in percents.items()}
        if len(runs) > 1:
            deviation[row] = {c: statistics.stdev(values) for c, values in percents.items()}
        if len(attacks) + len(transfer or {}) > 1 or len(runs) > 1:
            table[row]["worst"] = percent(torch.stack(sum(cells.values(), [])).all(0))
    return {"table": table, "deviation": deviation, "specialisation": division}


def evaluate(
    model: nn.Module, x: Tensor, y: Tensor, attacks: dict[str, Attack], batch_size: int = BATCH_SIZE
) -> dict[str, dict[str, float]]:
    """Accuracy in percent, {row: {column: percent}}; the model is left in eval mode.

    x [N, C, H, W] in [0, 1], y [N], attacks {name: fn(model, x, y) -> x_adv}. Rows: each expert,
    the vote, the collaboration, `oracle` (the expert with the lowest loss answers) and `any` (at
    least one expert is right). Columns: `clean`; each attack, made against `model`, the same
    images in every row; `own`: each row attacked itself by the first attack; where there are
    several attacks, `worst`: right under every one of them. Oracle and any know the label, which no
    classifier does: they have no `own`.
    """
    return report(model, x, y, attacks, batch_size)["table"]


def choose_images(dataset: data.Data, count: int = MAX_IMAGES) -> Tensor:
    """Numbers of at most `count` test images, a fixed random choice: [N]."""
    order = torch.randperm(len(dataset.x_test), generator=torch.Generator().manual_seed(0))
    return order[:count]


def test_images(
    dataset: data.Data, device: torch.device | str, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] in [0, 1] and labels [N]: `chosen`, or at most 1,000 at random."""
    chosen = choose_images(dataset) if chosen is None else chosen
    return dataset.x_test[chosen].to(device).float() / 255, dataset.y_test[chosen].to(device)


def print_report(result: dict, me: str, count: int, eps: float) -> None:
    """`result` is what `report` returns, `me` the row of the model that was attacked."""

    def line(name: str, cells: list, width: int = 9) -> None:
        print(f"{name:14}" + "".join(f"{cell:>{width}}" for cell in cells))

    def number(value: float | None, deviation: float | None = None) -> str:
        text = "-" if value is None else f"{value:.1f}"
        return text if deviation is None else f"{text} ±{deviation:.1f}"

    table, deviation = result["table"], result["deviation"]
    columns = list(table["expert 1"])
    attacks = [column for column in columns if column not in ("clean", "own", "worst")]
    if attacks:
        print(f"\nAccuracy (%) on {count} test images, eps {eps:g}. ", end="")
        print(f"Attacks are made against the {me},\nthe same images in every row.", end="")
    else:
        print(f"\nAccuracy (%) on {count} test images, clean.", end="")
    if "own" in columns:
        print(f" own: each row attacked itself by {attacks[0]}.", end="")
    if "worst" in columns:
        print(" worst: right in all columns.", end="")
    print()
    width = max([9, *(len(column) + 2 for column in columns)]) + (3 if deviation else 0)
    line("", columns, width)
    for row, cells in table.items():
        spread = deviation.get(row, {})
        line(row, [number(cells.get(c), spread.get(c)) for c in columns], width)
    if not (division := result["specialisation"]):
        return
    print("\nWhere the experts disagree, how often (%) is right:")
    choice = "the heaviest expert" if me == "mixture" else "the chosen expert"
    line("", ["images", choice, "the best fixed one", "any expert"], 20)
    for column, parts in division.items():
        images, *shares = parts["disagree"].values()
        line(column, [images, *map(number, shares)], 20)
    answers, accuracy = division["clean"]["answers"], division["clean"]["accuracy"]
    if len(answers[0]) > 12:
        print(f"\nWhat each expert answers of each of the {len(answers[0])} classes: metrics.json")
        return
    does = "is the heaviest in" if me == "mixture" else "answers"
    print(f"\nShare (%) of each class, clean, that each expert {does} / would have right:")
    line("", list(range(len(answers[0]))), 8)
    for j, pairs in enumerate(map(zip, answers, accuracy)):
        line(f"expert {j + 1}", [f"{share:.0f}/{right:.0f}" for share, right in pairs], 8)


# ---------------------------------------------------------------------------------- the command


def read_images(
    wanted: list[str], settings: dict, data_path: str | None
) -> tuple[list[str], list[Tensor], list[int | None]]:
    """Names, images [C, H, W] in [0, 1] and labels of image files and numbers of test images."""
    dataset, names, images, labels = None, [], [], []
    for word in wanted:
        if Path(word).exists() or not word.isdecimal():
            names.append(word)
            images.append(read_file(word, settings["image_shape"]))
            labels.append(None)
            continue
        dataset = dataset or load_data_of(settings, data_path)
        if int(word) >= len(dataset.x_test):
            last = len(dataset.x_test) - 1
            raise ValueError(f"no test image {word}: {dataset.name} has 0 .. {last}")
        images.append(dataset.x_test[int(word)].float() / 255)
        labels.append(int(dataset.y_test[int(word)]))
        names.append(f"test image {word}, label {labels[-1]}")
    return names, images, labels


def read_file(path: str, image_shape: list[int]) -> Tensor:
    """An image file as [C, H, W] in [0, 1], made to fit; prints what had to be changed."""
    channels, height, width = image_shape
    try:
        with Image.open(path) as file:
            image = file.copy()
    except FileNotFoundError:
        raise FileNotFoundError(f"no image file {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ValueError(f"cannot read {path} as an image: give a PNG or JPEG file") from None
    if image.mode[0] in "IF":
        raise ValueError(f"{path} has more than 8 bits a channel: save it with 8")
    mode, changes = "L" if channels == 1 else "RGB", []
    if image.has_transparency_data:
        changes.append("put on white where transparent")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != mode:
        changes.append(f"converted from {image.mode} to {mode}")
        image = image.convert(mode)
    if image.size != (width, height):
        changes.append(f"resized from {image.width} x {image.height} to {width} x {height}")
        image = image.resize((width, height), Image.Resampling.BOX)
    if changes:
        print(f"{path}: {', '.join(changes)}")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, channels).permute(2, 0, 1).float() / 255


def describe(model: nn.Module, x: Tensor, names: list[str]) -> tuple[list[int], list[str]]:
    """Prints what every expert says of x [N, C, H, W]; returns the answers, and as titles."""
    logits, score = ask_experts(model, x)
    predictions, answers = logits.argmax(-1), model.combine(logits, score).argmax(-1).tolist()
    what = {"collaboration": "confidence", "mixture": "weight"}.get(row_of(model))
    share = torch.softmax(score, 0) if what == "weight" else score.sigmoid()  # [M, N]
    titles = []
    for i, name in enumerate(names):
        print(name)
        chosen = int(score[:, i].argmax())
        for j in range(len(logits)):
            says = f", {what} {share[j, i]:.3f}" if what else ""
            note = "  <- answers" if what == "confidence" and j == chosen else ""
            print(f"  expert {j + 1}: {predictions[j, i]}{says}{note}")
        if what == "confidence":
            by = f"expert {chosen + 1}, confidence {share[chosen, i]:.2f}"
        else:
            by = f"the {row_of(model)}"
            print(f"  {row_of(model)}: {answers[i]}")
        titles.append(f"{answers[i]} by {by}")
    return answers, titles


def run(args: Namespace) -> int:
    """What `main` does, once the arguments are parsed. Raises ValueError or OSError."""
    device = options.pick_device(args.device)
    model, settings = _load(args.checkpoint, device)
    args.seed = settings["seed"] if args.seed is None else args.seed
    options.check_seed(args.seed)
    for eps in args.eps or ():
        options.check_eps(eps)
    if args.eps is None and settings["eps"] == 0 and (args.save or not args.wanted):
        raise ValueError("the checkpoint was trained without attacks: give --eps")
    args.eps = args.eps or [settings["eps"]]
    for name in ("steps", "restarts", "queries", "seeds", "images"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}: it must be at least 1")
    if not args.wanted:
        return tabulate(args, model, settings, device)
    if ranks.rank():  # a few images are no work for many
        return 0
    eps = args.eps[0]
    ((name, attack),) = standard_pgd(eps, args.steps).items()
    torch.manual_seed(args.seed)
    if args.save:
        files.check_new_png(Path(args.save), "--save")
    names, images, labels = read_images(args.wanted, settings, args.data)
    x = torch.stack(images).to(device)
    answers, titles = describe(model, x, names)
    if args.save:
        # A file has no label: the attack then leads away from the clean answer.
        y = [answer if label is None else label for answer, label in zip(answers, labels)]
        x_adv = attack(model, x, torch.tensor(y, device=device))
        print(f"\nafter {name} on the {row_of(model)}, eps {eps:g}:")
        _, attacked = describe(model, x_adv, names)
        columns = {"clean": (x, titles), f"{name}, eps {eps:g}": (x_adv, attacked)}
        files.write(Path(args.save), pictures.answers(names, columns))
        print(f"\nwrote {args.save}")
    return 0


def tabulate(args: Namespace, model: nn.Module, settings: dict, device: torch.device) -> int:
    """The table at each eps, printed, and saved with a picture. Raises ValueError or OSError."""
    if args.save:
        raise ValueError("--save draws images: name some, such as 0 1 2")
    model = part_of(model, args.part)
    names = args.attack.split(",")
    if "all" in names:
        names = [*ATTACKS, *(TRANSFER if args.transfer else ())]
    make_attacks([name for name in names if name not in TRANSFER], args.eps[0])  # known names?
    dataset = load_data_of(settings, args.data)
    count = len(dataset.x_test)
    if args.images is not None and args.images > count:
        raise ValueError(f"--images is {args.images}: {dataset.name} has {count} test images")
    chosen, transfer = choose_images(dataset, args.images or MAX_IMAGES), {}
    if args.transfer:
        chosen, transfer = files.load_transfer(args.transfer, dataset, args.eps, args.images)
        transfer = {name: images.to(device) for name, images in transfer.items() if name in names}
    elif missing := [name for name in names if name in TRANSFER]:
        raise ValueError(f"{missing[0]} needs --transfer FILE, from experiments/transfer_set.py")
    folder = Path(args.checkpoint)
    folder = folder if folder.is_dir() else folder.parent
    files.check_writable(folder)
    x, y = test_images(dataset, device, chosen)
    results = {}
    for eps in args.eps:
        own = [name for name in names if name not in TRANSFER]
        attacks = make_attacks(own, eps, args.steps, args.restarts, args.queries, args.rescale)
        seeds = tuple(range(args.seed, args.seed + args.seeds))
        results[eps] = report(model, x, y, attacks, transfer=transfer, seeds=seeds)
        print_report(results[eps], row_of(model), len(x), eps)
    if ranks.rank():
        return 0
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
    written = [path.name]
    if len(args.eps) > 1:
        tables = {eps: result["table"][row_of(model)] for eps, result in results.items()}
        files.write(path.with_suffix(".png"), pictures.accuracy_by_eps(tables, row_of(model)))
        written.append(path.with_suffix(".png").name)
    print(f"\nWrote {folder}: {', '.join(written)}")
    return 0


def part_of(model: nn.Module, part: str | None) -> nn.Module:
    """The model, its experts' vote, or one expert alone. Raises ValueError for another part."""
    if part is None:
        return model
    if part == "vote":
        return Ensemble(model.experts)
    if part.isdecimal() and 1 <= int(part) <= len(model.experts):
        return Collaboration([model.experts[int(part) - 1]])
    raise ValueError(f"--part is {part}: it must be vote, or an expert, 1 to {len(model.experts)}")


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(__doc__, prog="infer.py")
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a run's model.pt, or its folder")
    add(
        "wanted",
        nargs="*",
        default=[],
        metavar="IMAGE",
        help="an image file, or the number of a test image",
    )
    add("--save", metavar="PNG", help="draw those images, clean and attacked")
    add("--eps", type=float, nargs="+", help="attack radius (default: the checkpoint's)")
    known = ", ".join([*ATTACKS, *TRANSFER, "all"])
    add("--attack", default="pgd", metavar="NAMES", help=f"of {known}, with commas (default: pgd)")
    add("--part", help="attack the vote, or one expert (1, 2 ..), not the whole model")
    add("--images", type=int, help="test images, a fixed choice (default: at most 1000)")
    add("--steps", type=int, default=20, help="steps of the gradient attacks (default: 20)")
    add("--restarts", type=int, default=1, help="restarts of pgd and cw (default: 1)")
    add("--queries", type=int, default=1000, help="queries of square (default: 1000)")
    add("--rescale", action="store_true", help="square: its sizes shrink faster; see attacks.py")
    add("--seed", type=int, help="of the attacks (default: the checkpoint's)")
    add("--seeds", type=int, default=1, help="how many seeds from there on (default: 1)")
    add("--transfer", metavar="FILE", help="images of experiments/transfer_set.py; all use these")
    add("--data", help="the data set, where its file has moved")
    add("--device", help="cuda, mps or cpu (default: the first that is there)")
    args = parser.parse_args(argv)
    try:
        ranks.start(args.device)
        with ranks.dying_together():
            return run(args)
    except (ValueError, OSError) as error:
        parser.error(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
