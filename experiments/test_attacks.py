"""Statements about the attacks that must hold, in detail: AutoPGD, Square, the adaptive attack."""

from functools import partial

import numpy as np
import pytest
import torch

import attacks
from attacks import cross_entropy, cw_loss, pgd, square
from experiments import autopgd, evaluate
from experiments.autopgd import (
    adaptive_auto_pgd,
    apgd,
    apgd_checkpoints,
    auto_pgd,
    targeted_dlr_loss,
)
from models import Collaboration, ResNet


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = Collaboration([ResNet(8, 1, 10, 8) for _ in range(2)]).eval()
    x = torch.rand(40, 1, 8, 8)
    y = torch.where(torch.rand(40) < 0.7, model(x).argmax(1), torch.randint(10, (40,)))
    return model, x, y


def by_hand(loss, x, eps, steps):
    """Their Algorithm 1 for one image, in plain words: every point, and which rule halved."""

    def project(z):
        return z.clamp(x - eps, x + eps).clamp(0, 1)

    def ascend(z):
        z = z.clone().requires_grad_()
        return project(z.detach() + eta * torch.autograd.grad(loss(z), z)[0].sign())

    eta, now, before, best, best_then = 2 * eps, x, x, x, loss(x)
    points, rises, halved, rules = [x], [], False, []
    for k in range(1, steps + 1):
        alpha = 1 if k == 1 else 0.75
        new = project(now + alpha * (ascend(now) - now) + (1 - alpha) * (now - before))
        points.append(new)
        rises.append(loss(new) > loss(now))
        now, before = new, now
        if loss(new) > loss(best):
            best = new
        if k in apgd_checkpoints(steps):
            seldom, stuck = sum(rises) < 0.75 * len(rises), not halved and loss(best) == best_then
            rules += ["seldom"] if seldom else ["stuck"] if stuck else ["neither"]
            best_then, rises, halved = loss(best), [], seldom or stuck
            if halved:
                eta, now = eta / 2, best
    return points, rules


def test_autopgd_visits_the_points_that_its_algorithm_visits_and_returns_the_worst(monkeypatch):
    """On a bumpy loss, so that all of it happens: momentum, both rules, restarts from the best. It
    starts from the image itself."""
    torch.manual_seed(10)
    first, second = 30 * torch.randn(16, 8).double(), torch.randn(8, 2).double()
    ramp, lead = torch.tensor([[-2.0, 2.0], [7.0, 0.0]]).double()

    def model(z):
        z = z.flatten(1)
        return (z @ first).sin() @ second + z.mean(1, keepdim=True) * ramp + lead

    x, y, seen = torch.rand(20, 1, 4, 4).double(), torch.zeros(20, dtype=torch.long), []

    def seen_model(z):
        seen.append(z.detach().clone())
        return model(z)

    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.5))
    x_adv = apgd(seen_model, x, y, eps=0.2, steps=50)
    rules = set()
    for i in range(len(x)):
        loss = lambda z: cross_entropy(model(z[None]), y[:1]).sum()  # noqa: E731
        points, applied = by_hand(loss, x[i], eps=0.2, steps=50)
        rules.update(applied)
        torch.testing.assert_close(torch.stack(seen)[1:, i], torch.stack(points))
        wrong = [z for z in points if model(z[None]).argmax() != 0]
        torch.testing.assert_close(x_adv[i], wrong[0] if wrong else max(points, key=loss))
    assert rules == {"seldom", "stuck", "neither"}
    assert 0 < (model(x_adv).argmax(1) == y).sum() < len(y)


def test_autopgd_attacks_what_is_still_correct_towards_the_likeliest_wrong_class(monkeypatch):
    """First with cross-entropy; images that are wrong already are left alone, and cost nothing."""
    x, y, seen = torch.tensor([0.9, 0.1, 0.8, 0.7]).view(4, 1, 1, 1), torch.zeros(4).long(), []

    def model(z):  # class 0 where bright; class 2 the likeliest wrong one of the brightest image
        z = z.flatten()
        return torch.stack([z, 0.5 + 0 * z, z - 0.35, 0 * z], 1)

    def record(model, x, y, eps, steps, loss, **_):  # darkens the first of its images
        targets = loss.keywords["target"].tolist() if isinstance(loss, partial) else None
        seen.append((x.flatten().tolist(), getattr(loss, "func", loss), targets))
        return torch.cat([0 * x[:1], x[1:]])

    monkeypatch.setattr(autopgd, "apgd", record)
    x_adv = auto_pgd(model, x, y, eps=1, steps=5)
    assert x_adv.flatten().tolist() == pytest.approx([0, 0.1, 0, 0])
    brightest, _, *others = x.flatten().tolist()
    assert seen == [
        ([brightest, *others], cross_entropy, None),
        (others, targeted_dlr_loss, [1, 1]),
        (others[1:], targeted_dlr_loss, [2]),
    ]


def test_the_strong_adaptive_attack_takes_the_answer_and_twice_who_answers(monkeypatch):
    """On three experts that say class 1 where an image of one pixel is dark, else 0."""
    model, made = Collaboration([ResNet(2)] * 3).eval(), []
    model.all_experts = lambda x: (torch.zeros(3, len(x), 4), x.view(1, -1).expand(3, -1))
    model.combine = lambda _, s: torch.stack([s[0], 1 - s[0], -s[0], -s[0]], 1)
    x, y = torch.arange(12).view(12, 1, 1, 1) / 100, torch.ones(12, dtype=torch.long)

    def record(model, x, y, eps, steps, loss, **_):  # the k-th attempt turns image k bright
        made.append(getattr(loss, "func", loss).__name__)
        return torch.where((x - (len(made) - 1) / 100).abs() < 1e-6, 1.0, x)

    monkeypatch.setattr(autopgd, "apgd", record)
    search = lambda eps, steps: partial(record, eps=eps, steps=steps)  # noqa: E731
    monkeypatch.setattr(autopgd, "far_and_near", search)
    x_adv = autopgd.adaptive_auto_pgd(model, x, y, eps=0.1, steps=5)
    assert (model(x_adv).argmax(1) != y).all()  # no attempt is lost
    routing = ["margin_loss", "soft_routing_loss", *["misroute_loss"] * 3]
    assert made == ["cross_entropy", "targeted_dlr_loss", *routing, *routing]


@pytest.mark.parametrize("name", ["apgd", "adaptive"])
def test_autopgd_stays_in_the_ball_repeats_by_seed_and_never_helps(name, network):
    (model, x, y), ends = network, []
    for _ in range(2):
        torch.manual_seed(3)
        ends.append(evaluate.attacks_at([name], model, eps=0.05, steps=3)[name](*network))
    x_adv, again = ends
    assert torch.equal(x_adv, again) and not x_adv.requires_grad
    assert (x_adv >= x - 0.05).all() and (x_adv <= x + 0.05).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    correct, still = model(x).argmax(1) == y, model(x_adv).argmax(1) == y
    assert 0 < still.sum() < correct.sum() and not (still & ~correct).any()


def test_falling_steps_are_half_a_cosine_wave():
    """On a slope that never ends, from the image itself: four steps, of alpha to none."""
    seen = []

    def slope(z):
        seen.append(z.detach().mean().item())
        return torch.stack([-z.flatten(1).mean(1), z.flatten(1).mean(1)], 1)

    x, y = torch.full((1, 1, 2, 2), 0.1), torch.zeros(1, dtype=torch.long)
    last = pgd(slope, x, y, eps=0.8, alpha=0.2, steps=4, falling=True).mean().item()
    cosine = [0.2 * (1 + np.cos(np.pi * k / 4)) / 2 for k in range(4)]
    assert np.diff([*seen, last]) == pytest.approx(cosine, abs=1e-6)
    settings = attacks.far_and_near(eps=0.1, steps=20).keywords
    assert settings["falling"] and settings["random_start"] and settings["alpha"] == 0.2


@pytest.mark.parametrize("loss", [cross_entropy, cw_loss])
@pytest.mark.parametrize("steps", [10, 40])
def test_autopgd_reaches_the_exact_corner_on_a_linear_model(loss, steps, linear):
    model, x, y, corner = linear
    fooled = model(corner).argmax(1) != y
    for attack in (partial(apgd, loss=loss), auto_pgd):
        x_adv = attack(model, x, y, eps=0.1, steps=steps)
        assert torch.equal(model(x_adv).argmax(1) != y, fooled) and 0 < fooled.sum() < len(y)
        torch.testing.assert_close(x_adv[~fooled], corner[~fooled])  # others stop when fooled


@pytest.mark.parametrize("attack", [auto_pgd, adaptive_auto_pgd])
def test_autopgd_takes_gradients_and_labels_of_any_kind(attack, network):
    model, x, y = network
    with torch.inference_mode():
        x_adv = attack(model, x[:8].clone(), y[:8].int(), 0.05, 2)
    assert (x_adv - x[:8]).abs().max() <= 0.05 + 1e-6 and not torch.equal(x_adv, x[:8])


def test_autopgd_checkpoints_are_those_of_its_paper(network):
    assert apgd_checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    with pytest.raises(ValueError, match="steps is 0"):
        apgd(*network, eps=0.1, steps=0)


def test_targeted_dlr_loss_by_hand():
    logits = torch.tensor([[5.0, 1.0, 4.0, 2.0]])
    loss = targeted_dlr_loss(logits, torch.tensor([2]), torch.tensor([3]))
    assert loss.item() == pytest.approx(-(4 - 2) / (5 - (2 + 1) / 2))


# ---------------------------------------------------------------- Square, and the adaptive attack


@pytest.mark.parametrize(
    "rescale, sides", [(False, {0: 14, 9: 14, 15: 10}), (True, {0: 5, 4: 2, 15: 1})]
)
def test_square_begins_with_stripes_and_shrinks_its_squares(rescale, sides):
    """On a model that no query changes; p of 16 x 16 pixels: 0.8, from query 11 on 0.4, and so on,
    which `rescale` compresses into the 20 queries that there are."""
    seen = []

    def model(z):
        seen.append(z.clone())
        return torch.tensor([[1.0, 0.0]]).expand(len(z), -1)

    x, y = torch.full((200, 3, 16, 16), 0.5), torch.zeros(200, dtype=torch.long)
    torch.manual_seed(0)
    square(model, x, y, eps=0.1, n_queries=20, rescale=rescale)
    _, stripes, *queries = seen
    torch.testing.assert_close((stripes - 0.5).abs(), torch.full_like(x, 0.1))
    assert (stripes == stripes[:, :, :1]).all()  # each column of one colour
    assert (stripes[:, :, 0] > 0.5).float().mean() == pytest.approx(0.5, abs=0.05)
    for query, side in sides.items():
        changed = (queries[query] != stripes).any(1)  # [N, H, W]
        assert changed.any(2).sum(1).max() == changed.any(1).sum(1).max() == side
        assert changed.flatten(1).any(1).all()  # signs that change nothing are turned round
        begins = changed.any(2).int().diff(dim=1, prepend=torch.zeros(200, 1, dtype=torch.int))
        assert (begins.clamp(min=0).sum(1) == 1).all()  # its rows are neighbours
        for edge in (changed[:, 0], changed[:, -1], changed[:, :, 0], changed[:, :, -1]):
            assert edge.any()  # positions 0 .. H - s inclusive


def test_the_routing_attacks_fit_the_scores_at_hand():
    """T is the mean gap between the two best scores: a softmax at 0.1 would be an argmax again."""
    model, losses = Collaboration([ResNet(2, 1, 2, 8)] * 3).eval(), []
    logits = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 5.0]])[:, None].expand(3, 3, 2)
    score = torch.tensor([[0.1, -2.0, 0.0], [0.3, -1.0, -9.0], [0.2, -3.0, 9.0]])
    model.all_experts = lambda x: (logits, score)
    search = lambda model, x, y, loss, decide: losses.append(loss) or x  # noqa: E731
    list(attacks.misled(model, torch.rand(3, 1, 8, 8), torch.tensor([0, 0, 1]), search))
    gap = (0.1 + 1.0 + 9.0) / 3  # of (0.1, 0.3, 0.2), (-2, -1, -3), (0, -9, 9)
    margin = (3 + 3 + 3 + 1 + 1 + 1 + 5 + 5 + 5) / 9
    assert losses[0].keywords["T"] == pytest.approx(gap)
    misroutes = [loss.keywords for loss in losses[1:]]
    assert [misroute["j"] for misroute in misroutes] == [0, 1, 2]
    assert misroutes[0]["scale"] == pytest.approx(margin / gap)
