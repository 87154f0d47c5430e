"""report.html: a run on one page, without links to anything outside and without JavaScript."""

import base64
import shlex
from argparse import Namespace
from html import escape
from support import pictures

from torch import Tensor, nn

from attacks import attacks_at, routes
from models import ask_experts

WORDS = {
    "expert": "one network alone",
    "vote": "the mean of all experts' probabilities",
    "collaboration": "the most confident expert answers",
    "mixture": "the experts' logits, weighed by the gate",
    "oracle": "the expert with the lowest loss answers; it knows the label, so it is no classifier",
    "any": "at least one expert is correct; it knows the label, so it is no classifier",
    "clean": "unchanged images",
    "pgd-20": "images attacked by projected gradient descent in 20 steps, the same in every row",
    "own": "images attacked by pgd-20 against this very row",
    "disagree": "images on which not all experts give the same label",
    "answering": "the expert whose confidence is highest",
    "heaviest": "the expert that weighs most: nobody answers alone in a mixture",
    "best fixed": "the one expert that would be best throughout",
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; color: #111; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd;
  font-weight: normal; }
th:first-child { text-align: left; }
abbr { text-decoration: underline dotted; cursor: help; }
img { max-width: 100%; }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; }
.heat td { border: 1px solid #fff; text-align: center; }
.settings td { text-align: left; }
"""


def word(text: str) -> str:
    """A word of the table, its definition shown where the pointer rests on it."""
    told = WORDS.get(text) or WORDS.get(text.split()[0])
    return f'<abbr title="{escape(told)}">{escape(text)}</abbr>' if told else escape(text)


def table(rows: list[list[str]], kind: str = "") -> str:
    """Cells of HTML; the first row and the first column are headings."""
    head, *rest = rows
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += [f"<th>{first}</th>" + "".join(others) for first, *others in rest]
    return f'<table class="{kind}">' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def cell(value: float | None) -> str:
    return f"<td>{'-' if value is None else f'{value:.1f}'}</td>"


def picture(png: bytes, told: str) -> str:
    content = base64.b64encode(png).decode()
    return f'<p><img alt="{escape(told)}" src="data:image/png;base64,{content}"></p>'


def accuracies(result: dict) -> str:
    columns = list(result["table"]["expert 1"])
    rows = [["", *map(word, columns)]]
    for row, cells in result["table"].items():
        rows.append([word(row), *(cell(cells.get(column)) for column in columns)])
    return table(rows)


def division(result: dict, classes: list[str], mixture: bool) -> str:
    """Who answers (in a mixture: weighs most) what; where the experts disagree, how often is the
    right one asked?"""
    of, who = result["specialisation"], "heaviest" if mixture else "answering"
    heading, does = ("Who weighs most", "is heaviest in") if mixture else ("Who answers", "answers")
    rows = [["", *(word(w) for w in ("disagree", who, "best fixed", "any"))]]
    for column, parts in of.items():
        images, *shares = parts["disagree"].values()
        rows.append([word(column), f"<td>{images}</td>", *map(cell, shares)])
    heat = [["", *map(escape, classes)]]
    for j, pairs in enumerate(map(zip, of["clean"]["answers"], of["clean"]["accuracy"])):
        cells = (
            f'<td style="background: rgba(31, 119, 180, {share / 100:.2f}); '
            f'color: {"#fff" if share > 60 else "#111"}">{share:.0f}/{alone:.0f}</td>'
            for share, alone in pairs
        )
        heat.append([f"expert {j + 1}", *cells])
    return (
        f"<h2>{heading}</h2><p>Where the experts disagree: the number of images, and in % of them "
        f"how often is correct</p>{table(rows)}<p>Of each class, clean: how many % this expert "
        f"{does} (the shade) / how many % it has correct alone. Dark and empty cells in a row mean "
        f"that the experts have shared out the classes.</p>{table(heat, 'heat')}"
    )


def titles(model: nn.Module, x: Tensor, classes: list[str]) -> tuple[Tensor, list[str]]:
    """The model's answers to x [N, C, H, W], and these in words: who said what."""
    logits, score = ask_experts(model, x)
    answers = model.combine(logits, score).argmax(1)
    alone = model.row == "collaboration"
    by = [f" by expert {j + 1}" if alone else "" for j in score.argmax(0)]
    return answers, [classes[k] + who for k, who in zip(answers, by)]


def examples(model: nn.Module, x: Tensor, y: Tensor, eps: float, classes: list[str]) -> str:
    """Six adversarial examples, and images that are wrong without any attack."""
    x, y = x[:200], y[:200]
    answers, told = titles(model, x, classes)
    parts = []
    i = (answers == y).nonzero().squeeze(1)[:60]
    if eps and len(i):
        x_adv = attacks_at(eps)["pgd"](model, x[i], y[i])
        after, told_after = titles(model, x_adv, classes)
        order = (after == y[i]).int().argsort(stable=True)[:6]  # the fooled ones first
        what, changed = pictures.change(x[i], x_adv, eps)
        rows = {
            "clean": (x[i][order], [told[k] for k in i[order]]),
            what: (changed[order], [""] * len(order)),
            f"attacked, eps {eps:g}": (x_adv[order], [told_after[k] for k in order]),
        }
        names = [f"label {classes[k]}" for k in y[i][order]]
        fooled = int((after != y[i]).sum())
        parts.append(
            f"<h2>Adversarial examples</h2><p>Of {len(i)} images that are correct clean the attack "
            f"takes {fooled}; those first.</p>"
            + picture(pictures.strip(names, rows), "clean, the change, and attacked")
        )
    wrong = (answers != y).nonzero().squeeze(1)[:12]
    if len(wrong):
        names = [f"label {classes[k]}" for k in y[wrong]]
        png = pictures.grid(names, x[wrong], [told[k] for k in wrong])
        parts.append(
            "<h2>Wrong without any attack</h2>" + picture(png, "images with a wrong answer")
        )
    return "".join(parts)


def html(
    settings: Namespace, metrics: dict, model: nn.Module, x: Tensor, y: Tensor, curves: bytes
) -> bytes:
    """The page of a run: its settings, metrics.json's content, the trained model and test images
    x [N, C, H, W], y [N], and the picture of its curves."""
    classes = settings.class_names
    run = shlex.quote(str(settings.out))
    title = f"{settings.method}, {settings.n} x ResNet{settings.depth}, {settings.data_name}, "
    title += f"eps {settings.eps:g}"
    commands = [
        f"python infer.py {run} 0 1 2 --save answers.png" + ("" if settings.eps else " --eps 0.03"),
        f"python infer.py {run} --eps 0.1 --attack pgd" + " adaptive" * routes(model),
        f"python -m experiments.evaluate {run}" + ("" if settings.eps else " --eps 0.03"),
    ]
    rows = [["setting", "value"]]
    rows += [[escape(k), f"<td>{escape(str(v))}</td>"] for k, v in sorted(vars(settings).items())]
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(metrics['command'])}</p>",
        f"<h2>Accuracy (%) on {metrics['images']} test images</h2>",
        "<p>Rest the pointer on a word for what it means. Attacks are made against the "
        f"{model.row}.</p>",
        accuracies(metrics),
        division(metrics, classes, model.row == "mixture") if metrics["specialisation"] else "",
        "<h2>Training</h2>",
        picture(curves, "loss, accuracy and shares of the images, by epoch"),
        examples(model, x, y, settings.eps, classes),
        "<h2>What next</h2>",
        f"<pre>{escape(chr(10).join(commands))}</pre>",
        f"<details><summary>All settings; {escape(metrics['device'])}</summary>",
        f"{table(rows, 'settings')}</details>",
    ]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )
    return page.encode()
