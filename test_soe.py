"""Statements about the paper and the method that must hold.

    python -m pytest

The tests of runs, options, files and pictures are in support/, those of data in data/, and so on.
The default run is trained once, and shared by all of them.
"""

from argparse import Namespace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import attacks
import infer
import train_collab
import train_submodel
import xor_demo
from attacks import adaptive, attacks_at, cross_entropy, cw_loss, expert_losses, pgd, square
from models import Collaboration, Ensemble, ResNet, rectified_score, vote
from train_submodel import best_expert_loss, confidence_loss

# ------------------------------------------------------------------ Eq. 7: the smooth minimum


@pytest.mark.parametrize("sigma", [0.05, 1.0, 7.0])
@pytest.mark.parametrize("M", [1, 2, 3, 5])
def test_smooth_minimum_lies_within_eq_7_bounds(sigma, M):
    losses = 5 * torch.rand(M, 1000, dtype=torch.float64)
    smooth, minimum = best_expert_loss(losses, sigma), losses.min(0).values
    assert (smooth <= minimum + 1e-12).all()
    assert (smooth >= minimum - sigma * np.log(M) - 1e-12).all()


def test_smooth_minimum_reaches_both_bounds_of_eq_7():
    equal, apart = torch.full((3, 1), 2.0), torch.tensor([[2.0], [90.0], [90.0]])
    assert best_expert_loss(equal, 1.0).item() == pytest.approx(2 - np.log(3))
    assert best_expert_loss(apart, 1.0).item() == pytest.approx(2)


@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_gradient_of_the_smooth_minimum_weighs_experts_by_softmax(sigma):
    losses = (3 * torch.rand(4, 50)).requires_grad_()
    best_expert_loss(losses, sigma).sum().backward()
    torch.testing.assert_close(losses.grad, torch.softmax(-losses.detach() / sigma, 0))


@pytest.mark.parametrize("M", [1, 3])
def test_at_sigma_1_the_smooth_minimum_is_the_cross_entropy_of_the_vote_less_ln_M(M):
    logits, y = 3 * torch.randn(M, 50, 10, dtype=torch.float64), torch.randint(10, (50,))
    log_p_y = vote(logits).gather(1, y[:, None]).squeeze(1)
    smooth = best_expert_loss(expert_losses(logits, y), 1.0)
    torch.testing.assert_close(smooth, -log_p_y - np.log(M))


def test_sigma_leads_from_the_minimum_to_the_mean():
    losses = 5 * torch.rand(3, 1000, dtype=torch.float64)
    near = {"rtol": 0, "atol": 1e-4}
    small, large = best_expert_loss(losses, 1e-5), best_expert_loss(losses, 1e6)
    torch.testing.assert_close(small, losses.min(0).values, **near)
    torch.testing.assert_close(large + 1e6 * np.log(3), losses.mean(0), **near)
    assert torch.equal(best_expert_loss(losses, np.inf), losses.mean(0))


# ------------------------------------------------------------------------ the losses of both stages


def soe_settings(**changed):
    """The defaults of train_collab.py, for three experts."""
    defaults = vars(train_collab.CollabSettings())
    return Namespace(**defaults | {"alpha": 0.01} | changed)


@pytest.mark.parametrize("weights", ["best", "confidence"])
@pytest.mark.parametrize("confidence", ["ehead", "rectified"])
def test_losses_of_both_stages_follow_the_formula(confidence, weights):
    """Values, and gradients for every parameter: what is stopped, is."""
    torch.manual_seed(0)
    model = Collaboration([ResNet(2, 1, 10, 8) for _ in range(3)], confidence)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # so that every attack below meets the same statistics
    settings = soe_settings(lambda_=0.7, sigma=0.5, weights=weights)
    x, y = torch.rand(6, 1, 8, 8), torch.randint(10, (6,))

    def by_hand(x, y):
        outputs = [expert(x) for expert in model.train().experts]
        total = 0
        for i in range(len(x)):
            f = [logits[i].softmax(0) for logits, _ in outputs]
            g = [g_logit[i].sigmoid() for _, g_logit in outputs]
            p_y = [f_j[y[i]] for f_j in f]
            if confidence == "rectified":  # no gradient through max_k f_k where it is correct
                maximum = [f_j.max().detach() if f_j.argmax() == y[i] else f_j.max() for f_j in f]
                g = [m * g_j for m, g_j in zip(maximum, g)]
            if weights == "best":
                loss = -0.5 * torch.log(sum(p_j ** (1 / 0.5) for p_j in p_y) / 3)
            else:
                w = torch.stack(g).detach().softmax(0)
                loss = -sum(w_j * p_j.log() for w_j, p_j in zip(w, p_y))
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
    losses = (train_submodel.stage1_loss, torch.cat(alone)), (train_collab.stage2_loss, together)
    for loss, x_adv in losses:
        attacked = by_hand(x_adv, y.repeat(len(x_adv) // len(y)))
        assert_same(loss(model, x, y, settings), 3 * (by_hand(x, y) + attacked))
    settings.eps = 0  # no attack: clean images alone
    for loss, _ in losses:
        model.eval()  # as the end of an epoch leaves it
        assert_same(loss(model, x, y, settings), 3 * by_hand(x, y))


@pytest.mark.parametrize(
    "loss, passes",
    [
        (train_submodel.stage1_loss, 3 * 4 + 3 + 3**2),  # M S + M + M^2
        (train_collab.stage2_loss, 3 * 4 + 2 * 3),  # M S + 2 M
    ],
)
def test_a_step_costs_the_passes_that_the_method_says(loss, passes):
    model, seen = Collaboration([ResNet(2, 1, 10, 8) for _ in range(3)]), []
    for expert in model.experts:
        expert.backbone.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    loss(model, torch.rand(6, 1, 8, 8), torch.randint(10, (6,)), soe_settings(steps=4))
    assert sum(seen) / 6 == passes


def test_confidence_learns_p_y_and_p_y_does_not_learn_the_confidence():
    score = torch.zeros(2, 1, requires_grad=True)
    p_y = torch.tensor([[0.9], [0.1]], requires_grad=True)
    confidence_loss(score, p_y).sum().backward()
    assert p_y.grad is None
    torch.testing.assert_close(score.grad, (0.5 - p_y.detach()) / 2)


def test_the_confidence_loss_is_least_where_the_confidence_is_p_y():
    """So the most confident expert is the best-performing one: Eq. 8."""
    p_y = torch.rand(3, 50, dtype=torch.float64)
    score = torch.logit(p_y).requires_grad_()
    confidence_loss(score, p_y).sum().backward()
    torch.testing.assert_close(score.grad, torch.zeros_like(p_y))
    assert torch.equal(score.argmax(0), (-p_y.log()).argmin(0))


# --------------------------------------------------------------------- the networks, Algorithm 1


def test_a_resnet_halves_the_sides_where_it_doubles_the_channels():
    expert, shapes = ResNet(20), []
    for block in expert.backbone[3:]:
        block.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    assert expert(torch.rand(2, 3, 32, 32))[0].shape == (2, 10)
    assert shapes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3
    plain = [isinstance(block.shortcut, nn.Identity) for block in expert.backbone[3:]]
    assert plain == [True] * 3 + [False, True, True] * 2
    convolutions = [m for m in expert.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) + 1 == 20  # and the P head


def test_a_resnet2_keeps_the_averages_of_8_by_8_pixels():
    assert ResNet(2).p_head.in_features == 16 * 4 * 4
    assert ResNet(2, 1, 10, (8, 20)).p_head.in_features == 16 * 1 * 2


def test_the_confidence_is_a_two_way_softmax_of_the_e_head():
    expert, x = ResNet(8, 1, 10, 8).eval(), torch.rand(5, 1, 8, 8)
    e = expert.e_head(expert.features(x))  # [B, 2]
    torch.testing.assert_close(expert(x)[1].sigmoid(), e.softmax(1)[:, 1])


def test_e_head_of_a_resnet20_has_128_parameters():
    for image_size, channels in ((32, 3), (8, 1)):
        expert = ResNet(20, channels, 10, image_size)
        assert sum(p.numel() for p in expert.e_head.parameters()) == 128


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (1, 28, 20)])
@pytest.mark.parametrize("depth", [2, 8, 14, 20])
def test_resnet_gives_float32_logits_and_a_confidence(depth, shape):
    x = torch.rand(2, *shape)
    with torch.autocast("cpu", torch.bfloat16):
        logits, g_logit = ResNet(depth, shape[0], 7, shape[1:])(x)
    assert (logits.shape, g_logit.shape) == ((2, 7), (2,))
    assert logits.dtype == g_logit.dtype == torch.float32


class Fake(nn.Module):
    """An expert whose forward says what it answers."""

    def logits(self, x):
        return self(x)[0]


class Says(Fake):
    """Gives every image the same logits, and each a confidence of its own."""

    def __init__(self, logits, g_logit):
        super().__init__()
        self.constant = nn.Parameter(torch.tensor(logits))
        self.g_logit = nn.Parameter(torch.tensor(g_logit))

    def forward(self, x):
        return self.constant.expand(len(x), -1), self.g_logit[: len(x)]


@pytest.mark.parametrize(
    "confidence, answering",
    [("ehead", [2, 2, 3]), ("rectified", [3, 2, 3])],  # g alone, and the product of both heads
)
def test_algorithm_1_returns_the_most_confident_expert(confidence, answering):
    logits = [[3.0, 0.0], [0.0, 1.0], [0.0, 5.0]]
    g_logits = [[0.1, -2.0, 0.0], [0.3, -1.0, -9.0], [0.2, -3.0, 9.0]]
    model = Collaboration([*map(Says, logits, g_logits)], confidence)
    answers = model(torch.rand(3, 1, 8, 8))
    assert answers.tolist() == [logits[j - 1] for j in answering]
    answers.sum().backward()  # differentiable through the answering experts' logits alone
    grads = [expert.constant.grad.sum().item() for expert in model.experts]
    assert grads == [2 * answering.count(j) for j in (1, 2, 3)]


def test_rectified_score_is_the_product_of_both_heads():
    logits, g_logit = torch.randn(3, 50, 4), torch.randn(3, 50)
    product = logits.softmax(-1).max(-1).values * g_logit.sigmoid()
    torch.testing.assert_close(rectified_score(logits, g_logit).sigmoid(), product)
    for sure in (99.0, 999.0):
        assert rectified_score(torch.tensor([[sure, 0.0]]), torch.tensor([sure])).isfinite().all()


def test_rectified_score_stops_gradient_where_the_prediction_is_correct():
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


# ------------------------------------------------------------------------------------- attacks


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = Collaboration([ResNet(8, 1, 10, 8) for _ in range(2)])
    return model, torch.rand(40, 1, 8, 8), torch.randint(10, (40,))


@pytest.mark.parametrize("changes", [{}, {"steps": 1, "alpha": 0.1}, {"random_start": True}])
@pytest.mark.parametrize("loss", [cross_entropy, cw_loss])
def test_pgd_reaches_the_exact_corner_on_a_linear_model(changes, loss, linear):
    model, x, y, corner = linear
    x_adv = pgd(model, x, y, eps=0.1, loss=loss, **{"steps": 20, "alpha": 0.02} | changes)
    torch.testing.assert_close(x_adv, corner)
    assert not x_adv.requires_grad


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
    pgd(model, x, y, 0.1, 0.03, 3, random_start=True, keep_best=True)
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


def test_of_several_restarts_the_worst_end_point_of_each_image_is_kept():
    def model(z):  # a basin on either side of 0.5; only the upper one ends above the border
        d = z.flatten(1).mean(1) - 0.5
        rise = torch.where(d > 0, 3 * d, -d) - 0.5
        return torch.stack([torch.zeros_like(rise), rise], 1)

    x, y = torch.full((50, 1, 1, 1), 0.5), torch.zeros(50, dtype=torch.long)
    torch.manual_seed(0)
    restarts = [pgd(model, x, y, 0.3, alpha=0.1, steps=5, random_start=True) for _ in range(12)]
    assert all(10 < (x_adv > 0.5).sum() < 40 for x_adv in restarts)
    assert (attacks.worst_of(model, x, y, restarts) > 0.79).all()


def test_keep_best_never_loses_by_more_steps(network):
    model, x, y = network
    y, outcomes = model.eval()(x).argmax(1), []
    for steps in (3, 9):
        torch.manual_seed(0)
        x_adv = pgd(model, x, y, 0.05, 0.05, steps, random_start=True, keep_best=True)
        logits = model(x_adv)
        outcomes.append((logits.argmax(1) == y, cross_entropy(logits, y)))
    (few, few_loss), (many, many_loss) = outcomes  # steps
    assert (many <= few).all() and 0 < many.sum() < few.sum() < len(y)
    assert (many_loss >= few_loss - 1e-5)[many].all() and (many_loss > few_loss)[many].any()


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_every_attack_stays_in_the_ball_repeats_by_seed_and_never_helps(name, network):
    model, x, y = network
    y = torch.where(torch.rand(len(y)) < 0.7, model.eval()(x).argmax(1), y)
    attack = attacks_at(eps=0.05, steps=4, queries=30)[name]
    torch.manual_seed(3)
    x_adv = attack(model, x, y)
    torch.manual_seed(3)
    assert torch.equal(attack(model, x, y), x_adv)
    assert (x_adv >= x - 0.05).all() and (x_adv <= x + 0.05).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and not x_adv.requires_grad
    correct, still = model(x).argmax(1) == y, model(x_adv).argmax(1) == y
    assert 0 < still.sum() < correct.sum() and not (still & ~correct).any()


def test_square_reaches_the_corner_of_a_linear_model_on_a_4_by_4_image(linear):
    model, x, y, corner = linear
    torch.manual_seed(0)
    x_adv = square(model, x, y, eps=0.1, n_queries=1500)
    fooled = model(corner).argmax(1) != y
    assert torch.equal(model(x_adv).argmax(1) != y, fooled) and 0 < fooled.sum() < len(y)
    torch.testing.assert_close(x_adv[~fooled], corner[~fooled])


class Routed(Fake):
    """Logits that never change, and a confidence that rises with the brightness times `slope`."""

    def __init__(self, logits, slope):
        super().__init__()
        self.constant, self.slope = torch.tensor(logits), slope

    def forward(self, x):
        brightness = x.flatten(1).mean(1)
        logits = self.constant + 0 * brightness[:, None]  # with a gradient, which is 0
        return logits, self.slope * (brightness - 0.55)


def step_by_step(eps):
    return partial(pgd, eps=eps, alpha=eps / 5, steps=10, keep_best=True)


def test_the_adaptive_attack_sees_what_the_argmax_hides():
    """Expert 1, always correct, answers; expert 2 is always wrong: only the E heads can be led."""
    model = Collaboration([Routed([3.0, 0.0], -1.0), Routed([0.0, 3.0], 1.0)]).eval()
    x, y = torch.full((6, 1, 8, 8), 0.5), torch.zeros(6, dtype=torch.long)
    blind = step_by_step(0.1)(model, x, y)
    assert (model(x).argmax(1) == y).all() and (model(blind).argmax(1) == y).all()
    assert (model(adaptive(model, x, y, step_by_step(0.1))).argmax(1) != y).all()


def test_algorithm_1_is_wrong_exactly_where_a_misroute_is_above_0():
    torch.manual_seed(0)
    logits, score, y = torch.randn(3, 500, 4), torch.randn(3, 500), torch.randint(4, (500,))
    answer = Collaboration([ResNet(2)] * 3).combine(logits, score)
    misroutes = [attacks.misroute_loss((logits, score), y, j, scale=0.3) for j in range(3)]
    wrong = answer.argmax(1) != y
    assert torch.equal(torch.stack(misroutes).max(0).values > 0, wrong) and 50 < wrong.sum() < 450


def test_soft_routing_and_misroute_by_hand():
    logits = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])  # [M, B, K]
    score, y = torch.tensor([[0.3], [0.1]]), torch.tensor([0])
    f, w = logits.softmax(-1)[:, 0], (score / 0.1).softmax(0)  # [M, K], [M, 1]
    right, wrong = (w * f).sum(0)
    soft = attacks.soft_routing_loss((logits, score), y, T=0.1)
    torch.testing.assert_close(soft, (wrong / right).log()[None])
    for j, value in ((0, -1.0), (1, 5 * -0.2)):  # margins -1 and 2, gaps 0.2 and -0.2
        misroute = attacks.misroute_loss((logits, score), y, j, scale=5.0)
        torch.testing.assert_close(misroute, torch.tensor([value]))


def test_where_no_score_counts_the_adaptive_attack_is_the_search_itself(network):
    model, x, y = network
    for whole in (Ensemble(model.experts), Collaboration([model.experts[0]])):
        whole.eval()
        assert not attacks.routes(whole)
        assert torch.equal(
            adaptive(whole, x, y, step_by_step(0.05)), step_by_step(0.05)(whole, x, y)
        )


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.75, 1.0])
def test_a_gradient_that_is_not_finite_freezes_no_pixel(momentum, random_start):
    """At 0 the root's slope is infinite; after one step momentum made it NaN, whose sign is 0."""
    x, y = torch.zeros(1, 1, 8, 8), torch.tensor([0])

    def rooted(z):
        roots = z.flatten(1).sqrt().sum(1)
        return torch.stack([torch.full_like(roots, 64 * 0.05**0.5), roots], 1)

    x_adv = pgd(rooted, x, y, 0.1, 0.02, 20, momentum=momentum, random_start=random_start)
    assert rooted(x_adv).argmax(1) != y


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_attacks_take_gradients_wherever_they_are_called(network, context):
    model, x, y = network
    outside = pgd(model, x, y, 0.1, 0.05, 3)
    with context():
        assert torch.equal(pgd(model, x.clone(), y.int(), 0.1, 0.05, 3), outside)
        square(model, x.clone(), y.clone(), 0.1, 5)


@pytest.mark.parametrize("attack", [partial(pgd, alpha=0.1, steps=1), partial(square, n_queries=1)])
@pytest.mark.parametrize(
    "change", [lambda x: 255 * x, lambda x: x - 0.5, lambda x: x / 0, lambda x: x.byte()]
)
def test_images_outside_0_to_1_and_radii_of_other_units_are_refused(network, attack, change):
    model, x, y = network
    with pytest.raises(ValueError, match="images in \\[0, 1\\]"):
        attack(model, change(x), y, eps=0.1)
    with pytest.raises(ValueError, match="eps is 8: it must be at most 1"):
        attack(model, x, y, eps=8)


@pytest.mark.parametrize("wrong", [{"eps": 0}, {"alpha": -1}, {"steps": 0}, {"n_queries": 0}])
def test_attacks_refuse_what_makes_no_sense(network, wrong):
    attack = square if "n_queries" in wrong else partial(pgd, alpha=0.1, steps=1)
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is .* must be positive"):
        attack(*network, **{"eps": 0.1} | wrong)


# ----------------------------------------------------------------------------------------- XOR


def test_on_xor_the_vote_fails_and_the_collaboration_succeeds():
    for seed in range(10):
        voted, collaborated, _ = xor_demo.accuracies(seed)
        assert voted < 76 and collaborated > 97


def test_on_xor_the_best_of_m_error_alone_is_a_trap():
    reached = [xor_demo.accuracies(seed, xor_demo.trap_loss)[1] for seed in range(10)]
    assert sum(accuracy < 76 for accuracy in reached) >= 3


# ------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("name, kind", [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_the_rate_falls_to_a_tenth_at_half_and_three_quarters_of_the_stage(name, kind):
    settings = soe_settings(optimizer=name, lr=0.5, stage_epochs={1: 1, 2: 8})
    optimizer, scheduler = train_submodel.optimizer_and_schedule(ResNet(2), settings, 2)
    rates = []
    for _ in range(8):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert type(optimizer) is kind and optimizer.defaults["weight_decay"] == 1e-4
    assert rates == pytest.approx([0.5] * 4 + [0.05] * 2 + [0.005] * 2)
    assert optimizer.defaults.get("momentum", 0.9) == 0.9


def test_training_lowers_the_loss(default_run):
    """The mean over each epoch's batches. It is never below 0, as l^_m + sigma ln M never is."""
    epochs = default_run[1]["epochs"]
    first, second = ([e["loss"] for e in epochs if e["stage"] == stage] for stage in (1, 2))
    assert min(first[1], second[0]) < first[0] - 1 and first[-1] < first[1] - 1
    assert 0 < second[-1] < second[0] - 0.1


def test_the_default_run_is_accurate_and_robust(default_run):
    row = default_run[1]["table"]["collaboration"]
    assert row["clean"] >= 95 and row["pgd-20"] >= 85
    assert row["own"] == row["pgd-20"] <= row["clean"]


def test_the_experts_of_the_default_run_are_alike(default_run):
    """No expert leaves a class to the others; together they lose at most a point to the best."""
    table = default_run[1]["table"]
    alone = [table[f"expert {j}"]["clean"] for j in (1, 2, 3)]
    assert max(alone) - min(alone) <= 3 and table["collaboration"]["clean"] >= max(alone) - 1


def test_no_expert_of_the_default_run_starves(default_run):
    last = default_run[1]["epochs"][-1]
    for key in ("answered", "best"):
        assert sum(last[key]) == pytest.approx(100) and min(last[key]) > 5  # percent


def test_the_learning_rate_falls_at_half_and_three_quarters_of_each_stage(default_run):
    rates = [entry["lr"] for entry in default_run[1]["epochs"]]
    stage = [0.1] * 2 + [0.01] + [0.001]
    assert rates == pytest.approx(stage + stage)


# --------------------------------------------------------------------------- the table of infer.py


class Knows(Fake):
    """Knows images by their brightness: {brightness: (logits, g_logit)}."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def forward(self, x):
        logits, g_logit = zip(*[self.answers[round(image.mean().item(), 1)] for image in x])
        return torch.tensor(logits), torch.tensor(g_logit)


def grey(*brightness):
    return torch.tensor(brightness)[:, None, None, None].expand(-1, 1, 8, 8)


def test_every_cell_of_the_table_by_hand():
    """Two experts, four images, and an attack that turns all of them into the same dark one."""
    zero, one, doubt = [2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 1.1, 0.0]
    first = {0.9: (zero, 3.0), 0.8: (zero, 1.0), 0.7: (zero, 3.0), 0.6: (one, 1.0), 0.1: (one, 1.0)}
    second = {0.9: (one, 1.0), 0.8: (one, 3.0), 0.7: (doubt, 1.0), 0.6: (one, 3.0)}
    second[0.1] = (zero, 0.0)
    model = Collaboration([Knows(first), Knows(second)])
    x, y = grey(0.9, 0.8, 0.7, 0.6), torch.tensor([0, 1, 1, 0])
    dark = {"dark": lambda model, x, y: torch.full_like(x, 0.1)}
    result = infer.report(model, x, y, dark, batch_size=3)
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
    assert infer.evaluate(model, x, y, dark) == table


def test_an_attack_that_leaves_the_range_of_images_is_reported():
    model, x = Collaboration([Knows({0.5: ([1.0, 0.0], 0.0), 1.2: ([1.0, 0.0], 0.0)})]), grey(0.5)
    with pytest.warns(UserWarning, match="too far leaves .0, 1.: it changed a pixel by 0.7"):
        infer.evaluate(model, x, torch.tensor([0]), {"too far": lambda model, x, y: x + 0.7})


def test_worst_counts_an_image_only_if_it_is_correct_under_every_attack():
    correct, wrong = ([1.0, 0.0], 0.0), ([0.0, 1.0], 0.0)
    model = Collaboration([Knows({0.5: correct, 0.6: wrong, 0.4: wrong})])
    up, down = grey(0.6, 0.6, 0.5, 0.5), grey(0.5, 0.4, 0.4, 0.5)
    moved = {"up": lambda *_: up, "down": lambda *_: down}
    y = torch.zeros(4, dtype=torch.long)
    cells = infer.evaluate(model, grey(0.5, 0.5, 0.5, 0.5), y, moved)["collaboration"]
    assert cells == {"clean": 100, "up": 50, "down": 50, "own": 50, "worst": 25}
