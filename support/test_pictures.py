"""Statements about the pictures that the scripts draw, and what stands in them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import data
import infer
import xor_demo
from support import pictures


def test_infer_shows_every_expert_and_draws_both_answers(whole, capsys):
    Image.new("RGB", (30, 20), "white").save("white.png")
    Image.new("LA", (8, 8), (0, 0)).save("clear.png")
    names = ["white.png", "17", "17", "clear.png"]
    infer.main([str(whole), *names, "--save", "answers.png"])
    out = capsys.readouterr().out
    assert f"test image 17, label {data.load('digits').y_test[17]}" in out
    assert out.count("<- answers") == 8 and out.count("expert 2: ") == 8  # clean and attacked
    white, clear = (out.split(f"\n{name}\n")[1].split("\n")[:2] for name in (names[0], names[3]))
    assert white == clear  # both are all white
    assert Image.open("answers.png").height > 400


def test_what_is_wrong_without_an_attack_is_told_as_not_attacked(whole, monkeypatch, capsys):
    model, digits, drawn = infer.load(whole), data.load("digits"), {}
    correct = model(digits.x_test.float() / 255).argmax(1) == digits.y_test
    words = [str(int(group.nonzero()[0])) for group in (~correct, correct)]
    monkeypatch.setattr(pictures, "strip", lambda names, rows: drawn.update(rows) or b"")
    infer.main([str(whole), *words, "--save", "a.png"])
    (clean, _), (change, _), (x_adv, titles) = drawn.values()
    assert capsys.readouterr().out.count(", already wrong, not attacked\n") == 1
    assert titles[0] == "already wrong, not attacked" and " by expert " in titles[1]
    assert torch.equal(x_adv[0], clean[0]) and (change[0] == 0.5).all()
    torch.testing.assert_close(change[1] - 0.5, 5 * (x_adv[1] - clean[1]))  # at eps 0.1


def test_names_of_files_and_classes_are_no_formulas():
    x, names = torch.rand(2, 1, 8, 8), ["$^$.png", "label $\\frac$"]
    assert pictures.grid(names, x, names) and pictures.strip(names, {"clean": (x, names)})


def test_xor_demo_draws_figure_1(capsys):
    xor_demo.main([])
    assert Image.open("xor.png").width > 500
    out = capsys.readouterr().out
    assert "collaboration" in out and "only g decides" not in out


@pytest.mark.slow
def test_xor_demo_shows_how_the_trap_closes(capsys):
    Path("xor.png").touch()
    xor_demo.main(["--trap", "--animate", "trap.gif"])
    assert Image.open("trap.gif").n_frames == 26 and Path("xor-2.png").exists()
    assert "only g decides" in capsys.readouterr().out
