"""The tables that are printed, and how the experts divide the work."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ask_experts


def duration(seconds: float) -> str:
    """As one would say it: 12.3 ms, 3.45 s, 40 s, 18 min, 2.5 h."""
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 100:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def percent(correct: Tensor) -> float | None:
    return 100 * int(correct.sum()) / len(correct) if len(correct) else None


def specialisation(logits: Tensor, score: Tensor, y: Tensor) -> dict:
    """How the experts divide the work, on images whose logits [M, N, K] and score [M, N] are given.

    Where they disagree: the number of images, and in % of them how often the answering expert, the
    expert that is best on just these images, and any expert is correct. Then, expert x class: the
    percentage of each class that each expert answers, and that it alone would have correct.
    """
    prediction, answering = logits.argmax(-1), score.argmax(0)  # [M, N], [N]
    correct = prediction == y
    disagree = (prediction != prediction[0]).any(0)
    answers = answering == torch.arange(len(correct), device=y.device)[:, None]  # [M, N]
    classes = F.one_hot(y, logits.shape[-1]).float()  # [N, K]
    per_class = classes.sum(0).clamp(min=1)
    return {
        "disagree": {
            "images": int(disagree.sum()),
            "answering": percent(correct.gather(0, answering[None])[0, disagree]),
            "best fixed": percent(max(correct[:, disagree], key=lambda row: row.sum())),
            "any": percent(correct.any(0)[disagree]),
        },
        "answers": (100 * (answers.float() @ classes) / per_class).tolist(),
        "accuracy": (100 * (correct.float() @ classes) / per_class).tolist(),
    }


def _line(name: str, cells: list, width: int) -> None:
    print(f"{name:14}" + "".join(f"{cell:>{width}}" for cell in cells))


def _number(value: float | None, deviation: float | None = None) -> str:
    text = "-" if value is None else f"{value:.1f}"
    return text if deviation is None else f"{text} ±{deviation:.1f}"


def print_report(
    result: dict, attacked: str, count: int, eps: float, class_names: list[str] | None = None
) -> None:
    """Prints {"table": .., "specialisation": .., "deviation" where there are several seeds: ..}.

    `attacked` is the row of the model that was attacked, `count` the number of images. Classes
    without names are numbered.
    """
    table, deviations = result["table"], result.get("deviation", {})
    columns = list(table[attacked])
    attacks = [column for column in columns if column not in ("clean", "own", "worst")]
    made = f"eps {eps:g}. Attacks are made against the {attacked},\nthe same images in every row."
    heading = f"\nAccuracy (%) on {count} test images, {made if attacks else 'clean.'}"
    if "own" in columns:
        heading += f" own: each row attacked itself by {attacks[0]}."
    if "worst" in columns:
        heading += f"\nworst: the {attacked} is correct in all columns."
    print(heading)
    width = max([9, *(len(column) + 2 for column in columns)]) + (3 if deviations else 0)
    _line("", columns, width)
    for row, cells in table.items():
        deviation = deviations.get(row, {})
        _line(row, [_number(cells.get(c), deviation.get(c)) for c in columns], width)
    if result["specialisation"]:
        print_specialisation(result["specialisation"], attacked == "mixture", class_names)


def print_specialisation(columns: dict, mixture: bool, class_names: list[str] | None) -> None:
    """{column: `specialisation`}, below the table. In a mixture nobody answers alone."""
    print("\nWhere the experts disagree, share (%) of images correct:")
    who = "the heaviest expert" if mixture else "the answering one"
    _line("", ["images", who, "the best fixed one", "any expert"], 20)
    for column, division in columns.items():
        images, *shares = division["disagree"].values()
        _line(column, [images, *map(_number, shares)], 20)
    answers, accuracy = columns["clean"]["answers"], columns["clean"]["accuracy"]  # [M][K]
    if (K := len(answers[0])) > 12:
        print(f"\nWhat each expert answers of each of the {K} classes: see the JSON file")
        return
    does = "is the heaviest in" if mixture else "answers"
    print(f"\nShare (%) of each class, clean, that each expert {does} / alone has correct:")
    _line("", [name[:7] for name in class_names or map(str, range(K))], 8)
    for j, pairs in enumerate(map(zip, answers, accuracy)):
        _line(f"expert {j + 1}", [f"{share:.0f}/{correct:.0f}" for share, correct in pairs], 8)


def answers(
    model: nn.Module, logits: Tensor, score: Tensor, classes: list[str]
) -> tuple[Tensor, list[str]]:
    """The model's answers to N images, of what its experts say, logits [M, N, K], score [M, N]:
    labels [N]; in words, which class and who says so."""
    labels = model.combine(logits, score).argmax(-1)
    who = [f"the {model.row}"] * len(labels)
    if model.row == "collaboration":
        pairs = zip(score.argmax(0) + 1, score.sigmoid().amax(0))
        who = [f"expert {j}, confidence {confidence:.2f}" for j, confidence in pairs]
    return labels, [f"{classes[k]} by {name}" for k, name in zip(labels, who)]


def print_answers(
    model: nn.Module, x: Tensor, names: list[str], classes: list[str]
) -> tuple[Tensor, list[str]]:
    """Prints what every expert says of x [N, C, H, W], and returns `answers`."""
    logits, score = ask_experts(model, x)  # [M, N, K], [M, N]
    labels, in_words = answers(model, logits, score, classes)
    kind = {"collaboration": "confidence", "mixture": "weight"}.get(model.row)
    values = score.softmax(0) if kind == "weight" else score.sigmoid()  # [M, N]
    for i, name in enumerate(names):
        print(name)
        for j, k in enumerate(logits[:, i].argmax(-1)):
            value = f", {kind} {values[j, i]:.3f}" if kind else ""
            note = "  <- answers" if kind == "confidence" and j == score[:, i].argmax() else ""
            print(f"  expert {j + 1}: {classes[k]}{value}{note}")
        if kind != "confidence":
            print(f"  {model.row}: {classes[labels[i]]}")
    return labels, in_words
