"""Statements about what was tried that must hold."""

from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

import infer
from attacks import expert_losses, pgd
from experiments import soft_synergy
from experiments.attempts import averaged, falling, grown, joint, misled, own_eps, trades
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


@pytest.mark.parametrize(
    "script, kind",
    [(trades, SoftCollaboration), (own_eps, SoftCollaboration), (joint, joint.JointCollaboration)],
)
def test_each_trains_and_can_be_loaded(script, kind, tmp_path):
    train_small(tmp_path / "run", script=script)
    assert type(infer.load(tmp_path / "run")) is kind


def test_each_expert_learns_the_images_of_its_own_eps():
    """Without this term the loss is soft synergy's, on images attacked at several radii."""
    losses = []
    for own in (0.0, 2.0):
        model, x, y = batch(SoftCollaboration)
        losses.append(own_eps.own_eps_loss(model, x, y, Namespace(**HOW, own=own)))
    model, x, y = batch(SoftCollaboration)
    model.eval()
    halves = (slice(0, 3), 0.05, 0.025), (slice(3, 6), 0.15, 0.075)
    x_adv = torch.cat([pgd(model, x[half], y[half], *ball, 3) for half, *ball in halves])
    model.train()
    l_1, l_2 = expert_losses(model.all_experts(x_adv)[0], y)
    mine = torch.cat([l_1[:3], l_2[3:]]).mean()
    torch.testing.assert_close(losses[1] - losses[0], 2 * 2 * mine)


def test_one_head_weighs_the_features_of_all():
    """A score depends on every expert; an E head's on its own alone."""
    for model_of, depends in ((joint.JointCollaboration, True), (SoftCollaboration, False)):
        model, x, _ = batch(model_of)
        logits, score = model.all_experts(x)
        score[0].sum().backward()  # of the first expert
        assert bool(model.experts[1].backbone[0].weight.grad.any()) == depends
        assert logits.shape == (2, 6, 4) and score.shape == (2, 6)


def test_what_answers_is_the_average_of_the_weights(tmp_path):
    """Of two steps, of all images each: D of the first, 1 - D of the second."""
    how = ["--batch-size", "2000", "--steps", "1"]
    for epochs in ("1", "2"):
        train_small(tmp_path / epochs, *how, "--epochs", epochs, script=soft_synergy)
    train_small(tmp_path / "mean", *how, "--epochs", "2", "--decay", "0.75", script=averaged)
    first, second, mean = (infer.load(tmp_path / run).state_dict() for run in ("1", "2", "mean"))
    for key in first:
        if first[key].is_floating_point():
            torch.testing.assert_close(mean[key], 0.75 * first[key] + 0.25 * second[key])


def test_what_needs_an_attack_refuses_eps_0(refused):
    assert "(0, 1]" in refused(trades, "--eps", "0")
    assert "nobody is misled" in refused(misled, "--eps", "0")
    assert "half of it" in refused(own_eps, "--eps", "0")


def test_what_makes_no_sense_is_refused(refused):
    assert "two experts" in refused(own_eps, "--n", "1")
    assert "[0, 1)" in refused(averaged, "--decay", "1")


@pytest.mark.parametrize("script", [falling, grown, misled])
def test_each_trains_in_two_stages_and_can_be_loaded(script, tmp_path):
    train_small(tmp_path / "run", script=script)
    assert (tmp_path / "run" / "submodels.pt").exists()
    infer.load(tmp_path / "run")
