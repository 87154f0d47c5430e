"""Statements about the baselines that must hold."""

import json
import math
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import data
import infer
from attacks import expert_losses, pgd
from baselines import adp, dverge, gal, more, plain
from baselines.methods import METHODS
from baselines.models import Mixture, build
from experiments import evaluate
from experiments.fixtures import SMALL, interrupt, same_weights, train_small
from models import Ensemble, ResNet
from support import checkpoints
from support.printing import print_answers
from train_submodel import best_expert_loss, training_attack

WAYS = {  # every method, and every way to run it
    "plain": (plain, []),
    "plain-clean": (plain, ["--eps", "0"]),
    "plain-together": (plain, ["--together"]),
    "plain-jointly": (plain, ["--jointly"]),
    "adp": (adp, []),
    "adp-clean": (adp, ["--eps", "0"]),
    "gal": (gal, []),
    "gal-clean": (gal, ["--eps", "0"]),
    "dverge": (dverge, []),
    "dverge-clean": (dverge, ["--eps", "0"]),
    "more": (more, []),
}


def settings_of(module, **changed):
    """The method's defaults for 8 x 8 digits, three ResNet8s."""
    (settings,) = {m.settings for m in METHODS.values() if m.main is module.main}
    defaults = vars(settings())
    small = {"depth": 8, "eps": 0.1, "alpha": 0.03, "steps": 3, "steps_per_epoch": 4}
    shape = {"image_shape": [1, 8, 8], "num_classes": 10}
    kind = {"model": "mixture" if module is more else "ensemble"}
    return Namespace(**defaults | small | shape | kind | changed)


def untrained(module):
    """The method's untrained model, and its settings."""
    settings = settings_of(module)
    return build(vars(settings)), settings


def linear_ensemble():
    torch.manual_seed(0)
    return Ensemble([Linear(torch.randn(10, 64)) for _ in range(3)])


def a_batch(count=16):
    dataset = data.load("digits")
    return dataset.x_train[:count].float() / 255, dataset.y_train[:count]


class Linear(nn.Module):
    """An expert whose logits are W x, so that every gradient can be written down."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def logits(self, x):
        return x.flatten(1) @ self.weights.T


# --------------------------------------------------------------------------------------- plain


def test_a_plain_member_learns_from_itself_alone():
    """The gradient of member 1 is the same whatever member 2 is."""
    x, y = a_batch()
    settings = settings_of(plain, n=2)
    grads = []
    for seed in (1, 2):
        torch.manual_seed(0)
        first = ResNet(8, 1, 10, 8)
        torch.manual_seed(seed)
        model = Ensemble([first, ResNet(8, 1, 10, 8)])
        loss = plain.plain_loss(model, x, y, settings)
        grads.append(torch.autograd.grad(loss, first.p_head.weight)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("together", [False, True])
def test_plain_adds_clean_and_adversarial_cross_entropies_of_all_members(together):
    model, (x, y) = linear_ensemble(), a_batch()
    settings, loss = settings_of(plain), plain.together_loss if together else plain.plain_loss
    eps, alpha, steps = settings.eps, settings.alpha, settings.steps

    def attacked(predict):
        x_adv = x.clone()
        for _ in range(steps):
            x_adv.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(predict(x_adv), y), x_adv)
            x_adv = (x_adv + alpha * grad.sign()).detach()
            x_adv = torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)
        return x_adv

    def average(z):
        return torch.stack([e.logits(z).softmax(1) for e in model.experts]).mean(0).log()

    hand = 0
    for expert in model.experts:
        x_adv = attacked(average if together else expert.logits)
        hand += F.cross_entropy(expert.logits(x), y) + F.cross_entropy(expert.logits(x_adv), y)
    torch.testing.assert_close(loss(model, x, y, settings), hand)


@pytest.mark.parametrize("together", [False, True])
def test_plain_learns_clean_images_alone_where_eps_is_0(together):
    model, (x, y) = linear_ensemble(), a_batch()
    loss = plain.together_loss if together else plain.plain_loss
    clean = sum(F.cross_entropy(expert.logits(x), y) for expert in model.experts)
    torch.testing.assert_close(loss(model, x, y, settings_of(plain, eps=0.0)), clean)


@pytest.mark.parametrize("loss", [plain.together_loss, plain.jointly_loss])
def test_clean_images_weigh_what_is_asked(loss):
    """At W = 2 clean images alone are learned; between 0 and 2 the loss is linear in W."""
    model, (x, y) = linear_ensemble(), a_batch()
    at = {W: loss(model, x, y, settings_of(plain, clean_weight=W)) for W in (0.0, 0.5, 2.0)}
    clean = loss(model, x, y, settings_of(plain, eps=0.0))  # at W = 1
    torch.testing.assert_close(at[2.0], 2 * clean)
    torch.testing.assert_close(at[0.5], 0.75 * at[0.0] + 0.25 * at[2.0])
    assert at[0.0] > at[2.0]


def test_jointly_is_soe_s_loss_at_sigma_1_without_e_heads():
    """Eq. 7 is then the cross-entropy of the vote less ln M, on each of the two batches."""
    model, (x, y) = linear_ensemble(), a_batch()
    settings = settings_of(plain)
    x_adv = pgd(model, x, y, settings.eps, settings.alpha, settings.steps)  # against the vote
    by_eq_7 = 0
    for batch in (x, x_adv):
        losses = expert_losses(model.all_experts(batch)[0], y)
        by_eq_7 += 3 * (best_expert_loss(losses, 1.0).mean() + math.log(3))
    torch.testing.assert_close(plain.jointly_loss(model, x, y, settings), by_eq_7)


CHOICES = {"plain_loss": [], "together_loss": ["--together"], "jointly_loss": ["--jointly"]}


@pytest.mark.parametrize("name, flags", CHOICES.items())
def test_together_and_jointly_choose_the_loss(flags, name, tmp_path, monkeypatch):
    monkeypatch.setattr(plain, name, interrupt)
    with pytest.raises(SystemExit) as stopped:
        train_small(tmp_path / "run", *flags, script=plain)
    assert stopped.value.code == 130


@pytest.mark.parametrize("random_start", [False, True])
def test_training_attack_starts_at_random_only_where_asked(random_start):
    """A step of 1e-4 shows where it started."""
    torch.manual_seed(0)
    expert, (x, y) = Linear(torch.randn(10, 64)), a_batch()
    settings = settings_of(plain, alpha=1e-4, steps=1, random_start=random_start)
    x_adv = training_attack(expert.logits, x, y, settings)
    far = (x_adv - x).abs().max()
    assert 0.05 < far <= 0.1 + 1e-6 if random_start else far <= 1e-4 + 1e-6


# ----------------------------------------------------------------------------------------- ADP


def test_adp_determinant_is_the_one_worked_out_by_hand():
    """Two members, three classes, y = 0: V's columns are (0.6, 0.8) and (0.8, 0.6), V^T V has 1 on
    the diagonal and 0.96 beside it, so that det = (1 + 1e-6)^2 - 0.96^2."""
    f = torch.tensor([[[0.3, 0.3, 0.4]], [[0.65, 0.2, 0.15]]])  # [M, 1, K]; 3 : 4 and 4 : 3
    log_det = adp.log_determinant(f.log(), torch.tensor([0]))
    assert log_det.item() == pytest.approx(math.log((1 + 1e-6) ** 2 - 0.96**2), abs=1e-5)


def test_adp_determinant_is_1_for_orthogonal_members_and_0_where_two_agree():
    """Of the true class, here 3, the members may think what they like."""
    orthogonal = torch.tensor([[90.0, 0, 0, 5], [0, 90.0, 0, 70], [0, 0, 90.0, 99]])[:, None]
    y = torch.tensor([3])
    assert adp.log_determinant(orthogonal, y).exp().item() == pytest.approx(1, abs=1e-5)
    two_agree = orthogonal[[0, 1, 1]] + torch.tensor([0, 0, 0, 1.0])
    assert adp.log_determinant(two_agree, y).exp().item() < 1e-5


def test_adp_takes_the_entropy_of_the_mean_prediction():
    f = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # each is sure, their mean knows nothing
    assert adp.entropy_of_the_mean((f + 1e-9).log()).item() == pytest.approx(math.log(2))


def test_adp_loss_is_its_formula_on_clean_and_on_attacked_images():
    model, (x, y), settings = linear_ensemble(), a_batch(), settings_of(adp)
    x_adv, by_hand = pgd(model, x, y, settings.eps, settings.alpha, settings.steps), []
    for batch in (x, x_adv):
        f = torch.stack([e.logits(batch) for e in model.experts]).softmax(-1).double()
        mean, total = f.mean(0), 0.0
        for i in range(len(x)):
            V = torch.stack([torch.cat([f_j[i, : y[i]], f_j[i, y[i] + 1 :]]) for f_j in f], 1)
            V = V / V.norm(dim=0)
            det = torch.linalg.det(V.T @ V + 1e-6 * torch.eye(3))
            ce = -f[:, i, y[i]].log().sum()
            entropy = -(mean[i] * mean[i].log()).sum()
            total += (ce - 2.0 * entropy - 0.5 * det.log()).item() / len(x)
        by_hand.append(total)
    clean = adp.adp_loss(model, x, y, settings_of(adp, eps=0.0))
    assert clean.item() == pytest.approx(by_hand[0])
    assert adp.adp_loss(model, x, y, settings).item() == pytest.approx(sum(by_hand))


def test_adp_leaves_what_is_not_finite_to_the_training_loop():
    logits = torch.full((3, 2, 10), torch.nan)
    assert adp.log_determinant(logits, torch.tensor([0, 1])).isnan().all()


# ----------------------------------------------------------------------------------------- GAL


def alignment(members, x, y):
    """ln sum_{i<j} exp(cos) of three linear members, [B]: grad_x CE is W^T (f - onehot(y))."""
    g = [(m.logits(x).softmax(1) - F.one_hot(y, 10)) @ m.weights for m in members]
    cosines = [F.cosine_similarity(g[i], g[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    return torch.stack(cosines).exp().sum(0).log()


def test_gal_term_follows_the_gradients_of_linear_members():
    members, (x, y) = linear_ensemble().experts, a_batch()
    x.requires_grad_()
    losses = [F.cross_entropy(m.logits(x), y, reduction="none") for m in members]
    ours = gal.coherence(losses, x)
    torch.testing.assert_close(ours, alignment(members, x, y))
    grads = torch.autograd.grad(ours.sum(), [m.weights for m in members])
    assert all(grad.abs().sum() > 0 for grad in grads)  # differentiable once more


def test_gal_term_is_highest_where_gradients_align():
    x = torch.rand(5, 1, 8, 8, requires_grad=True)
    a, b = torch.randn(2, 64)
    along, across, against = (
        gal.coherence([x.flatten(1) @ a, x.flatten(1) @ c], x)
        for c in (3 * a, b - a * (a @ b) / (a @ a), -a)
    )
    torch.testing.assert_close(along, torch.ones(5))
    torch.testing.assert_close(across, torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(against, -torch.ones(5))


def test_gal_noise_falls_on_half_of_the_images():
    torch.manual_seed(0)
    x = torch.full((2000, 1, 8, 8), 0.5)
    change = (gal.noisy(x, 0.045) - x).flatten(1)
    touched = change.abs().sum(1) > 0
    assert 0.45 < touched.float().mean() < 0.55
    assert change[touched].std().item() == pytest.approx(0.045, rel=0.05)


@pytest.mark.parametrize("optimizer, M", [("adam", 1), ("sgd", 3)])
def test_gal_loss_is_its_formula(optimizer, M):
    """mean_i CE_i + 0.5 * alignment on noisy images, mean_i CE_i on PGD from there against the
    vote; for SGD times M, so that a member moves as far as in the other methods."""
    model, (x, y) = linear_ensemble(), a_batch()
    settings = settings_of(gal, optimizer=optimizer)
    torch.manual_seed(1)
    z = gal.noisy(x, 0.045)
    x_adv = pgd(model, z, y, settings.eps, settings.alpha, settings.steps)
    ce = sum(F.cross_entropy(m.logits(batch), y) for m in model.experts for batch in (z, x_adv))
    hand = M * (ce / 3 + 0.5 * alignment(model.experts, z, y).mean())
    torch.manual_seed(1)
    torch.testing.assert_close(gal.gal_loss(model, x, y, settings), hand)


def test_gal_networks_have_leaky_relus():
    model, _ = untrained(gal)
    slopes = {m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.1}
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


# -------------------------------------------------------------------------------------- DVERGE


@pytest.mark.parametrize("layer", [1, 2, 3, 7, 8])
def test_dverge_distils_features_of_the_target_within_the_ball(layer):
    torch.manual_seed(0)
    expert, settings = ResNet(8, 1, 10, 8).eval(), settings_of(dverge, distill_alpha=0.02)
    x, _ = a_batch(64)
    x_target = x.roll(1, 0)
    features = dverge.features_at(expert, layer)
    x_new = dverge.distill(expert, layer, x, x_target, settings)
    with torch.no_grad():
        h, h_new, h_target = map(features, (x, x_new, x_target))
    before, after = (dverge.feature_distance(z, h_target).mean() for z in (h, h_new))
    assert after < 0.9 * before
    assert (x_new - x).abs().max() <= settings.distill_eps + 1e-6
    assert x_new.min() >= 0 and x_new.max() <= 1


def test_dverge_features_come_before_the_relu_and_end_at_the_logits():
    expert, (x, _) = ResNet(8, 1, 10, 8).eval(), a_batch()
    conv, norm, relu, block, *_ = expert.backbone
    first = norm(conv((x - 0.5) / 0.25))
    inner = block.residual[1](block.residual[0](relu(first)))
    out = block.residual(relu(first)) + block.shortcut(relu(first))
    for layer, hand in ((1, first), (2, inner), (3, out), (8, expert.logits(x))):
        torch.testing.assert_close(dverge.features_at(expert, layer)(x), hand)
    assert dverge.features_at(expert, 3)(x).min() < 0
    with pytest.raises(ValueError, match="between 1 and 8"):
        dverge.features_at(expert, 9)


def test_dverge_draws_a_new_layer_every_epoch(monkeypatch):
    torch.manual_seed(0)
    settings, (x, y), layers = settings_of(dverge, n=2, eps=0.0), a_batch(), []
    monkeypatch.setattr(dverge, "distill", lambda e, layer, x, *_: layers.append(layer) or x)
    model = Ensemble([ResNet(8, 1, 10, 8) for _ in range(2)])
    loss = dverge.DvergeLoss()
    for _ in range(40 * settings.steps_per_epoch):
        loss.draw(settings)
        loss(model, x, y, settings)
    per_epoch = torch.tensor(layers).view(40, -1)  # both members, every step of an epoch
    assert (per_epoch == per_epoch[:, :1]).all()
    assert set(layers) == set(range(1, 9))


def test_dverge_members_learn_from_what_deceives_the_others(monkeypatch):
    """Member i sees x'_j for all j != i, and never its own."""
    model, (x, y), settings = linear_ensemble(), a_batch(), settings_of(dverge)
    members = list(model.experts)
    monkeypatch.setattr(dverge, "distill", lambda e, _, x, *__: x + 0.1 * members.index(e))
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    hand = sum(F.cross_entropy(members[i].logits(x + 0.1 * j), y) for i, j in pairs)
    clean = dverge.DvergeLoss()(model, x, y, settings_of(dverge, eps=0.0))
    torch.testing.assert_close(clean, hand)
    for member in members:  # and what PGD makes of each member itself
        x_adv = pgd(member.logits, x, y, settings.eps, settings.alpha, settings.steps)
        hand = hand + F.cross_entropy(member.logits(x_adv), y)
    torch.testing.assert_close(dverge.DvergeLoss()(model, x, y, settings), hand)


def test_dverge_moves_an_image_towards_another_one_of_its_batch(monkeypatch):
    model, (x, y), targets = linear_ensemble(), a_batch(), []
    monkeypatch.setattr(dverge, "distill", lambda e, layer, x, to, s: targets.append(to) or x)
    dverge.DvergeLoss()(model, x, y, settings_of(dverge, eps=0.0))
    for x_target in targets:
        assert not (x_target == x).flatten(1).all(1).any()
        assert torch.equal(x_target.flatten(1).unique(dim=0), x.flatten(1).unique(dim=0))


# ---------------------------------------------------------------------------------------- MoRE


def test_more_output_is_the_gate_s_weighted_sum_of_logits():
    torch.manual_seed(0)
    model, (x, _) = untrained(more)[0].eval(), a_batch()
    logits, score = model.all_experts(x)
    weights = torch.softmax(score, 0)  # [M, B]
    torch.testing.assert_close(weights.sum(0), torch.ones(len(x)))
    features = torch.cat([e.features(x) for e in model.experts], 1)
    torch.testing.assert_close(score, (features @ model.gate.weight.T + model.gate.bias).T)
    hand = sum(weights[j, :, None] * e.logits(x) for j, e in enumerate(model.experts))
    torch.testing.assert_close(model(x), hand)
    assert logits.shape == (3, len(x), 10)


def test_more_trains_gate_and_experts():
    torch.manual_seed(0)
    model, settings = untrained(more)
    more.more_loss(model, *a_batch(), settings).backward()
    trained = [model.gate.weight, *(expert.p_head.weight for expert in model.experts)]
    trained += [expert.backbone[0].weight for expert in model.experts]
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trained)


def test_more_loss_is_cross_entropy_of_the_mixture_clean_and_attacked():
    torch.manual_seed(0)
    (model, settings), (x, y) = untrained(more), a_batch()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # so that the attack below meets the same statistics
    x_adv = pgd(model.eval(), x, y, settings.eps, settings.alpha, settings.steps)
    model.train()
    hand = F.cross_entropy(model(x), y) + F.cross_entropy(model(x_adv), y)
    torch.testing.assert_close(more.more_loss(model, x, y, settings), hand)


def test_a_mixture_needs_an_expert():
    with pytest.raises(ValueError, match="at least one expert"):
        Mixture([])


# ------------------------------------------------------------------------ every method, end to end


@pytest.mark.parametrize(
    "module, loss, learned",
    [
        (plain, plain.plain_loss, 2),
        (plain, plain.together_loss, 2),
        (adp, adp.adp_loss, 2),
        (gal, gal.gal_loss, 2),
        (dverge, dverge.DvergeLoss(), 3),  # one distilled from each other, one attacked
        (more, more.more_loss, 2),
    ],
)
def test_attacks_leave_batch_norm_alone(module, loss, learned):
    """It moves with the batches that are learned, and with no other."""
    model, settings = untrained(module)
    loss(model, *a_batch(), settings)
    for expert in model.experts:
        assert expert.backbone[1].num_batches_tracked == learned


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_method_is_trained_saved_loaded_and_attacked(way, tmp_path, capsys, refused):
    (module, flags), out = WAYS[way], str(tmp_path / "run")
    train_small(out, "--epochs", "2", "--depth", "8", *flags, script=module)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    me = "mixture" if way == "more" else "vote"
    assert metrics["table"][me]["clean"] > 50
    assert (tmp_path / "run" / "curves.png").exists()
    few = "--eps 0.1 --images 40 --queries 9 --steps 2".split()
    evaluate.main([out, *few])
    (found,) = json.loads((tmp_path / "run" / "attacks.json").read_text())["eps"].values()
    weighs = {"adaptive"} if me == "mixture" else set()  # a gate may be misled, a vote may not
    assert set(found["table"][me]) == {"clean", "pgd", "apgd", "square", "own", "worst"} | weighs
    if not weighs:
        assert "no score says who" in refused(infer, out, "--attack", "adaptive")
    infer.main([out, "0", "1"])
    assert f"  {me}: " in capsys.readouterr().out  # what the model says, and not one expert


def test_infer_gives_the_answer_of_the_vote_not_of_the_first_member(capsys):
    weights = torch.zeros(3, 10, 64)
    weights[0, 3], weights[1:, 7] = 0.01, 1.0
    model = Ensemble([Linear(w) for w in weights])
    answers, titles = print_answers(
        model, torch.ones(1, 1, 8, 8), ["an image"], [*map(str, range(10))]
    )
    assert answers.tolist() == [7] and titles == ["7 by the vote"]
    assert "  expert 1: 3\n" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("module", [adp, dverge, more])
def test_a_baseline_resumes_bit_for_bit(module, tmp_path, monkeypatch):
    """Adam's moments, DVERGE's layer and the gate come back too."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_small(whole, "--random-start", script=module)
    save = checkpoints.save

    def stop(path, checkpoint):
        save(path, checkpoint)
        if checkpoint["epoch"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(checkpoints, "save", stop)
        train_small(cut, "--random-start", script=module)
    assert stopped.value.code == 130 and not same_weights(whole, cut)
    module.main(["--resume", str(cut)])
    assert same_weights(whole, cut)
    if module is adp:
        (group,) = checkpoints.load(cut)["optimizer"]["param_groups"]
        assert (group["eps"], group["weight_decay"], group["initial_lr"]) == (1e-7, 1e-4, 1e-3)


@pytest.mark.parametrize(
    "module, flags, message",
    [
        (adp, "--n 10", "only 9 members fit"),
        (gal, "--n 1", "at least 2"),
        (dverge, "--n 1", "needs 2"),
        (dverge, "--batch-size 1", "another one of its batch"),
        (dverge, "--epochs 1", "2 stages need at least 2"),
        (plain, "--eps 0 --together", "with --eps 0 nothing is"),
        (plain, "--clean-weight 2.5", "must lie in [0, 2]"),
        (plain, "--clean-weight 0.5", "goes with --together"),
        (plain, "--clean-weight 0.5 --jointly --eps 0", "not at --eps 0"),
        (plain, "--eps -0.1", "must lie in"),
        (adp, "--entropy -1", "must be 0 or more"),
        (dverge, "--distill-eps 0", "must be positive"),
        (gal, "--sigma 1", "unrecognized arguments"),
    ],
)
def test_what_a_baseline_cannot_do_is_one_line(module, flags, message, tmp_path, refused):
    assert message in refused(module, *SMALL, *flags.split(), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "module, published",
    [
        (plain, {"optimizer": "sgd", "together": False}),
        (adp, {"optimizer": "adam", "entropy": 2.0, "diversity": 0.5}),
        (gal, {"optimizer": "adam", "coherence": 0.5, "slope": 0.1, "noise": 0.045}),
        (gal, {"precision": "float32"}),  # it differentiates twice
        (dverge, {"distill_eps": 0.07, "distill_alpha": 0.007, "distill_steps": 10}),
        (more, {"optimizer": "sgd"}),
    ],
)
def test_defaults_are_the_published_ones(module, published):
    (settings,) = {m.settings for m in METHODS.values() if m.main is module.main}
    defaults = vars(settings())
    assert published.items() <= defaults.items()
    assert not {"sigma", "lambda_", "confidence", "weights", "submodels"} & set(defaults)  # SoE's
