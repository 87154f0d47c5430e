"""Statements about soft synergy that must hold."""

import shutil
from argparse import Namespace

import pytest
import torch

import infer
from attacks import expert_losses, routes
from baselines.models import SoftCollaboration
from baselines.plain import jointly_loss
from experiments import evaluate, soft_synergy
from experiments.fixtures import train_small
from experiments.soft_synergy import soft_loss
from models import Collaboration, Ensemble, ResNet
from train_submodel import best_expert_loss

HOW = {"n": 3, "eps": 0.1, "alpha": 0.03, "steps": 2, "random_start": False}


def batch(T=1.0):
    """Three experts whose scores differ, their images and labels: the same every time."""
    torch.manual_seed(0)
    model = SoftCollaboration([ResNet(2, 1, 4, 8) for _ in range(3)], T=T)
    for expert in model.experts:
        expert.e_head.weight.data *= 20
    return model, torch.rand(6, 1, 8, 8), torch.randint(4, (6,))


def settings(**changed):
    return Namespace(**HOW | {"sigma": 1.0, "beta": 0.0, "balance": 0.0} | changed)


@pytest.mark.parametrize("T, limit", [(1e-4, Collaboration), (1e5, Ensemble)])
def test_at_its_limits_the_most_confident_expert_answers_or_all_vote(T, limit):
    model, x, _ = batch(T)
    theirs = limit(model.experts).eval()(x).log_softmax(-1)
    assert torch.allclose(model.eval()(x), theirs, atol=1e-4)
    between = SoftCollaboration(model.experts, T=1.0).eval()(x)
    assert not torch.allclose(between, theirs, atol=1e-2)


def test_its_answer_is_the_mixture_of_probabilities():
    model, x, _ = batch(T=0.5)
    logits, score = Collaboration(model.eval().experts, "ehead").all_experts(x)
    p = ((score / 0.5).softmax(0)[:, :, None] * logits.softmax(-1)).sum(0)
    assert torch.allclose(model(x).exp(), p, atol=1e-6) and routes(model)


def test_at_infinite_temperature_it_is_trained_as_an_ensemble_for_its_vote():
    model, x, y = batch(T=1e6)
    same = Ensemble(batch()[0].experts)
    ours, theirs = soft_loss(model, x, y, settings()), jointly_loss(same, x, y, settings())
    assert torch.allclose(ours, theirs, atol=1e-4)
    sharper, *_ = batch(T=0.05)
    assert not torch.allclose(soft_loss(sharper, x, y, settings()), theirs, atol=1e-2)


def test_its_loss_is_the_formula():
    model, x, y = batch()
    logits, score = model.train().all_experts(x)
    losses, w = expert_losses(logits, y), score.softmax(0)
    sigma, beta, b = 0.5, 0.3, 2.0
    mixed = -sigma * torch.log((w * torch.exp(-losses / sigma)).sum(0))
    entropy = -(w.mean(1) * w.mean(1).log()).sum()
    right = 3 * (((1 - beta) * mixed + beta * losses.mean(0)).mean() - b * entropy)
    clean_alone = settings(eps=0, sigma=sigma, beta=beta, balance=b)  # the clean half alone
    assert torch.allclose(soft_loss(model, x, y, clean_alone), right, atol=1e-4)
    assert not torch.allclose(best_expert_loss(losses, sigma).mean(), right, atol=1e-2)


def test_the_loss_teaches_the_e_heads_and_the_balance_evens_them_out():
    model, x, y = batch()
    soft_loss(model, x, y, settings()).backward()
    assert all(expert.e_head.weight.grad.abs().max() > 1e-4 for expert in model.experts)

    def unevenness(balance):
        model, x, y = batch()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(20):
            optimizer.zero_grad()
            soft_loss(model, x, y, settings(eps=0, balance=balance)).backward()
            optimizer.step()
        w = model.train().all_experts(x)[1].softmax(0).mean(1)
        return w.max() - w.min()

    assert unevenness(balance=10.0) < unevenness(balance=0.0) / 2


def test_an_expert_that_is_not_used_at_all_leaves_the_gradients_finite():
    model, x, y = batch(T=1e-4)
    with torch.no_grad():
        assert model.eval().all_experts(x)[1].softmax(0).mean(1).min() == 0
    soft_loss(model, x, y, settings(eps=0, balance=1.0)).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.slow
def test_a_run_keeps_its_temperature_and_shows_weights(tmp_path, capsys):
    flags = ["--temperature", "2", "--epochs", "1"]
    train_small(tmp_path / "run", *flags, script=soft_synergy)
    assert infer.load(tmp_path / "run").T == 2
    infer.main([str(tmp_path / "run"), "0"])
    out = capsys.readouterr().out
    assert "mixture" in out and ", weight 0." in out


def test_a_share_above_1_is_refused(refused):
    assert "is a share" in refused(soft_synergy, "--beta", "1.5")


def test_an_soe_is_evaluated_at_a_temperature(whole, tmp_path, capsys, refused):
    shutil.copytree(whole, tmp_path / "run")
    flags = [str(tmp_path / "run"), "--temperature", "1"]
    evaluate.main([*flags, "--steps", "1", "--images", "20"])
    assert "mixture" in capsys.readouterr().out
    assert "E heads" in refused(evaluate, *flags, "--part", "vote")
