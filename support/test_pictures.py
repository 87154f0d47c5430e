"""Statements about the pictures that the scripts draw, and what stands in them."""

import torch
from PIL import Image

import data
import infer
import xor_demo
from support import pictures


def test_infer_shows_every_expert_and_draws_both_answers(
    default_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20), "white").save("white.png")
    Image.new("LA", (8, 8), (0, 0)).save("clear.png")
    wanted = ["white.png", "17", "17", "clear.png"]
    infer.main([str(default_run[0]), *wanted, "--save", "answers.png"])
    out = capsys.readouterr().out
    assert f"test image 17, label {data.load('digits').y_test[17]}" in out
    assert out.count("<- answers") == 8 and out.count("expert 3: ") == 8  # clean and attacked
    of = {name: out.split(f"\n{name}\n")[1].split("\n")[:3] for name in ("white.png", "clear.png")}
    assert of["white.png"] == of["clear.png"]  # both are all white
    assert Image.open("answers.png").height > 400


def test_what_is_wrong_without_an_attack_is_drawn_as_not_attacked(whole, tmp_path, monkeypatch):
    model, digits, drawn = infer.load(whole), data.load("digits"), {}
    x, y = digits.x_test.float() / 255, digits.y_test
    correct = model(x).argmax(1) == y
    wrong, right = int((~correct).nonzero()[0]), int(correct.nonzero()[0])
    strip = pictures.strip
    monkeypatch.setattr(
        pictures, "strip", lambda names, rows: drawn.update(rows) or strip(names, rows)
    )
    infer.main([str(whole), str(wrong), str(right), "--save", str(tmp_path / "a.png")])
    (clean, _), (change, _), (x_adv, titles) = drawn.values()
    assert titles[0] == "already wrong: not attacked" and " by expert " in titles[1]
    assert torch.equal(x_adv[0], clean[0]) and (change[0] == 0.5).all()
    torch.testing.assert_close(change[1] - 0.5, 5 * (x_adv[1] - clean[1]))  # at eps 0.1


def test_names_of_files_and_classes_are_no_formulas():
    x, names = torch.rand(2, 1, 8, 8), ["$^$.png", "label $\\frac$"]
    assert pictures.grid(names, x, names) and pictures.strip(names, {"clean": (x, names)})


def test_xor_demo_draws_figure_1(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    xor_demo.main([])
    assert Image.open(tmp_path / "xor.png").width > 500
    out = capsys.readouterr().out
    assert "collaboration" in out and "only g decides" not in out


def test_xor_demo_shows_how_the_trap_closes(tmp_path, capsys):
    out = ["--out", str(tmp_path / "trap.png"), "--animate", str(tmp_path / "trap.gif")]
    xor_demo.main(["--trap", *out])
    assert Image.open(tmp_path / "trap.gif").n_frames == 26
    assert "only g decides" in capsys.readouterr().out
