"""Algorithm 1 on images, and a checkpoint's accuracy under attack.

    python infer.py CHECKPOINT image.png 17 --save answers.png   # what each expert says, who answers
    python infer.py CHECKPOINT --eps 0.05                        # the table of accuracies

Every expert gives a label and a confidence; the most confident expert answers. The table attacks
the collaboration, and each expert and the vote as well, because an image made against one model is
only a transferred image for another.
"""

import argparse
import pickle
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import data
from attacks import pgd
from models import Collaboration, Ensemble, ResNet, vote

MAX_IMAGES = 1000  # in a table, unless told otherwise
BATCH_SIZE = 250


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, with exit status 2."""

    def __init__(self, description: str, **kwargs):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {' '.join(str(message).split())}\n")


def pick_device(name: str | None) -> torch.device:
    """`name`, or cuda, else mps, else cpu. Raises ValueError for a device that is not there."""
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there.insert(0, "cuda")
    try:
        device = torch.device(name or there[0])
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(
            f"device {name!r} is not there: this machine has {', '.join(there)}"
        ) from None
    return device


def build(settings: dict) -> nn.Module:
    """An untrained model of settings' method, n, depth and image shape."""
    channels, height, width = settings["image_shape"]
    experts = [
        ResNet(settings["depth"], channels, settings["num_classes"], (height, width))
        for _ in range(settings["n"])
    ]
    return Collaboration(experts, settings["confidence"])


def load_checkpoint(path: str | Path) -> dict:
    """A checkpoint file's dictionary on the CPU: {method, settings, model, ...}; runs no code.

    Raises FileNotFoundError where there is none, ValueError for a file that is none.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.pt"
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: train_collab.py writes one to RUN/model.pt")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no checkpoint, or was cut short: name a run's model.pt")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{path} holds code instead of weights and was not loaded") from None
    except (RuntimeError, EOFError, KeyError, OSError):
        raise ValueError(f"{path} is damaged or no checkpoint: name a run's model.pt") from None
    keys = {"method", "settings", "model", "epoch", "history"}
    if not isinstance(checkpoint, dict) or not keys <= set(checkpoint):
        raise ValueError(f"{path} is no checkpoint of this project: name a run's model.pt")
    return checkpoint


def restore(checkpoint: dict, device: torch.device) -> nn.Module:
    """The model in a checkpoint's dictionary, in eval mode. Raises ValueError where none fits."""
    try:
        model = build(checkpoint["settings"])
        model.load_state_dict(checkpoint["model"])
    except (KeyError, TypeError, AttributeError, RuntimeError):
        raise ValueError(
            "the checkpoint's weights do not fit its settings: it is damaged"
        ) from None
    return model.to(device).eval()


def load(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The trained model in a checkpoint file, in eval mode. Raises ValueError, FileNotFoundError."""
    return restore(load_checkpoint(path), torch.device(device))


Attack = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]  # (model, x, y) -> x_adv


def pgd_attack(eps: float, steps: int = 20) -> dict[str, Attack]:
    """PGD as it is evaluated here: random start, steps of eps / 5, each image's worst point."""
    attack = partial(pgd, eps=eps, alpha=eps / 5, steps=steps, random_start=True, keep_best=True)
    return {f"pgd-{steps}": attack}


def attack_images(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    attack: Attack,
    batch_size: int,
    name: str,
) -> Tensor:
    """x_adv like x [N, C, H, W], made in batches; a bar on a terminal says how far it is."""
    pairs = list(zip(x.split(batch_size), y.split(batch_size)))
    bar = tqdm(pairs, f"attack on {name}", leave=False, disable=None)
    return torch.cat([attack(model, x_batch, y_batch) for x_batch, y_batch in bar])


@torch.no_grad()
def ask_experts(model: nn.Module, x: Tensor, batch_size: int = BATCH_SIZE) -> tuple[Tensor, Tensor]:
    """What `model.all_experts` says of x [N, C, H, W]: logits [M, N, K], score [M, N]."""
    logits, score = zip(*map(model.all_experts, x.split(batch_size)))
    return torch.cat(logits, 1), torch.cat(score, 1)


def expert_losses(logits: Tensor, y: Tensor) -> Tensor:
    """l_j = -ln p_y^j: logits [M, B, K], y [B] -> [M, B]."""
    return F.cross_entropy(logits.transpose(1, 2), y.expand(len(logits), -1), reduction="none")


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
    return "vote" if isinstance(model, Ensemble) else "collaboration"


def specialisation(model: nn.Module, logits: Tensor, score: Tensor, y: Tensor) -> dict:
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
            "best fixed": max(percent(row[disagree]) for row in right),
            "any": percent(right.any(0)[disagree]),
        },
        "answers": (100 * (answers.float() @ classes) / per_class).tolist(),
        "accuracy": (100 * (right.float() @ classes) / per_class).tolist(),
    }


def percent(right: Tensor) -> float:
    return 100 * right.float().mean().item() if len(right) else float("nan")


def report(
    model: nn.Module, x: Tensor, y: Tensor, attacks: dict[str, Attack], batch_size: int = BATCH_SIZE
) -> dict:
    """{"table": {row: {column: percent}}, "specialisation": {column: ..}}; see `evaluate`."""
    model.eval()
    columns = {"clean": x}
    for name, attack in attacks.items():
        columns[name] = attack_images(model, x, y, attack, batch_size, row_of(model))
    table, division = {}, {}
    for column, images in columns.items():
        logits, score = ask_experts(model, images, batch_size)
        for row, right in right_by_row(model, logits, score, y).items():
            table.setdefault(row, {})[column] = percent(right)
        if not isinstance(model, Ensemble):  # in a vote nobody is chosen
            division[column] = specialisation(model, logits, score, y)
    if attacks:  # the column `own`, by the first attack; its images for `model` exist already
        name, attack = next(iter(attacks.items()))
        targets = {f"expert {j + 1}": first_output(e) for j, e in enumerate(model.experts)}
        targets["vote"] = Ensemble(model.experts)
        for row, target in targets.items():
            if row != row_of(model):
                x_adv = attack_images(target, x, y, attack, batch_size, row)
                with torch.no_grad():
                    answer = torch.cat([target(b).argmax(1) for b in x_adv.split(batch_size)])
                table[row]["own"] = percent(answer == y)
        table[row_of(model)]["own"] = table[row_of(model)][name]
    return {"table": table, "specialisation": division}


def first_output(expert: nn.Module) -> Callable[[Tensor], Tensor]:
    """The expert as a classifier: its logits without the confidence."""
    return lambda x: expert(x)[0]


def evaluate(
    model: nn.Module, x: Tensor, y: Tensor, attacks: dict[str, Attack], batch_size: int = BATCH_SIZE
) -> dict[str, dict[str, float]]:
    """Accuracy in percent, {row: {column: percent}}, in float32; the model is left in eval mode.

    x [N, C, H, W] in [0, 1], y [N], attacks {name: fn(model, x, y) -> x_adv}. Rows: each expert,
    the vote, the collaboration, `oracle` (the expert with the lowest loss answers) and `any` (at
    least one expert is right). Columns: `clean`; each attack, made against `model`, the same
    images in every row; `own`: each row attacked itself by the first attack. Oracle and any know
    the label, so nobody can attack them: they have no `own`.
    """
    return report(model, x, y, attacks, batch_size)["table"]


def print_report(result: dict, model: nn.Module, count: int, eps: float) -> None:
    table, division = result["table"], result["specialisation"]
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    attack = columns[1]
    print(
        f"\nAccuracy (%) on {count} test images, eps {eps:g}. {attack}: images made against the "
        f"{row_of(model)},\nthe same in every row. own: each row attacked itself by {attack}."
    )
    print(" " * 14 + "".join(f"{column:>9}" for column in columns))
    for row, cells in table.items():
        numbers = (f"{cells[c]:9.1f}" if c in cells else f"{'-':>9}" for c in columns)
        print(f"{row:14}" + "".join(numbers))
    if not division:
        return
    print("\nWhere the experts disagree, who is right (% of those images):")
    print(" " * 14 + "   images   chosen expert   best fixed expert   any expert")
    for column, part in division.items():
        d = part["disagree"]
        print(
            f"{column:14}{d['images']:9}{d['chosen']:16.1f}{d['best fixed']:20.1f}{d['any']:13.1f}"
        )
    answers, accuracy = division["clean"]["answers"], division["clean"]["accuracy"]
    if len(answers[0]) > 12:
        return
    print("\nShare (%) of each class that each expert answers / would have right, clean:")
    print(" " * 14 + "".join(f"{k:>9}" for k in range(len(answers[0]))))
    for j, (a, b) in enumerate(zip(answers, accuracy)):
        cells = (f"{f'{share:.0f}/{own:.0f}':>9}" for share, own in zip(a, b))
        print(f"{f'expert {j + 1}':14}" + "".join(cells))


def test_subset(test_data: data.Data, device: torch.device, count: int) -> tuple[Tensor, Tensor]:
    """A fixed random choice of `count` test images, as float32 in [0, 1], and their labels."""
    order = torch.randperm(len(test_data.x_test), generator=torch.Generator().manual_seed(0))[
        :count
    ]
    x, y = test_data.x_test[order].to(device), test_data.y_test[order].to(device)
    return x.float() / 255, y


def read_image(path: str, image_shape: tuple[int, int, int]) -> Tensor:
    """An image file as [C, H, W] in [0, 1], made to fit; prints what had to be changed."""
    channels, height, width = image_shape
    try:
        with Image.open(path) as file:
            image = file.convert("L" if channels == 1 else "RGB")
            changes = (
                [] if file.mode == image.mode else [f"converted from {file.mode} to {image.mode}"]
            )
    except FileNotFoundError:
        raise FileNotFoundError(f"no image file {path}, and no test image of that number") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {path}: {error}") from None
    if image.size != (width, height):
        changes.append(f"resized from {image.width} x {image.height} to {width} x {height}")
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if changes:
        print(f"{path}: {', '.join(changes)}")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, channels).permute(2, 0, 1).float() / 255


def describe(name: str, label: int | None, logits: Tensor, score: Tensor) -> None:
    """Prints what every expert says of one image: logits [M, K], score [M]."""
    print(name if label is None else f"{name} (label {label})")
    for j, (prediction, g) in enumerate(zip(logits.argmax(-1).tolist(), score.sigmoid().tolist())):
        answers = "   <- answers" if j == score.argmax() else ""
        print(f"    expert {j + 1}: {prediction}   confidence {g:.3f}{answers}")


def draw(path: Path, model: nn.Module, names: list[str], columns: dict[str, Tensor]) -> None:
    """A PNG with a row an image: each column's image, the answer, whose it is, its confidence."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = len(names)
    figure, axes = plt.subplots(
        rows, len(columns), figsize=(5, 2.4 * rows), squeeze=False, layout="constrained"
    )
    for place, (column, images) in enumerate(columns.items()):
        logits, score = ask_experts(model, images)
        answer, chosen = model.combine(logits, score).argmax(-1), score.argmax(0)
        for row, image in enumerate(images.cpu()):
            axis = axes[row, place]
            axis.imshow(image.permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            j = chosen[row]
            axis.set_title(
                f"{column}: {answer[row]}\nexpert {j + 1}, confidence {score[j, row].sigmoid():.2f}",
                fontsize=9,
            )
            if place == 0:
                axis.set_ylabel(names[row], fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run's model.pt, or its folder")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="an image file, or the number of a test image"
    )
    parser.add_argument("--eps", type=float, help="attack radius (default: the checkpoint's)")
    parser.add_argument("--steps", type=int, default=20, help="steps of PGD (default: 20)")
    parser.add_argument("--data", help="the data set, where its file has moved")
    parser.add_argument("--seed", type=int, default=0, help="of the random start (default: 0)")
    parser.add_argument("--device", help="default: cuda, else mps, else cpu")
    parser.add_argument("--save", metavar="PNG", help="draw the images, clean and attacked")
    args = parser.parse_args(argv)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        parser.error(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    checkpoint = load_checkpoint(args.checkpoint)
    settings = checkpoint["settings"]
    device = pick_device(args.device)
    model = restore(checkpoint, device)
    eps = settings["eps"] if args.eps is None else args.eps
    if not 0 < eps <= 1:
        raise ValueError(f"--eps is {eps}: it must lie in (0, 1]")
    if args.steps < 1:
        raise ValueError(f"--steps is {args.steps}: it must be at least 1")
    if args.save and not args.images:
        raise ValueError("--save draws images: name some, such as 0 1 2")
    if args.save and Path(args.save).exists():
        raise ValueError(f"{args.save} exists: give --save another name")
    if args.save and Path(args.save).suffix != ".png":
        raise ValueError(f"--save is {args.save}: its name must end in .png")
    by_number = [image.isdigit() and not Path(image).exists() for image in args.images]
    test = None
    if any(by_number) or not args.images:
        test = load_data_of(settings, args.data)
    attacks = pgd_attack(eps, args.steps)
    torch.manual_seed(args.seed)
    if not args.images:
        x, y = test_subset(test, device, MAX_IMAGES)
        print_report(report(model, x, y, attacks), model, len(x), eps)
        return 0
    x, labels = [], []
    for image, is_number in zip(args.images, by_number):
        if is_number and int(image) >= len(test.x_test):
            last = len(test.x_test) - 1
            raise ValueError(
                f"no test image {image}: {test.name} has 0 .. {last}, and no such file"
            )
        x.append(
            test.x_test[int(image)].float() / 255
            if is_number
            else read_image(image, settings["image_shape"])
        )
        labels.append(int(test.y_test[int(image)]) if is_number else None)
    x = torch.stack(x).to(device)
    logits, score = ask_experts(model, x)
    names = [f"test image {i}" if n else Path(i).name for i, n in zip(args.images, by_number)]
    for i, name in enumerate(names):
        describe(name, labels[i], logits[:, i], score[:, i])
    if args.save:
        answer = model.combine(logits, score).argmax(-1)
        # A file has no label: the attack then moves the image away from the clean answer.
        y = torch.tensor([a if k is None else k for a, k in zip(answer.tolist(), labels)]).to(
            device
        )
        name, attack = next(iter(attacks.items()))
        draw(
            Path(args.save), model, names, {"clean": x, f"{name}, eps {eps:g}": attack(model, x, y)}
        )
        print(f"wrote {args.save}")
    return 0


def load_data_of(settings: dict, moved_to: str | None) -> data.Data:
    """The data set that a checkpoint was trained on. Raises ValueError where it is another."""
    found = data.load(moved_to or settings["data"])
    if list(found.image_shape) != list(settings["image_shape"]) or (
        found.num_classes != settings["num_classes"]
    ):
        raise ValueError(
            f"{found.name} has {found.num_classes} classes of {found.image_shape} images; the "
            f"checkpoint was trained on {settings['data_name']}: {settings['num_classes']} classes "
            f"of {tuple(settings['image_shape'])} images"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
