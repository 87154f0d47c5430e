"""Statements about the evaluation that must hold."""

import json
import os
import shutil

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import data
import infer
from experiments import evaluate
from experiments.fixtures import interrupt
from experiments.intervals import images
from models import Ensemble


@pytest.fixture
def small_run(whole, tmp_path):
    """A copy of the small run, to write beside."""
    return shutil.copytree(whole, tmp_path / "copy")


def saved(run, name="attacks.json"):
    return json.loads((run / name).read_text())


def test_every_attack_at_every_eps_is_run_and_all_is_saved(small_run, capsys):
    argv = "--eps 0.05 0.2 --images 50 --steps 3 --queries 9 --seeds 2 --attack".split()
    csv = ["--csv", str(small_run / "numbers.csv")]
    evaluate.main([str(small_run), *argv, *evaluate.ATTACKS, *csv])
    content = saved(small_run)
    numbers = pd.read_csv(small_run / "numbers.csv", index_col=["eps", "row"])
    for eps, result in content["eps"].items():
        for row, cells in result["table"].items():
            assert numbers.loc[float(eps), row].dropna().to_dict() == pytest.approx(cells)
    assert Image.open(small_run / "attacks.png").width > 400
    assert content["command"]["queries"] == 9 and content["model"]["depth"] == 2
    output = capsys.readouterr().out
    assert output.count("±") > 50 and "±: the standard deviation over the seeds" in output
    assert list(content["eps"]) == ["0.05", "0.2"]
    spread = []
    for result in content["eps"].values():
        assert set(result["table"]["vote"]) == {"clean", "own", *evaluate.ATTACKS}
        cells = result["table"]["collaboration"]
        assert cells["worst"] <= min(cells.values())
        assert {cells["clean"] for cells in result["deviation"].values()} == {0}
        spread += [max(cells.values()) for cells in result["deviation"].values()]
    assert max(spread) > 0  # the seeds are others


@pytest.mark.parametrize(
    "square, pgd_alone, square_took", [("101110", 2, 1), ("100110", 1, 2), ("111111", 2, 0)]
)
def test_it_says_which_attack_took_how_many_images_and_how_many_alone(
    square, pgd_alone, square_took
):
    columns = {"clean": "111110", "pgd": "110010", "square": square, "worst": "100010"}
    correct = {name: images([bits])[0] for name, bits in columns.items()}
    assert evaluate.who_decided(correct) == {
        "pgd": {"took": 2, "alone": pgd_alone},
        "square": {"took": square_took, "alone": min(square_took, 1)},
    }


class Bright(nn.Module):
    """An expert that says 0 of bright images and 1 of dark ones. A great slope hides its gradient,
    since the softmax is then exactly 1."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def logits(self, x):
        return self.slope * (x.flatten(1).mean(1)[:, None] - 0.5) * torch.tensor([1.0, -1.0])


@pytest.mark.parametrize(
    "slope, table, words",
    [
        (9.0, {"pgd": 40.0, "apgd": 30.0, "square": 30.0}, []),
        (9.0, {"pgd": 40.0, "apgd": 41.0}, ["fewer images than PGD"]),
        (9.0, {"pgd": 40.0, "apgd": 30.0, "square": 29.0}, ["Square, without gradients"]),
        (9.0, {"pgd": 40.0, "apgd": 30.0, "transfer3": 30.0}, []),
        (9.0, {"pgd": 40.0, "apgd": 30.0, "transfer30": 29.0}, ["made against other networks"]),
        (9e5, {}, ["exactly zero on 100 %", "correct at eps 1, where any"]),
    ],
)
def test_what_a_referee_would_doubt_is_said(slope, table, words):
    x, y = torch.full((6, 1, 4, 4), 0.6), torch.zeros(6, dtype=torch.long)
    doubts = evaluate.doubts(Ensemble([Bright(slope)]), x, y, table)
    assert len(doubts) == len(words) and all(word in line for word, line in zip(words, doubts))


def test_an_evaluation_repeats_by_its_seed_and_overwrites_nothing(small_run):
    for seed in ("0", "0", "1"):
        evaluate.main([str(small_run), "--seed", seed, "--images", "100", "--steps", "5"])
    first, again, other = (saved(small_run, f"attacks{n}.json") for n in ("", "-2", "-3"))
    assert first["eps"] == again["eps"] != other["eps"]
    assert first["eps"].keys() == {"0.1"}  # the checkpoint's


def test_a_part_of_the_model_is_attacked_alone(small_run, capsys):
    for part, row in (("vote", "vote"), ("2", "collaboration")):
        evaluate.main([str(small_run), "--part", part, "--steps", "2"])
        assert f"made against the {row}" in capsys.readouterr().out
    alone = saved(small_run, "attacks-2.json")["eps"]["0.1"]["table"]
    images = data.load("digits").test_images("cpu")
    whole = infer.evaluate(infer.load(small_run), *images, {})
    assert alone["expert 1"]["clean"] == whole["expert 2"]["clean"] != whole["expert 1"]["clean"]
    assert alone["expert 1"]["pgd"] == alone["collaboration"]["pgd"]


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--attack pgd magic", "invalid choice: 'magic'"),
        ("--attack transfer3", "needs --transfer FILE"),
        ("--eps 0.1 2", "(0, 1]"),
        ("--steps 0", "at least 1"),
        (f"--seed {10**30}", "at most 9,007,199,254,740,991"),
        ("--part 3", "an expert, 1 to 2"),
        ("--part 0", "an expert, 1 to 2"),
        ("--part vote --attack adaptive", "no score says who"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(argv, message, whole, refused):
    before = sorted(whole.iterdir())
    assert message in refused(evaluate, whole, *argv.split())
    assert sorted(whole.iterdir()) == before


def test_where_it_cannot_write_is_said_before_any_attack(whole, monkeypatch, refused):
    monkeypatch.setattr(evaluate, "measure", interrupt)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written to" in refused(evaluate, whole)
