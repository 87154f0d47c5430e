"""report.html: a run on one page, without links to anything outside and without JavaScript. The
page itself is report.jinja."""

import base64
import shlex
from argparse import Namespace
from pathlib import Path

from jinja2 import Template
from torch import Tensor, nn

from attacks import attacks_at, routes
from models import ask_experts
from support import pictures, printing


def html(
    settings: Namespace, metrics: dict, model: nn.Module, x: Tensor, y: Tensor, curves: bytes
) -> bytes:
    """The page of a run, from its settings, metrics.json's content, the trained model, test images
    x [N, C, H, W], y [N], and the picture of its curves."""
    run, eps = shlex.quote(str(settings.out)), "" if settings.eps else " --eps 0.03"
    commands = [
        f"python infer.py {run} 0 1 2 --save answers.png{eps}",
        f"python infer.py {run} --eps 0.1 --attack pgd" + " adaptive" * routes(model),
        f"python -m experiments.evaluate {run}{eps}",
    ]
    title = f"{settings.method}, {settings.n} x ResNet{settings.depth}, {settings.data_name}"
    page = Template(
        Path(__file__).with_suffix(".jinja").read_text("utf-8"), autoescape=True, trim_blocks=True
    )
    return page.render(
        title=f"{title}, eps {settings.eps:g}",
        settings=vars(settings),
        metrics=metrics,
        row=model.row,
        curves=as_text(curves),
        commands=commands,
        **examples(model, x[:200], y[:200], settings.eps, settings.class_names),
    ).encode()


def as_text(png: bytes) -> str:
    return base64.b64encode(png).decode()


def examples(model: nn.Module, x: Tensor, y: Tensor, eps: float, classes: list[str]) -> dict:
    """Six adversarial examples, and images that are wrong without any attack."""
    answers, titles = printing.answers(model, *ask_experts(model, x), classes)
    shown, i = {}, (answers == y).nonzero().squeeze(1)[:60]
    if eps and len(i):
        x_adv = attacks_at(eps)["pgd"](model, x[i], y[i])
        after, titles_after = printing.answers(model, *ask_experts(model, x_adv), classes)
        order = (after == y[i]).int().argsort(stable=True)[:6]  # the fooled ones first
        heading, changed = pictures.change(x[i], x_adv, eps)
        rows = {
            "clean": (x[i][order], [titles[k] for k in i[order]]),
            heading: (changed[order], [""] * len(order)),
            f"attacked, eps {eps:g}": (x_adv[order], [titles_after[k] for k in order]),
        }
        names = [f"label {classes[k]}" for k in y[i][order]]
        shown["attacked"] = {
            "correct": len(i),
            "taken": int((after != y[i]).sum()),
            "picture": as_text(pictures.strip(names, rows)),
        }
    wrong = (answers != y).nonzero().squeeze(1)[:12]
    if len(wrong):
        names = [f"label {classes[k]}" for k in y[wrong]]
        shown["wrong"] = as_text(pictures.grid(names, x[wrong], [titles[k] for k in wrong]))
    return shown
