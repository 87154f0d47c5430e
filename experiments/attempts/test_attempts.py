"""Statements about what was tried that must hold."""

from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

import infer
from attacks import pgd
from experiments.attempts import falling, grown, misled, trades
from experiments.fixtures import train_small
from experiments.soft_synergy import SoftCollaboration, soft_loss
from models import Collaboration, ResNet
from train_collab import stage2_loss

HOW = {"n": 2, "eps": 0.1, "alpha": 0.05, "steps": 3, "random_start": False, "weights": "best"}
HOW |= {"sigma": 1.0, "lambda_": 1.0, "temperature": 2.0, "beta": 0.0, "balance": 1.0}


def batch(model_of):
    torch.manual_seed(0)
    model = model_of([ResNet(2, 1, 4, 8) for _ in range(2)])
    return model, torch.rand(6, 1, 8, 8), torch.randint(4, (6,))


def test_an_attacker_who_knows_the_router_has_as_many_ways_as_there_are_experts_and_two(
    monkeypatch,
):
    """The first of them is stage 2's own; each of the others makes another image."""
    losses = []
    for way in range(4):
        model, x, y = batch(Collaboration)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", lambda high, size, way=way: torch.tensor(way))
            losses.append(misled.misled_loss(model, x, y, Namespace(**HOW)).item())
    model, x, y = batch(Collaboration)
    assert losses[0] == pytest.approx(stage2_loss(model, x, y, Namespace(**HOW)).item())
    assert len(set(losses)) == 4


def test_the_temperature_falls_to_a_tenth():
    hot, x, y = batch(lambda experts: SoftCollaboration(experts, T=2.0))
    loss = falling.hot_loss(hot, x, y, Namespace(**HOW))
    other, x, y = batch(lambda experts: SoftCollaboration(experts, T=20.0))
    assert torch.equal(loss, soft_loss(other, x, y, Namespace(**HOW))) and hot.T == 2.0


def test_trades_asks_of_attacked_images_the_clean_answer():
    """By hand: cross-entropy of the clean images alone, their KL to the attacked ones, balance."""
    how = Namespace(**HOW | {"divergence": 5.0})
    model, x, y = batch(lambda experts: SoftCollaboration(experts, T=2.0))
    torch.manual_seed(1)
    loss = trades.trades_loss(model, x, y, how)

    model, x, y = batch(lambda experts: SoftCollaboration(experts, T=2.0))
    model.eval()
    clean = model(x).detach()

    def apart(q, y):
        return F.kl_div(q, clean, log_target=True, reduction="none").sum(1)

    torch.manual_seed(1)
    x_adv = pgd(model, x, y, 0.1, 0.05, 3, loss=apart, random_start=True)
    assert apart(model(x_adv), y).min() > 10 * apart(model(x), y).abs().max()
    model.train()
    (p, w), (q, v) = ((model(z), model.all_experts(z)[1].softmax(0).mean(1)) for z in (x, x_adv))
    balance = -(w * w.log()).sum() - (v * v.log()).sum()
    kl = F.kl_div(q, p, log_target=True, reduction="batchmean")
    torch.testing.assert_close(loss, 2 * (F.nll_loss(p, y) + 5 * kl - balance))


def test_trades_trains_a_mixture(tmp_path):
    train_small(tmp_path / "run", "--divergence", "3", script=trades)
    assert type(infer.load(tmp_path / "run")) is SoftCollaboration


def test_what_needs_an_attack_refuses_eps_0(refused):
    assert "(0, 1]" in refused(trades, "--eps", "0")
    assert "nobody is misled" in refused(misled, "--eps", "0")


@pytest.mark.parametrize("script", [falling, grown, misled])
def test_each_trains_in_two_stages_and_can_be_loaded(script, tmp_path):
    train_small(tmp_path / "run", script=script)
    assert (tmp_path / "run" / "submodels.pt").exists()
    infer.load(tmp_path / "run")
