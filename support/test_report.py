"""Statements about report.html: it says what was measured, alone, and a browser shows it."""

import json
import re
import shlex
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data
import infer
from baselines import more, plain
from experiments.fixtures import SMALL
from support import report


@pytest.fixture(scope="module")
def page(whole):
    return (whole / "report.html").read_text()


@pytest.fixture(scope="module")
def metrics(whole):
    return json.loads((whole / "metrics.json").read_text())


def test_a_report_holds_every_figure_of_the_table_and_defines_its_words(page, metrics, whole):
    cells = re.findall(r"<td>([\d.-]+)</td>", page)
    for row in metrics["table"].values():
        assert all(f"{value:.1f}" in cells for value in row.values() if value is not None)
    assert metrics["command"] in page and str(whole) in page
    words = {word.split()[0] for word in (*metrics["table"], *metrics["table"]["expert 1"])}
    assert all(page.count(f"<b>{word}</b>: ") == 1 for word in words)


def test_a_report_needs_nothing_from_outside_and_no_program(page):
    assert "<script" not in page and "http" not in page and len(page) < 1_000_000
    links = re.findall(r'(?:src|href)="([^"]{5})', page)
    assert links and set(links) == {"data:"}


def test_what_a_user_named_is_text_and_no_html(metrics, whole):
    settings = Namespace(**metrics["settings"] | {"class_names": ["<b>", *"123456789"]})
    x, y = data.load("digits").test_images("cpu")
    page = report.html(settings, metrics, infer.load(whole), x[:4], y[:4], b"").decode()
    assert "<th>&lt;b&gt;</th>" in page and "<th><b></th>" not in page


def test_a_report_of_many_classes_has_no_table_of_them_and_one_epoch_no_curves(metrics, whole):
    settings = Namespace(**metrics["settings"] | {"class_names": [f"c{k}" for k in range(13)]})
    x, y = data.load("digits").test_images("cpu")
    few = metrics | {"epochs": metrics["epochs"][:1]}
    page = report.html(settings, few, infer.load(whole), x[:4], y[:4], b"curves").decode()
    assert "each of the 13 classes" in page and "<th>c1</th>" not in page
    assert "One epoch: its loss was" in page and report.as_text(b"curves") not in page


def test_a_report_shows_the_division_and_the_examples(page):
    for heading in ("Who answers", "Training", "Adversarial examples", "What next"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<img ") == 2 + ("Wrong without" in page)


def test_where_no_image_is_correct_there_are_no_adversarial_examples(whole):
    model, x = infer.load(whole), data.load("digits").x_test[:20].float() / 255
    y = (model(x).argmax(1) + 1) % 10
    assert list(report.examples(model, x, y, 0.1, list("0123456789"))) == ["wrong"]


@pytest.mark.parametrize("script, flags", [(plain, []), (more, ["--eps", "0"])])
def test_a_report_of_a_rival_has_what_there_is(script, flags):
    script.main([*SMALL, "--epochs", "1", *flags, "--out", "run"])
    text = Path("run/report.html").read_text()
    assert ("Who weighs most" in text) == (script is more) and "Who answers" not in text
    assert ("Adversarial examples" in text) == (not flags)
    commands = text.split("<pre>")[1].split("</pre>")[0].splitlines()
    for command in commands[:2]:  # the third is the full evaluation
        infer.main(shlex.split(command)[2:])
    assert Path("answers.png").exists() and len(commands) == 3


def test_a_browser_shows_the_report(whole, tmp_path, browser):
    """Text below the pictures, and colours on the page."""
    png = tmp_path / "page.png"
    size = "--window-size=1100,2400"
    browser((whole / "report.html").as_uri(), size, f"--screenshot={png}")
    pixels = np.asarray(Image.open(png).convert("RGB")).astype(int)
    assert pixels.shape[:2] == (2400, 1100)
    rows = np.flatnonzero((pixels.min(2) < 128).any(1))
    assert rows.min() < 100 and rows.max() > 1000
    assert (np.ptp(pixels, axis=2) > 60).sum() > 1000  # the heat map, the curves
