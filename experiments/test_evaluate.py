"""Statements about the full evaluation, and about AutoPGD, that must hold."""

import json
import os
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import data
import infer
from attacks import cross_entropy, cw_loss, pgd
from experiments import evaluate
from experiments.autopgd import apgd, apgd_checkpoints, auto_pgd, targeted_dlr_loss
from experiments.fixtures import interrupt
from models import Collaboration, ResNet


@pytest.fixture
def small_run(whole, tmp_path):
    """A copy of the small run, to write beside."""
    return shutil.copytree(whole, tmp_path / "copy")


def saved(run, name="attacks.json"):
    return json.loads((run / name).read_text())


def test_every_attack_at_every_eps_is_run_and_all_is_saved(small_run, capsys):
    argv = "--attack all --eps 0.05 0.2 --images 50 --steps 3 --queries 9 --seeds 2".split()
    evaluate.main([str(small_run), *argv])
    content = saved(small_run)
    assert Image.open(small_run / "attacks.png").width > 400
    assert content["command"]["queries"] == 9 and content["model"]["depth"] == 2
    assert content["images"] == data.load("digits").choose_test_images(50).tolist()
    assert capsys.readouterr().out.count("±") > 50
    assert list(content["eps"]) == ["0.05", "0.2"]
    for result in content["eps"].values():
        assert set(result["table"]["vote"]) == {"clean", "own", "worst", *evaluate.ATTACKS}
        for row, cells in result["table"].items():
            assert cells["worst"] <= min(cells.values())
            assert result["deviation"][row]["clean"] == 0
    deviations = [cells for r in content["eps"].values() for cells in r["deviation"].values()]
    assert any(any(cells.values()) for cells in deviations)  # the seeds are others


def test_an_evaluation_repeats_by_its_seed_and_overwrites_nothing(small_run):
    for seed in ("0", "0", "1"):
        evaluate.main([str(small_run), "--seed", seed, "--images", "100"])
    first, again, other = (saved(small_run, f"attacks{n}.json") for n in ("", "-2", "-3"))
    assert first["eps"] == again["eps"] != other["eps"]
    assert first["eps"].keys() == {"0.1"}  # the checkpoint's


def test_without_images_at_most_1000_are_attacked(small_run, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (1100, 8, 8), dtype=np.uint8)
    many = {
        f"{name}_{part}": v for part in data.PARTS for name, v in zip("xy", (x, x[:, 0, 0] % 10))
    }
    np.savez(tmp_path / "many.npz", **many)
    evaluate.main([str(small_run), "--data", str(tmp_path / "many.npz"), "--steps", "1"])
    assert len(saved(small_run)["images"]) == 1000


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
        ("--queries 0", "at least 1"),
        ("--seeds 0", "at least 1"),
        ("--restarts 0", "at least 1"),
        ("--images 0", "at least 1"),
        (f"--seed {10**30}", "between 0"),
        ("--part 3", "an expert, 1 to 2"),
        ("--part 0", "an expert, 1 to 2"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(argv, message, whole, refused):
    before = sorted(whole.iterdir())
    assert message in refused(evaluate, whole, *argv.split())
    assert sorted(whole.iterdir()) == before


def test_where_it_cannot_run_is_said_before_any_attack(whole, monkeypatch, refused):
    monkeypatch.setattr(evaluate, "report", interrupt)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert "cannot be written to" in refused(evaluate, whole)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "not under torchrun" in refused(evaluate, whole)


# ------------------------------------------------------------------------- its additional attacks


@pytest.fixture
def network():
    torch.manual_seed(0)
    model, x = (
        Collaboration([ResNet(8, 1, 10, 8) for _ in range(2)]).eval(),
        torch.rand(40, 1, 8, 8),
    )
    y = torch.where(torch.rand(40) < 0.7, model(x).argmax(1), torch.randint(10, (40,)))
    return model, x, y


def attacked(network, name, **how):
    """Which images the model still has correct, after an attack that is checked on the way."""
    model, x, y = network
    torch.manual_seed(3)
    x_adv = evaluate.attacks_at([name], eps=0.05, **{"steps": 3} | how)[name](*network)
    assert (x_adv >= x - 0.05).all() and (x_adv <= x + 0.05).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and not x_adv.requires_grad
    return model(x_adv).argmax(1) == y


def test_autopgd_stays_in_the_ball_repeats_by_seed_and_never_helps(network):
    model, x, y = network
    correct, still = model(x).argmax(1) == y, attacked(network, "apgd")
    assert 0 < still.sum() < correct.sum() and not (still & ~correct).any()
    assert torch.equal(attacked(network, "apgd"), still)


@pytest.mark.parametrize("name", ["pgd", "cw"])
def test_restarts_only_ever_add_to_what_is_fooled(name, network):
    once, often = attacked(network, name), attacked(network, name, restarts=5)
    assert (often <= once).all() and 0 < often.sum() < once.sum()


def test_an_autopgd_without_steps_is_refused(network):
    with pytest.raises(ValueError, match="steps is 0"):
        apgd(*network, eps=0.1, steps=0)


@pytest.mark.parametrize("loss", [cross_entropy, cw_loss])
@pytest.mark.parametrize("steps", [10, 40])
def test_autopgd_reaches_the_exact_corner_on_a_linear_model(loss, steps):
    torch.manual_seed(0)
    slope, x = torch.randn(16), 0.2 + 0.6 * torch.rand(30, 1, 4, 4)
    border = (x.flatten(1) @ slope).median()

    def model(z):  # so flat that CW's kappa is out of reach
        rise = 0.01 * (z.flatten(1) @ slope - border)
        return torch.stack([torch.zeros_like(rise), rise], 1)

    y = model(x).argmax(1)
    corner = x + 0.1 * (slope.sign() * (1 - 2 * y[:, None])).view_as(x)
    fooled = model(corner).argmax(1) != y
    for attack in (partial(apgd, loss=loss), auto_pgd):
        x_adv = attack(model, x, y, eps=0.1, steps=steps)
        assert torch.equal(model(x_adv).argmax(1) != y, fooled) and 0 < fooled.sum() < len(y)
        torch.testing.assert_close(x_adv[~fooled], corner[~fooled])  # others stop when fooled


def test_autopgd_halves_its_step_where_it_overshoots():
    """A narrow peak that steps of 2 eps jump over: only smaller steps come near it."""

    def model(z):
        rise = 1 - (z - 0.537).abs().flatten(1).mean(1)
        return torch.stack([torch.zeros_like(rise) + 5, rise], 1)

    x, y = torch.full((20, 1, 4, 4), 0.5), torch.zeros(20, dtype=torch.long)
    coarse = pgd(model, x, y, eps=0.1, alpha=0.2, steps=50, random_start=True, keep_best=True)
    fine = apgd(model, x, y, eps=0.1, steps=50)
    assert (fine - 0.537).abs().mean() < 0.002 < 0.02 < (coarse - 0.537).abs().mean()


def test_autopgd_checkpoints_are_those_of_its_paper():
    assert apgd_checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_targeted_dlr_loss_by_hand():
    logits = torch.tensor([[5.0, 1.0, 4.0, 2.0]])
    loss = targeted_dlr_loss(logits, torch.tensor([2]), torch.tensor([3]))
    assert loss.item() == pytest.approx(-(4 - 2) / (5 - (2 + 1) / 2))
