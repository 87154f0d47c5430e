"""Statements about the paper, and about this code, that must hold.

    python -m pytest

The default run is trained once, and shared by the tests that need a trained model.
"""

import errno
import importlib
import json
import os
import re
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import data
import infer
import train_collab
import train_submodel
import xor_demo
from attacks import (
    adaptive,
    apgd,
    apgd_checkpoints,
    cw_loss,
    hijack_loss,
    pgd,
    reweighing_loss,
    soft_routing_loss,
    square,
    targeted_dlr_loss,
)
from models import Collaboration, Ensemble, ResNet, rectified_score, vote
from support import files, options

SMALL = "--depth 2 --n 2 --epochs 4 --steps 2 --eps 0.1 --device cpu".split()


# ------------------------------------------------------------------ Eq. 7: the smooth minimum


@pytest.mark.parametrize("sigma", [0.05, 1.0, 7.0])
@pytest.mark.parametrize("M", [1, 2, 3, 5])
def test_smooth_minimum_lies_within_eq_7_bounds(sigma, M):
    losses = 5 * torch.rand(M, 1000, dtype=torch.float64)
    smooth, minimum = train_submodel.best_expert_loss(losses, sigma), losses.min(0).values
    assert (smooth <= minimum + 1e-12).all()
    assert (smooth >= minimum - sigma * np.log(M) - 1e-12).all()


def test_smooth_minimum_reaches_both_bounds_of_eq_7():
    equal, apart = torch.full((3, 1), 2.0), torch.tensor([[2.0], [90.0], [90.0]])
    assert train_submodel.best_expert_loss(equal, 1.0).item() == pytest.approx(2 - np.log(3))
    assert train_submodel.best_expert_loss(apart, 1.0).item() == pytest.approx(2)


@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_gradient_of_the_smooth_minimum_weighs_experts_by_softmax(sigma):
    losses = (3 * torch.rand(4, 50)).requires_grad_()
    train_submodel.best_expert_loss(losses, sigma).sum().backward()
    torch.testing.assert_close(losses.grad, torch.softmax(-losses.detach() / sigma, 0))


@pytest.mark.parametrize("weights", ["best", "confidence"])
@pytest.mark.parametrize("confidence", ["ehead", "rectified"])
def test_losses_of_both_stages_follow_the_formula(confidence, weights):
    """Values, and gradients for every parameter: what is stopped, is."""
    torch.manual_seed(0)
    model = Collaboration([ResNet(2, 1, 10, 8) for _ in range(3)], confidence)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # so that every attack below meets the same statistics
    defaults = {name: default for name, (default, *_) in options.OPTIONS.items()}
    changed = {"alpha": 0.01, "lambda_": 0.7, "sigma": 0.5, "weights": weights}
    settings = Namespace(**defaults | changed)
    x, y = torch.rand(6, 1, 8, 8), torch.randint(10, (6,))

    def by_hand(x, y, weights):
        outputs = [expert(x) for expert in model.experts]  # train mode: the whole batch
        total = 0
        for i in range(len(x)):
            f = [logits[i].softmax(0) for logits, _ in outputs]
            g = [e[i].sigmoid() for _, e in outputs]
            p_y = [f_j[y[i]] for f_j in f]
            product = [f_j.max() * g_j for f_j, g_j in zip(f, g)]
            if weights == "best":
                loss = -0.5 * torch.log(sum(p_j ** (1 / 0.5) for p_j in p_y))
            else:
                w = torch.stack(product).detach().softmax(0)
                loss = -sum(w_j * p_j.log() for w_j, p_j in zip(w, p_y))
            if confidence == "rectified":  # no gradient through max_k f_k where it is right
                maximum = [f_j.max().detach() if f_j.argmax() == y[i] else f_j.max() for f_j in f]
                g = [m * g_j for m, g_j in zip(maximum, g)]
            target = [p_j.detach() for p_j in p_y]
            bce = -sum(t * q.log() + (1 - t) * (1 - q).log() for t, q in zip(target, g)) / 3
            total = total + (loss + 0.7 * bce) / len(x)
        return total

    def assert_same(ours, hand):
        torch.testing.assert_close(ours, hand)
        parameters = list(model.parameters())
        for a, b in zip(*(torch.autograd.grad(loss, parameters) for loss in (ours, hand))):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    model.eval()
    attack = {"eps": 0.03, "alpha": 0.01, "steps": 10}
    alone = [pgd(lambda z, e=e: e(z)[0], x, y, **attack) for e in model.experts]
    together = pgd(model, x, y, **attack)
    model.train()
    stage1 = 3 * (by_hand(x, y, "best") + by_hand(torch.cat(alone), y.repeat(3), "best"))
    stage2 = 3 * (by_hand(x, y, weights) + by_hand(together, y, weights))
    assert_same(train_submodel.stage1_loss(model, settings)(x, y), stage1)
    assert_same(train_collab.stage2_loss(model, settings)(x, y), stage2)


def test_confidence_learns_p_y_and_p_y_does_not_learn_the_confidence():
    score, p_y = (
        torch.zeros(2, 1, requires_grad=True),
        torch.tensor([[0.9], [0.1]]).requires_grad_(),
    )
    train_submodel.confidence_loss(score, p_y).sum().backward()
    assert p_y.grad is None
    torch.testing.assert_close(score.grad, (0.5 - p_y.detach()) / 2)


# --------------------------------------------------------------------- the networks, Algorithm 1


def test_e_head_of_a_resnet20_has_128_parameters():
    for image_size, channels in ((32, 3), (8, 1)):
        expert = ResNet(20, channels, 10, image_size)
        assert sum(p.numel() for p in expert.e_head.parameters()) == 128


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (1, 28, 20)])
@pytest.mark.parametrize("depth", [2, 8, 14, 20])
def test_resnet_gives_float32_logits_and_a_confidence(depth, shape):
    x = torch.rand(2, *shape)
    with torch.autocast("cpu", torch.bfloat16):
        logits, confidence = ResNet(depth, shape[0], 7, shape[1:])(x)
    assert (logits.shape, confidence.shape) == ((2, 7), (2,))
    assert logits.dtype == confidence.dtype == torch.float32


def test_resnet_has_the_paper_depth():
    layers = [
        m for m in ResNet(20).modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    assert len(layers) + 1 == 20  # and the P head


class Says(nn.Module):
    """An expert that gives every image the same logits, and a confidence of its own."""

    def __init__(self, logits, confidence):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.confidence = nn.Parameter(torch.tensor(confidence))

    def forward(self, x):
        return self.logits.expand(len(x), -1), self.confidence[: len(x)]


def three_experts(confidence="ehead"):
    return Collaboration(
        [
            Says([3.0, 0.0], [0.1, -2.0, 0.0]),
            Says([0.0, 1.0], [0.3, -1.0, -9.0]),
            Says([0.0, 5.0], [0.2, -3.0, 9.0]),
        ],
        confidence,
    )


def test_algorithm_1_returns_the_most_confident_expert():
    model, x = three_experts(), torch.rand(3, 1, 8, 8)
    assert model(x).tolist() == [[0, 1], [0, 1], [0, 5]]  # experts 2, 2 and 3
    model(x).sum().backward()  # differentiable through the chosen experts' logits alone
    assert [expert.logits.grad.sum().item() for expert in model.experts] == [0, 4, 2]


def test_one_expert_collaborates_with_itself():
    x = torch.rand(3, 1, 8, 8)
    assert Collaboration([Says([3.0, 0.0], [0.1, -2.0, 0.0])])(x).tolist() == [[3, 0]] * 3


def test_rectified_score_is_the_product_of_both_heads():
    logits, confidence = torch.randn(3, 50, 4), torch.randn(3, 50)
    product = logits.softmax(-1).max(-1).values * confidence.sigmoid()
    torch.testing.assert_close(rectified_score(logits, confidence).sigmoid(), product)
    assert rectified_score(torch.tensor([[99.0, 0.0]]), torch.tensor([99.0])).isfinite().all()


def test_the_rectified_rule_chooses_by_the_product():
    x = torch.rand(1, 1, 8, 8)  # g alone prefers expert 2, the product expert 3
    assert three_experts()(x).tolist() == [[0, 1]]
    assert three_experts("rectified")(x).tolist() == [[0, 5]]


def test_rectified_score_stops_gradient_where_the_prediction_is_right():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]], requires_grad=True)
    rectified_score(logits, torch.zeros(2), torch.tensor([0, 1])).sum().backward()
    assert (logits.grad[0] == 0).all() and (logits.grad[1] != 0).all()


def test_vote_is_the_log_of_the_mean_probability():
    logits = torch.tensor([[[0.0, 0.0]], [[200.0, 0.0]]])
    torch.testing.assert_close(vote(logits)[:, 0], torch.tensor([0.75]).log())
    torch.testing.assert_close(vote(logits)[:, 1], torch.tensor([0.25]).log())
    logits = torch.tensor([[[0.0, 200.0]], [[0.0, 300.0]]])
    assert vote(logits)[0, 0].item() == pytest.approx(-200 - np.log(2))  # p underflows
    model = Ensemble([Says([0.0, 0.0], [9.0]), Says([200.0, 0.0], [0.0])])
    torch.testing.assert_close(model(torch.rand(1, 1, 8, 8)).exp().sum(), torch.tensor(1.0))


def test_running_the_answering_expert_alone_changes_nothing():
    torch.manual_seed(0)
    model = Collaboration([ResNet(8, 3, 10, 32) for _ in range(3)]).eval()
    model.score = lambda _, confidence, y: confidence - confidence.mean(1, keepdim=True)
    x = torch.rand(24, 3, 32, 32)
    assert len(model.all_experts(x)[1].argmax(0).unique()) > 1
    alone = x.clone().requires_grad_()
    dense = x.clone().requires_grad_()
    a, b = model(alone), model.combine(*model.all_experts(dense))
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(
        torch.autograd.grad(a.square().sum(), alone), torch.autograd.grad(b.square().sum(), dense)
    )


# ------------------------------------------------------------------------------------- attacks


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = Collaboration([ResNet(8, 1, 10, 8) for _ in range(2)])
    return model, torch.rand(40, 1, 8, 8), torch.randint(10, (40,))


@pytest.mark.parametrize("how", [{}, {"loss": "cw"}, {"momentum": 0.9}, {"keep_best": True}])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_stays_in_the_ball_and_in_the_pixel_range(network, how, random_start):
    model, x, y = network
    x[:, :, :2], x[:, :, 2:4] = 0, 1
    y = model.eval()(x).argmax(1)
    for eps in (0.03, 0.3):
        x_adv = pgd(model, x, y, eps, eps / 3, 5, random_start=random_start, **how)
        assert (x_adv >= x - eps).all() and (x_adv <= x + eps).all()
        assert x_adv.min() >= 0 and x_adv.max() <= 1 and not x_adv.requires_grad
        assert (x_adv != x).any()


@pytest.fixture
def linear():
    """A two-class linear model on 4 x 4 images, images, labels; the worst corners at eps 0.1."""
    torch.manual_seed(0)
    weight = torch.randn(2, 16)
    x = 0.2 + 0.6 * torch.rand(30, 1, 4, 4)
    border = (x.flatten(1) @ (weight[1] - weight[0])).median()

    def model(z):  # so flat that CW's kappa is out of reach
        rise = 0.01 * (z.flatten(1) @ (weight[1] - weight[0]) - border)
        return torch.stack([torch.zeros_like(rise), rise], 1)

    y = model(x).argmax(1)
    away = (weight[1] - weight[0]).sign() * (1 - 2 * y[:, None])  # raises the other class
    return model, x, y, x + 0.1 * away.view_as(x)


@pytest.mark.parametrize("how", [{"steps": 20}, {"steps": 1, "alpha": 0.1}, {"restarts": 2}])
@pytest.mark.parametrize("loss", ["ce", "cw"])
def test_pgd_reaches_the_exact_corner_on_a_linear_model(how, loss, linear):
    model, x, y, corner = linear
    how = {"steps": 20, "alpha": 0.02, "random_start": "restarts" in how} | how
    torch.testing.assert_close(pgd(model, x, y, eps=0.1, loss=loss, **how), corner)


def test_cw_loss_sees_negative_logits():
    logits = torch.tensor([[-1.0, -5.0, -3.0]], requires_grad=True)
    assert cw_loss(logits, torch.tensor([0])).item() == -2
    cw_loss(logits, torch.tensor([0])).sum().backward()
    assert logits.grad.tolist() == [[-1, 0, 1]]


@pytest.mark.parametrize("training", [False, True])
def test_pgd_leaves_the_model_as_it_was(network, training):
    """Weights, their gradients and the mode always; batch statistics in the eval mode asked for."""
    model, x, y = network
    model.train(training)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pgd(model, x, y, 0.1, 0.03, 3, random_start=True, restarts=2, keep_best=True)
    assert all(module.training == training for module in model.modules())
    assert all((p.grad == 1).all() and p.requires_grad for p in model.parameters())
    moved = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert all("running" in k or "num_batches" in k for k in moved) and bool(moved) == training


@pytest.mark.parametrize("momentum, second", [(0.5, [0, 2, 0, 0]), (1.5, [2, 2, -2, 2])])
def test_momentum_adds_up_gradients_of_mean_size_one(momentum, second):
    """Two steps of MIM by hand, on logits whose slope changes after the first step."""
    slopes = iter([[8.0, 8.0, -8.0, 8.0], [-1.0, 1.0, 1.0, -1.0]])

    def model(z):
        rise = (z.flatten(1) * torch.tensor(next(slopes))).sum(1) * 1e-3
        return torch.stack([torch.zeros_like(rise), rise], 1)

    x = torch.full((1, 1, 2, 2), 0.5)
    x_adv = pgd(model, x, torch.tensor([0]), eps=0.3, alpha=0.1, steps=2, momentum=momentum)
    torch.testing.assert_close(x_adv.flatten(), 0.5 + 0.1 * torch.tensor(second))


def test_restarts_keep_the_worst_end_point_of_each_image():
    def model(z):  # a basin on either side of 0.5; only the upper one ends above the border
        d = z.flatten(1).mean(1) - 0.5
        rise = torch.where(d > 0, 3 * d, -d) - 0.5
        return torch.stack([torch.zeros_like(rise), rise], 1)

    x, y = torch.full((50, 1, 1, 1), 0.5), torch.zeros(50, dtype=torch.long)
    how = {"eps": 0.3, "alpha": 0.1, "steps": 5, "random_start": True}
    torch.manual_seed(0)
    once, often = pgd(model, x, y, **how), pgd(model, x, y, restarts=12, **how)
    assert 10 < (once > 0.5).sum() < 40
    assert (often > 0.79).all()


def test_keep_best_never_loses_by_more_steps_or_restarts(network):
    model, x, y = network
    y = model.eval()(x).argmax(1)

    def right(**how):
        torch.manual_seed(0)
        how = {"steps": 3, "random_start": True, "keep_best": True} | how
        x_adv = pgd(model, x, y, 0.05, 0.05, **how)
        with torch.no_grad():
            logits = model(x_adv)
        return logits.argmax(1) == y, F.cross_entropy(logits, y, reduction="none")

    few, few_loss = right()
    assert 0 < few.sum() < len(y)
    for how in ({"steps": 9}, {"restarts": 3}):
        many, many_loss = right(**how)
        assert (many <= few).all() and many.sum() < few.sum()
        assert (many_loss >= few_loss - 1e-5)[many].all()


@pytest.mark.parametrize("name", infer.ATTACKS)
def test_every_attack_stays_in_the_ball_repeats_by_seed_and_never_helps(name, network):
    model, x, y = network
    y = torch.where(torch.rand(len(y)) < 0.7, model.eval()(x).argmax(1), y)
    attack = infer.make_attacks([name], eps=0.05, steps=4, queries=30)[name]
    torch.manual_seed(3)
    x_adv = attack(model, x, y)
    torch.manual_seed(3)
    assert torch.equal(attack(model, x, y), x_adv)
    assert (x_adv >= x - 0.05).all() and (x_adv <= x + 0.05).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and not x_adv.requires_grad
    right, still = model(x).argmax(1) == y, model(x_adv).argmax(1) == y
    assert 0 < still.sum() < right.sum() and not (still & ~right).any()


@pytest.mark.parametrize("loss", ["ce", "cw"])
@pytest.mark.parametrize("steps", [10, 40])
def test_autopgd_reaches_the_exact_corner_on_a_linear_model(loss, steps, linear):
    model, x, y, corner = linear
    x_adv = apgd(model, x, y, eps=0.1, steps=steps, loss=loss)
    fooled = model(corner).argmax(1) != y  # these stop at the first point that fools
    assert torch.equal(model(x_adv).argmax(1) != y, fooled) and 0 < fooled.sum() < len(y)
    torch.testing.assert_close(x_adv[~fooled], corner[~fooled])


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


def test_square_reaches_the_corner_of_a_linear_model_on_a_4_by_4_image(linear):
    model, x, y, corner = linear
    torch.manual_seed(0)
    x_adv = square(model, x, y, eps=0.1, n_queries=1500)
    fooled = model(corner).argmax(1) != y
    assert torch.equal(model(x_adv).argmax(1) != y, fooled) and 0 < fooled.sum() < len(y)
    torch.testing.assert_close(x_adv[~fooled], corner[~fooled])


def test_square_does_no_worse_with_more_queries(network):
    model, x, y = network
    y = model.eval()(x).argmax(1)
    right = []
    for n_queries in (1, 10, 100, 300):
        torch.manual_seed(0)
        x_adv = square(model, x, y, eps=0.04, n_queries=n_queries)
        right.append(model(x_adv).argmax(1) == y)
    assert all((more <= fewer).all() for fewer, more in zip(right, right[1:]))
    assert right[-1].sum() < right[0].sum()


def test_square_queries_only_images_that_are_still_right_in_full_batches():
    sizes = []

    def model(z):  # wrong where the image is bright at all
        sizes.append(len(z))
        return torch.stack([0.53 - z.flatten(1).mean(1), z.flatten(1).mean(1) - 0.53], 1)

    x, y = torch.full((25, 1, 8, 8), 0.5), torch.zeros(25, dtype=torch.long)
    x[:5] = 0.9
    torch.manual_seed(0)
    square(model, x, y, eps=0.1, n_queries=60, batch_size=10)
    assert sizes[:3] == [10, 10, 5] and sizes[3:5] == [10, 10]  # all, then the 20 that are right
    assert all(size in (10, 20 % 10) or size < 10 for size in sizes) and sum(sizes) < 25 * 61


class Routed(nn.Module):
    """Logits that never change, and a confidence that rises with the brightness times `slope`."""

    def __init__(self, logits, slope):
        super().__init__()
        self.logits, self.slope = torch.tensor(logits), slope

    def forward(self, x):
        return self.logits.expand(len(x), -1), self.slope * (x.flatten(1).mean(1) - 0.55)


def test_the_adaptive_attack_sees_what_the_argmax_hides():
    """Expert 1 is always right and answers, expert 2 always wrong: only the E heads can be led."""
    model = Collaboration([Routed([3.0, 0.0], -1.0), Routed([0.0, 3.0], 1.0)]).eval()
    logits = model.experts[0].logits

    def with_gradient(x):  # what PGD sees: logits that do not depend on x
        return model(x) + 0 * x.flatten(1).sum(1, keepdim=True)

    x, y = torch.full((6, 1, 8, 8), 0.5), torch.zeros(6, dtype=torch.long)
    assert torch.equal(model(x), logits.expand(6, -1))
    blind = pgd(with_gradient, x, y, 0.1, 0.02, 10, keep_best=True)
    assert (model(blind).argmax(1) == y).all()
    assert (model(adaptive(with_gradients(model), x, y, 0.1, 0.02, 10)).argmax(1) != y).all()


def with_gradients(model):
    """The same model; its constant logits get a zero gradient, as real ones would have."""
    original = model.all_experts

    def all_experts(x):
        logits, score = original(x)
        return logits + 0 * x.flatten(1).sum(1)[None, :, None], score

    model.all_experts = all_experts
    return model


def test_soft_routing_and_hijack_by_hand():
    logits = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])  # [M, B, K]
    score, y = torch.tensor([[0.3], [0.1]]), torch.tensor([0])
    p, w = logits.softmax(-1)[:, 0, 0], (score / 0.1).softmax(0)[:, 0]
    torch.testing.assert_close(
        soft_routing_loss((logits, score), y, T=0.1), -(w * p).sum().log()[None]
    )
    expected = -p[1].log() + score.log_softmax(0)[1]
    torch.testing.assert_close(hijack_loss((logits, score), y, j=1), expected)
    margin = torch.tensor([1.0, -2.0])
    w = (-margin.abs()).softmax(0)
    torch.testing.assert_close(reweighing_loss((logits, score), y), -(w * p.log()).sum()[None])


def test_the_adaptive_attack_takes_any_model_with_all_experts(network):
    model, x, y = network
    vote_ = Ensemble(model.experts).eval()
    y = vote_(x).argmax(1)
    alone, known = (
        (vote_(attack).argmax(1) == y).sum()
        for attack in (
            pgd(vote_, x, y, 0.05, 0.01, 5, keep_best=True),
            adaptive(vote_, x, y, 0.05, 0.01, 5),
        )
    )
    assert known <= alone


def test_attacks_refuse_what_makes_no_sense(network):
    model, x, y = network
    for attack, wrong in (
        (square, {"n_queries": 0}),
        (square, {"n_queries": 5, "loss": "mse"}),
        (apgd, {"steps": 0}),
        (apgd, {"steps": 5, "loss": "mse"}),
    ):
        with pytest.raises(ValueError):
            attack(model, x, y, 0.1, **wrong)
    for wrong in ({"eps": 0}, {"alpha": -1}, {"steps": 0}, {"restarts": 0}, {"loss": "mse"}):
        with pytest.raises(ValueError):
            pgd(*network, **{"eps": 0.1, "alpha": 0.1, "steps": 1} | wrong)


# ----------------------------------------------------------------------------------------- XOR


def test_on_xor_the_vote_fails_and_the_collaboration_succeeds():
    for seed in range(20):
        voted, collaborated, _ = xor_demo.accuracies(seed)
        assert voted < 76 and collaborated > 97


def test_on_xor_the_best_of_m_error_alone_is_a_trap():
    reached = [xor_demo.accuracies(seed, xor_demo.trap_loss)[1] for seed in range(10)]
    assert sum(accuracy < 76 for accuracy in reached) >= 3


def test_xor_demo_draws_figure_1(tmp_path, capsys):
    assert xor_demo.main(["--out", str(tmp_path / "xor.png")]) == 0
    assert Image.open(tmp_path / "xor.png").width > 500
    assert "collaboration" in capsys.readouterr().out


# ------------------------------------------------------------------------------------ training


@pytest.fixture(scope="session")
def default_run(tmp_path_factory):
    """The folder of `python train_collab.py --eps 0.03 --n 3`, and its metrics."""
    out = tmp_path_factory.mktemp("default") / "run"
    assert train_collab.main(["--eps", "0.03", "--n", "3", "--out", str(out)]) == 0
    return out, json.loads((out / "metrics.json").read_text())


def test_one_default_epoch_lowers_the_loss(tmp_path):
    assert train_submodel.main(["--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    checkpoint, dataset = files.load_checkpoint(tmp_path / "run"), data.load("digits")
    settings, trained = Namespace(**checkpoint["settings"]), infer.load(tmp_path / "run")
    torch.manual_seed(settings.seed)
    untrained = infer.build(checkpoint["settings"])
    x, y = dataset.x_train[:256].float() / 255, dataset.y_train[:256]
    before, after = (
        train_submodel.stage1_loss(model, settings)(x, y).item() for model in (untrained, trained)
    )
    assert after < before - 1


def test_the_default_run_is_accurate_and_robust(default_run):
    row = default_run[1]["table"]["collaboration"]
    assert row["clean"] >= 95 and row["pgd-20"] >= 85
    assert row["own"] == row["pgd-20"] <= row["clean"]


def test_e_heads_choose_better_than_the_best_fixed_expert(default_run):
    """On all 1,797 digits, clean. On the 360 unseen ones alone, or under attack, an expert that has
    learned nearly every class can do better: the README counts how often."""
    model, digits = infer.load(default_run[0]), data.load("digits")
    x = torch.cat([digits.x_train, digits.x_test]).float() / 255
    y = torch.cat([digits.y_train, digits.y_test])
    disagree = infer.specialisation(*infer.ask_experts(model, x), y)["disagree"]
    assert disagree["images"] >= 100
    assert disagree["best fixed"] < disagree["chosen"] <= disagree["any"]


def test_no_expert_of_the_default_run_starves(default_run):
    last = default_run[1]["epochs"][-1]
    for key in ("answered", "best"):
        assert sum(last[key]) == pytest.approx(100) and min(last[key]) > 5  # percent


def test_a_run_leaves_its_folder_as_the_readme_says(default_run):
    out, metrics = default_run
    names = {"model.pt", "submodels.pt", "metrics.json", "curves.png"}
    assert {path.name for path in out.iterdir()} == names
    assert set(metrics["table"]) >= {"expert 1", "vote", "collaboration", "oracle", "any"}
    stages = [entry["stage"] for entry in metrics["epochs"]]
    assert stages == sorted(stages) and stages.count(1) == stages.count(2)
    submodels = files.load_checkpoint(out / "submodels.pt")
    assert {entry["stage"] for entry in submodels["history"]} == {1}


def test_a_loaded_model_is_an_ordinary_classifier(default_run):
    model = infer.load(default_run[0] / "model.pt")
    x, y = infer.test_images(data.load("digits"), "cpu")
    assert isinstance(model, nn.Module) and not model.training
    accuracy = 100 * (model(x).argmax(1) == y).float().mean().item()
    assert accuracy == pytest.approx(default_run[1]["table"]["collaboration"]["clean"])


class Knows(nn.Module):
    """An expert that knows images by their brightness: {brightness: (logits, confidence)}."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def forward(self, x):
        of = [self.answers[round(v.mean().item(), 1)] for v in x]
        return torch.tensor([a for a, _ in of]), torch.tensor([b for _, b in of])


def test_every_cell_of_the_table_by_hand():
    """Two experts, four images, and an attack that turns all of them into the same dark one."""
    zero, one, doubt = [2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 1.1, 0.0]
    first = {0.9: (zero, 3.0), 0.8: (zero, 1.0), 0.7: (zero, 3.0), 0.6: (one, 1.0), 0.1: (one, 1.0)}
    second = {0.9: (one, 1.0), 0.8: (one, 3.0), 0.7: (doubt, 1.0), 0.6: (one, 3.0)}
    second[0.1] = (zero, 0.0)
    model = Collaboration([Knows(first), Knows(second)])
    x = torch.tensor([0.9, 0.8, 0.7, 0.6])[:, None, None, None].expand(4, 1, 8, 8)
    y = torch.tensor([0, 1, 1, 0])
    attacks = {"dark": lambda model, x, y: torch.full_like(x, 0.1)}
    result = infer.report(model, x, y, attacks, batch_size=3)
    table = result["table"]
    # clean: expert 1 says 0 0 0 1, expert 2 says 1 1 1 1; experts 1 2 1 2 answer
    assert table["expert 1"] == {"clean": 25, "dark": 50, "own": 50}
    assert table["expert 2"] == {"clean": 50, "dark": 50, "own": 50}
    assert table["collaboration"] == {"clean": 50, "dark": 50, "own": 50}
    assert table["oracle"] == table["any"] == {"clean": 75, "dark": 100}
    assert table["vote"]["clean"] == 25  # on images 1 and 2 a draw, which label 0 wins
    parts = result["specialisation"]["clean"]
    assert list(parts["disagree"].values()) == pytest.approx([3, 200 / 3, 200 / 3, 100])
    assert parts["answers"] == [[50, 50, 0], [50, 50, 0]]
    assert parts["accuracy"] == [[50, 0, 0], [0, 100, 0]]
    assert infer.evaluate(model, x, y, attacks) == table


class Killed(BaseException):
    """Stands for kill -9: nothing in the program may catch it."""


def train_small(out, *more, script=train_collab):
    return script.main([*SMALL, "--out", str(out), *more])


def weights(folder, name="model.pt"):
    return files.load_checkpoint(folder / name)["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small run that nothing interrupts, with crop and flip, so that random numbers matter."""
    out = tmp_path_factory.mktemp("small") / "whole"
    assert train_small(out, "--augment", "--epochs", "8") == 0
    return out


@pytest.mark.parametrize("moment", ["between epochs", "inside an epoch", "while writing"])
@pytest.mark.parametrize("epoch", [1, 4, 6])
def test_a_killed_run_resumes_bit_for_bit(moment, epoch, whole, tmp_path, monkeypatch):
    """8 epochs, 4 of each stage; killed around the end of epoch 1, 4 (of stage 1) or 6."""
    cut, steps = tmp_path / "cut", []
    write, fsync, step = files.write, os.fsync, torch.optim.SGD.step

    def killed_write(path, content):
        write(path, content)
        if moment == "between epochs" and len(history(cut)) == epoch:
            raise Killed

    def killed_fsync(descriptor):
        if moment == "while writing" and cut.exists() and len(history(cut)) == epoch:
            os.ftruncate(descriptor, 1000)  # half a file is on the disk
            raise Killed
        fsync(descriptor)

    def killed_step(self, *args):
        steps.append(1)
        if moment == "inside an epoch" and len(steps) == 11 * epoch + 5:
            raise Killed
        return step(self, *args)

    def history(folder):
        path = folder / "model.pt"
        return files.load_checkpoint(path)["history"] if path.exists() else []

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", killed_write)
        patch.setattr(os, "fsync", killed_fsync)
        patch.setattr(torch.optim.SGD, "step", killed_step)
        with pytest.raises(Killed):
            train_small(cut, "--augment", "--epochs", "8")
    assert len(history(cut)) == epoch
    assert train_collab.main(["--resume", str(cut), "--device", "cpu"]) == 0
    assert same(weights(cut), weights(whole))
    assert same(weights(cut, "submodels.pt"), weights(whole, "submodels.pt"))
    tables = [json.loads((f / "metrics.json").read_text())["table"] for f in (cut, whole)]
    assert tables[0] == tables[1]


def interrupt(*_):
    raise KeyboardInterrupt


def test_ctrl_c_names_the_command_that_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.optim.SGD, "step", interrupt)
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert train_small("run") == 130
    python = Path(".venv") / "bin" / "python"
    expected = f"stopped; to go on: {python} train_collab.py --resume run"
    assert capsys.readouterr().err.strip() == expected
    assert weights(tmp_path / "run")


def test_ctrl_c_before_training_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", interrupt)
    assert train_small(tmp_path / "run") == 130
    assert capsys.readouterr().err == "stopped before training began\n"


def test_the_learning_rate_falls_at_half_and_three_quarters_of_each_stage(default_run):
    rates = [entry["lr"] for entry in default_run[1]["epochs"]]
    stage = [0.1] * 4 + [0.01] * 2 + [0.001] * 2
    assert rates == pytest.approx(stage + stage)


def test_stage_1_alone_serves_as_submodels(tmp_path):
    assert train_small(tmp_path / "one", script=train_submodel) == 0
    sub = tmp_path / "one" / "model.pt"
    assert train_small(tmp_path / "two", "--submodels", str(sub)) == 0
    checkpoint = files.load_checkpoint(tmp_path / "two")
    assert [entry["stage"] for entry in checkpoint["history"]] == [2, 2, 2, 2]
    assert not same(checkpoint["model"], weights(tmp_path / "one"))


def test_the_authors_rules_train_too(tmp_path):
    assert (
        train_small(tmp_path / "run", "--confidence", "rectified", "--weights", "confidence") == 0
    )
    assert infer.load(tmp_path / "run").confidence == "rectified"


def test_one_expert_is_a_collaboration_too(tmp_path):
    assert train_small(tmp_path / "run", "--n", "1", "--epochs", "2") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["specialisation"]["clean"]["disagree"]["images"] == 0


def test_a_loss_that_becomes_nan_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    sample_loss, calls = train_submodel.sample_loss, []

    def poisoned(*args):  # 11 steps an epoch, clean and adversarial: NaN in epoch 2
        calls.append(1)
        return sample_loss(*args) * (float("nan") if len(calls) > 30 else 1)

    monkeypatch.setattr(train_submodel, "sample_loss", poisoned)
    with pytest.raises(SystemExit) as stop:
        train_small(tmp_path / "run")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "epoch 2 of stage 1" in error and "--lr" in error
    checkpoint = files.load_checkpoint(tmp_path / "run")
    assert checkpoint["epoch"] == 1
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch, capsys):
    calls, fsync = [], os.fsync

    def full(descriptor):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit) as stop:
        train_small(tmp_path / "run")
    assert stop.value.code == 2
    assert re.search("cannot save .*No space left.*--resume", one_line(capsys))
    assert files.load_checkpoint(tmp_path / "run")["epoch"] == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model.pt"]


# ---------------------------------------------------------------------------------------- data


def test_digits_are_split_1437_to_360():
    digits = data.load("digits")
    assert digits.x_train.shape == (1437, 1, 8, 8) and digits.x_test.shape == (360, 1, 8, 8)
    assert digits.x_train.dtype == torch.uint8 and digits.x_train.max() == 255
    assert digits.num_classes == 10
    both = torch.cat([digits.x_train, digits.x_test]).flatten(1).unique(dim=0)
    assert len(both) == 1797  # no image is in both parts, or twice in one


def test_crop_and_flip_moves_and_mirrors_each_image_by_its_own_draw():
    x = torch.randint(1, 256, (3, 3, 32, 32), dtype=torch.uint8)
    top, left = torch.tensor([4, 0, 4]), torch.tensor([4, 4, 4])
    moved = train_submodel.crop_and_flip(x, top, left, torch.tensor([False, False, True]))
    assert torch.equal(moved[0], x[0])
    assert (moved[1, :, :4] == 0).all() and torch.equal(moved[1, :, 4:], x[1, :, :-4])
    assert torch.equal(moved[2], x[2].flip(2))


def test_an_epoch_shows_every_image_at_most_once_and_drops_the_partial_batch():
    x = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(100, 1, 8, 8)
    settings = Namespace(batch_size=32, augment=False)
    batches = list(train_submodel.shuffled_batches(x, torch.arange(100), settings))
    labels = torch.cat([y for _, y in batches])
    assert [len(y) for _, y in batches] == [32, 32, 32] and len(labels.unique()) == 96
    assert torch.equal((batches[0][0][:, 0, 0, 0] * 255).round().long(), batches[0][1])


def arrays(**changes):
    rng = np.random.default_rng(0)
    images = {f"x_{part}": rng.integers(0, 256, (40, 8, 8), dtype=np.uint8) for part in data.PARTS}
    return images | {f"y_{part}": np.arange(40) % 4 for part in data.PARTS} | changes


@pytest.mark.parametrize("shape", [(40, 8, 12), (40, 32, 32, 3), (40, 8, 8, 1)])
def test_ones_own_images_train(shape, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = (np.arange(40) % 4)[:, None]
    np.savez(tmp_path / "own.npz", **arrays(x_train=images, x_test=images, y_train=labels))
    own = ["--data", str(tmp_path / "own.npz"), "--epochs", "2"]
    assert train_small(tmp_path / "run", *own) == 0
    moved = tmp_path / "moved.npz"
    (tmp_path / "own.npz").rename(moved)
    assert infer.main([str(tmp_path / "run"), "3", "--data", str(moved)]) == 0


# -------------------------------------------------------------------------------- bad input


def one_line(capsys):
    """What went to standard error, which must be one line."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error and ": error: " in error
    return error


BAD_DATA = {
    "a float": ({"x_train": np.zeros((40, 8, 8))}, "must be uint8"),
    "flat": ({"x_test": np.zeros((40, 64), np.uint8)}, "N x H x W"),
    "two channels": ({"x_test": np.zeros((40, 8, 8, 2), np.uint8)}, "C 1 or 3"),
    "odd sides": ({"x_train": np.zeros((40, 8, 9), np.uint8)}, "multiples of 4"),
    "other size": ({"x_test": np.zeros((40, 12, 12), np.uint8)}, "must be the same"),
    "empty": ({"x_train": np.zeros((0, 8, 8), np.uint8), "y_train": np.zeros(0, int)}, "is empty"),
    "length": ({"y_train": np.arange(39) % 4}, "one integer for each of the 40"),
    "float labels": ({"y_train": np.zeros(40)}, "one integer"),
    "a gap": ({"y_train": np.arange(40) % 4 * 2}, "out of range"),
    "negative": ({"y_test": np.arange(40) % 4 - 1}, "out of range"),
    "unknown class": ({"y_test": np.arange(40) % 5}, "out of range"),
    "objects": ({"y_test": np.array([{}] * 40)}, "Python objects"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_a_wrong_data_file_is_refused_in_one_line(name, tmp_path, monkeypatch, capsys):
    changes, message = BAD_DATA[name]
    monkeypatch.chdir(tmp_path)
    np.savez("bad.npz", **arrays(**changes))
    with pytest.raises(SystemExit) as stop:
        train_collab.main(["--data", "bad.npz"])
    assert stop.value.code == 2 and message in one_line(capsys)
    assert os.listdir() == ["bad.npz"]


def test_what_is_no_data_file_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").touch()
    np.savez("some.npz", x_train=np.zeros(3))
    with open("single.npz", "wb") as file:
        np.save(file, np.zeros(3))
    np.savez("whole.npz", **arrays())
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:3000])
    np.savez_compressed("whole.npz", **arrays())
    flipped = bytearray((tmp_path / "whole.npz").read_bytes())
    flipped[200:210] = b"0123456789"
    (tmp_path / "flipped.npz").write_bytes(flipped)
    messages = {"some": "lacks y_train, x_test, y_test", "none": "no file", "flipped": "damaged"}
    for name in ("text", "empty", "single", "cut", "flipped", "some", "none"):
        with pytest.raises(SystemExit) as stop:
            train_collab.main(["--data", f"{name}.npz"])
        assert stop.value.code == 2
        assert messages.get(name, "is no npz file") in one_line(capsys)
    assert "runs" not in os.listdir()


BAD_FLAGS = {
    "--eps 0": "(0, 1]",
    "--eps 1.5": "(0, 1]",
    "--eps nan": "(0, 1]",
    "--eps half": "invalid float",
    "--sigma 0": "must be positive",
    "--sigma inf": "must be positive",
    "--lr -1": "must be positive",
    "--alpha 0": "must be positive",
    "--lambda -1": "0 or more",
    "--n 0": "at least 1",
    "--steps 0": "at least 1",
    "--batch-size 0": "at least 1",
    "--epochs 0": "at least 1",
    "--epochs 1": "2 stages need at least 2",
    "--seed -1": "between 0",
    "--depth 10": "nearest is 8 or 14",
    "--depth 0": "nearest is 2",
    "--data mnist": "digits, cifar10 or a FILE.npz",
    "--device tpu": "this machine has",
    "--device cuda:99": "this machine has",
    "--device hpu": "this machine has",
    "--precision float16": "invalid choice",
    "--confidence loud": "invalid choice",
    "--colour red": "unrecognized",
    "--submodels none.pt": "no checkpoint",
    "--resume none": "no such folder",
    "--resume none --eps 0.1 --batch-size 3": "leave out --batch-size, --eps",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_a_wrong_flag_is_refused_in_one_line(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train_collab.main(flags.split())
    assert stop.value.code == 2 and BAD_FLAGS[flags] in one_line(capsys)
    assert os.listdir() == []


def test_cifar10_that_cannot_be_had_says_what_to_do(tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "CIFAR10", offline)
    with pytest.raises(SystemExit) as stop:
        train_collab.main(["--data", "cifar10"])
    error = one_line(capsys)
    assert stop.value.code == 2
    assert "put cifar-10-python.tar.gz there" in error and "--data digits" in error


class Code:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_what_is_no_checkpoint_is_refused_in_one_line(default_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = (default_run[0] / "model.pt").read_bytes()
    Path("cut.pt").write_bytes(whole[: len(whole) // 2])
    Path("text.pt").write_text("hello")
    torch.save({"model": Code()}, "code.pt")
    torch.save([1, 2], "other.pt")
    checkpoint = files.load_checkpoint(default_run[0])
    torch.save(checkpoint | {"settings": checkpoint["settings"] | {"depth": 8}}, "misfit.pt")
    messages = {
        "cut": "cut short",
        "text": "no checkpoint",
        "code": "holds code",
        "gone": "no checkpoint",
    }
    messages |= {"other": "no checkpoint of this project", "misfit": "damaged"}
    for name, message in messages.items():
        with pytest.raises(SystemExit) as stop:
            infer.main([f"{name}.pt"])
        assert stop.value.code == 2 and message in one_line(capsys), name
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "flags, message",
    [("--n 2", "n 3, not 2"), ("--depth 8", "depth 20, not 8"), ("--data own.npz", "data name")],
)
def test_submodels_must_fit(flags, message, default_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("own.npz", **arrays())
    with pytest.raises(SystemExit) as stop:
        train_collab.main([*flags.split(), "--submodels", str(default_run[0] / "submodels.pt")])
    assert stop.value.code == 2 and message in one_line(capsys)
    assert os.listdir() == ["own.npz"]


def test_other_images_under_the_same_name_are_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = ["--data", "own.npz", "--batch-size", "8"]
    np.savez("own.npz", **arrays())
    assert train_small("one", *own, script=train_submodel) == 0
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", interrupt)
        assert train_small("two", *own) == 130
    np.savez("own.npz", **arrays(y_train=(np.arange(40) + 1) % 4))
    for argv in ([*SMALL, *own, "--submodels", "one"], ["--resume", "two"]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train_collab.main(argv)
        assert stop.value.code == 2 and "own" in one_line(capsys)


def test_submodels_must_have_finished_stage_1(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", interrupt)
        assert train_small(tmp_path / "one", script=train_submodel) == 130
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train_small(tmp_path / "two", "--submodels", str(tmp_path / "one"))
    assert stop.value.code == 2 and "has not finished stage 1" in one_line(capsys)


def test_submodels_of_stage_2_are_refused(default_run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_small(
            tmp_path / "run", "--n", "3", "--depth", "20", "--submodels", str(default_run[0])
        )
    assert "name a submodels.pt" in one_line(capsys)


def test_a_finished_run_is_not_resumed(default_run, capsys):
    with pytest.raises(SystemExit) as stop:
        train_collab.main(["--resume", str(default_run[0])])
    assert stop.value.code == 2 and "finished" in one_line(capsys)


def test_a_run_is_resumed_by_its_own_script(default_run, capsys):
    with pytest.raises(SystemExit) as stop:
        train_submodel.main(["--resume", str(default_run[0])])
    assert stop.value.code == 2 and "a run of soe, not soe-stage1" in one_line(capsys)


def test_nothing_of_the_users_is_overwritten(default_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.png").write_text("mine")
    commands = [
        (train_collab, ["--out", "taken"]),
        (train_collab, ["--out", "taken/thesis.png"]),
        (xor_demo, ["--out", "taken/thesis.png"]),
        (infer, [str(default_run[0]), "0", "--save", "taken/thesis.png"]),
    ]
    for script, argv in commands:
        with pytest.raises(SystemExit) as stop:
            script.main(argv)
        assert stop.value.code == 2 and one_line(capsys)
    assert [path.read_text() for path in taken.iterdir()] == ["mine"]


def test_runs_of_the_same_name_get_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Namespace(out=None, method="soe", data_name="digits", eps=0.03, n=3, seed=0)
    names = [files.make_folder(settings) for _ in range(3)]
    first = str(Path("runs") / "digits-eps0.03-n3-seed0")
    assert names == [first, first + "-2", first + "-3"]
    rival = files.make_folder(Namespace(**vars(settings) | {"method": "adp"}))
    assert rival == str(Path("runs") / "digits-adp-eps0.03-n3-seed0")


# --------------------------------------------------------------------------------- infer.py


def test_infer_shows_every_expert_and_draws_both_answers(
    default_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20), "white").save("white.png")
    Image.new("LA", (8, 8), (0, 0)).save("clear.png")
    wanted = ["white.png", "17", "17", "clear.png"]
    assert infer.main([str(default_run[0]), *wanted, "--save", "answers.png"]) == 0
    out = capsys.readouterr().out
    assert "clear.png: put on white where transparent, converted from RGBA to L" in out
    assert "white.png: converted from RGB to L, resized from 30 x 20 to 8 x 8" in out
    assert f"test image 17, label {data.load('digits').y_test[17]}" in out
    assert out.count("<- answers") == 8 and out.count("expert 3: ") == 8  # clean and attacked
    of = {name: out.split(f"\n{name}\n")[1].split("\n")[:3] for name in ("white.png", "clear.png")}
    assert of["white.png"] == of["clear.png"]  # both are all white
    assert Image.open("answers.png").height > 400


def test_infer_tabulates_at_another_eps(default_run, capsys):
    table = default_run[1]["table"]["collaboration"]
    assert infer.main([str(default_run[0]), "--eps", "0.2", "--steps", "5"]) == 0
    row = re.search(r"^collaboration +(\S+) +(\S+) +(\S+)$", capsys.readouterr().out, re.M)
    assert float(row[1]) == pytest.approx(table["clean"], abs=0.05)
    assert float(row[2]) == float(row[3]) < table["pgd-20"] - 10


@pytest.fixture
def small_run(whole, tmp_path):
    """A copy of the small run, to write beside."""
    return shutil.copytree(whole, tmp_path / "copy")


def test_infer_runs_every_attack_at_every_eps_and_saves_all(small_run, capsys):
    argv = "--attack all --eps 0.05 0.2 --images 50 --steps 3 --queries 9 --seeds 2".split()
    for name in ("attacks", "attacks-2"):
        assert infer.main([str(small_run), *argv]) == 0
        saved = json.loads((small_run / f"{name}.json").read_text())
        assert Image.open(small_run / f"{name}.png").width > 400
    assert saved["command"]["queries"] == 9 and len(saved["images"]) == 50
    assert capsys.readouterr().out.count("±") > 50
    for result in saved["eps"].values():
        assert set(result["table"]["vote"]) == {"clean", "own", "worst", *infer.ATTACKS}
        for row, cells in result["table"].items():
            assert cells["worst"] <= min(cells.values())
            assert result["deviation"][row]["clean"] == 0
        assert result["deviation"]["collaboration"]["pgd"] >= 0


def test_worst_counts_an_image_only_if_it_is_right_under_every_attack():
    model = Collaboration([Routed([0.0, 0.0], 1.0)]).eval()
    model.experts[0].forward = lambda x: (  # right at 0.5 alone
        torch.stack([0.05 - (x.flatten(1).mean(1) - 0.5).abs(), torch.zeros(len(x))], 1),
        torch.zeros(len(x)),
    )
    x, y = torch.full((4, 1, 8, 8), 0.5), torch.zeros(4, dtype=torch.long)
    up, down = x.clone(), x.clone()
    up[:2] += 0.1
    down[1:3] -= 0.1
    attacks = {"up": lambda *_: up, "down": lambda *_: down}
    cells = infer.evaluate(model, x, y, attacks)["collaboration"]
    assert cells == {"clean": 100, "up": 50, "down": 50, "own": 50, "worst": 25}


def test_infer_attacks_a_part_of_the_model(small_run, capsys):
    for part, row in (("vote", "vote"), ("2", "collaboration")):
        assert infer.main([str(small_run), "--part", part, "--steps", "2"]) == 0
        assert f"made against the {row}" in capsys.readouterr().out
    table = json.loads((small_run / "attacks-2.json").read_text())["eps"]["0.1"]["table"]
    whole = infer.evaluate(
        infer.load(small_run), *infer.test_images(data.load("digits"), "cpu"), {}
    )
    assert table["expert 1"]["clean"] == whole["expert 2"]["clean"] != whole["expert 1"]["clean"]
    assert table["expert 1"]["pgd"] == table["collaboration"]["pgd"]


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--attack pgd,magic", "unknown attack magic: known are pgd, fgsm"),
        ("--images 361", "has 360 test images"),
        ("--eps 0.1 2", "(0, 1]"),
        ("--queries 0", "at least 1"),
        ("--seeds 0", "at least 1"),
        ("--restarts 0", "at least 1"),
        ("--part 3", "an expert, 1 to 2"),
    ],
)
def test_infer_refuses_attacks_that_make_no_sense(argv, message, whole, capsys):
    with pytest.raises(SystemExit) as stop:
        infer.main([str(whole), *argv.split()])
    assert stop.value.code == 2 and message in one_line(capsys)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["text.png"], "cannot read"),
        (["deep.png"], "more than 8 bits"),
        (["²"], "no image file"),
        (["--seed", str(10**30)], "between 0"),
        (["0", "--save", "nowhere/a.png"], "existing folder"),
        (["gone.png"], "no image file"),
        (["360"], "digits has 0 .. 359"),
        (["--eps", "0"], "(0, 1]"),
        (["--steps", "0"], "at least 1"),
        (["--save", "a.png"], "name some"),
        (["0", "--save", "a.jpg"], "ending in .png"),
        (["0", "--data", "own.npz"], "was trained on digits"),
        (["--device", "tpu"], "this machine has"),
    ],
)
def test_infer_refuses_in_one_line(argv, message, default_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save("deep.png")
    np.savez("own.npz", **arrays())
    with pytest.raises(SystemExit) as stop:
        infer.main([str(default_run[0]), *argv])
    assert stop.value.code == 2 and message in one_line(capsys)


# -------------------------------------------------------------------------------- the README


def test_every_function_that_the_readme_names_exists():
    text = Path(__file__).with_name("README.md").read_text()
    modules = "models|attacks|train_submodel|train_collab|infer|xor_demo|data"
    names = set(re.findall(rf"`((?:{modules})\.(?!py\b|npz\b)[\w.]+)`", text))
    assert len(names) >= 15
    for name in names:
        module, *attributes = name.split(".")
        thing = importlib.import_module(module)
        for attribute in attributes:
            thing = getattr(thing, attribute)


def test_every_option_explains_itself(capsys):
    for script in (train_collab, train_submodel, infer, xor_demo):
        with pytest.raises(SystemExit) as stop:
            script.main(["--help"])
        assert stop.value.code == 0
    with pytest.raises(SystemExit):
        train_collab.main(["--help"])
    text = capsys.readouterr().out
    for name, (default, _, what) in options.OPTIONS.items():
        assert f" {options.flag(name)}" in text
        assert default is not None or "default: " in what or name == "submodels"


if shutil.which("nvidia-smi") and torch.cuda.is_available():

    def test_a_small_run_trains_on_the_gpu(tmp_path):
        assert train_small(tmp_path / "run", "--device", "cuda") == 0
