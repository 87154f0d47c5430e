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
from experiments.fixtures import SMALL, interrupt, same_weights, stop_training, train_small
from models import Ensemble, ResNet
from support import checkpoints
from support.printing import print_answers
from train_submodel import best_expert_loss, training_attack

RIVALS = [name for name in METHODS if not name.startswith("soe")]


def settings_of(name, **changed):
    """The method's defaults for 8 x 8 digits, three ResNet8s."""
    method = METHODS[name]
    small = {"depth": 8, "eps": 0.1, "alpha": 0.03, "steps": 3, "steps_per_epoch": 4}
    shape = {"image_shape": [1, 8, 8], "num_classes": 10, "model": method.model}
    return Namespace(**vars(method.settings()) | small | shape | changed)


def untrained(name):
    """The method's untrained model, and its settings."""
    torch.manual_seed(0)
    settings = settings_of(name)
    return build(vars(settings)), settings


def linear_ensemble():
    torch.manual_seed(0)
    return Ensemble([Linear(torch.randn(10, 64)) for _ in range(3)])


def a_batch(count=16):
    dataset = data.load("digits")
    return dataset.x_train[:count].float() / 255, dataset.y_train[:count]


def assert_same(ours, by_hand, parameters):
    """The loss, and its gradient for these parameters."""
    torch.testing.assert_close(ours, by_hand)
    ours, by_hand = (torch.autograd.grad(loss, parameters) for loss in (ours, by_hand))
    torch.testing.assert_close(ours, by_hand)


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
    settings = settings_of("plain", n=2)
    grads = []
    for seed in (1, 2):
        torch.manual_seed(0)
        first = ResNet(8, 1, 10, 8)
        torch.manual_seed(seed)
        model = Ensemble([first, ResNet(8, 1, 10, 8)])
        loss = plain.plain_loss(model, x, y, settings)
        grads.append(torch.autograd.grad(loss, first.p_head.weight)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("eps", [0.1, 0.0])
@pytest.mark.parametrize("loss", [plain.plain_loss, plain.together_loss])
def test_plain_adds_clean_and_adversarial_cross_entropies_of_all_members(loss, eps):
    """Where eps is 0, the clean ones alone."""
    model, (x, y), settings = linear_ensemble(), a_batch(), settings_of("plain", eps=eps)

    def attacked(predict):
        x_adv = x.clone()
        for _ in range(settings.steps):
            x_adv.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(predict(x_adv), y), x_adv)
            x_adv = (x_adv + settings.alpha * grad.sign()).detach()
            x_adv = torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)
        return x_adv

    def average(z):
        return torch.stack([e.logits(z).softmax(1) for e in model.experts]).mean(0).log()

    by_hand = 0
    for expert in model.experts:
        target = average if loss is plain.together_loss else expert.logits
        batches = [x, attacked(target)] if eps else [x]
        by_hand += sum(F.cross_entropy(expert.logits(batch), y) for batch in batches)
    torch.testing.assert_close(loss(model, x, y, settings), by_hand)


def test_jointly_is_soe_s_loss_at_sigma_1_without_e_heads():
    """Eq. 7 is then the cross-entropy of the vote less ln M, on each of the two batches."""
    model, (x, y) = linear_ensemble(), a_batch()
    settings = settings_of("plain")
    x_adv = pgd(model, x, y, settings.eps, settings.alpha, settings.steps)  # against the vote
    by_eq_7 = 0
    for batch in (x, x_adv):
        losses = expert_losses(model.all_experts(batch)[0], y)
        by_eq_7 += 3 * (best_expert_loss(losses, 1.0).mean() + math.log(3))
    torch.testing.assert_close(plain.jointly_loss(model, x, y, settings), by_eq_7)


@pytest.mark.parametrize(
    "loss, flags",
    [("plain_loss", []), ("together_loss", ["--together"]), ("jointly_loss", ["--jointly"])],
)
def test_together_and_jointly_choose_the_loss(loss, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(plain, loss, interrupt)
    with pytest.raises(SystemExit) as stopped:
        train_small(tmp_path / "run", *flags, script=plain)
    assert stopped.value.code == 130


@pytest.mark.parametrize("random_start", [False, True])
def test_training_attack_starts_at_random_only_where_asked(random_start):
    """A step of 1e-4 shows where it started."""
    torch.manual_seed(0)
    expert, (x, y) = Linear(torch.randn(10, 64)), a_batch()
    settings = settings_of("plain", alpha=1e-4, steps=1, random_start=random_start)
    x_adv = training_attack(expert.logits, x, y, settings)
    far = (x_adv - x).abs().max()
    assert 0.05 < far <= 0.1 + 1e-6 if random_start else far <= 1e-4 + 1e-6


# ----------------------------------------------------------------------------------------- ADP


def test_adp_determinant_is_1_for_orthogonal_members_and_0_where_two_agree():
    """Of the true class, here 3, the members may think what they like."""
    orthogonal = torch.tensor([[90.0, 0, 0, 5], [0, 90.0, 0, 70], [0, 0, 90.0, 99]])[:, None]
    y = torch.tensor([3])
    assert adp.log_determinant(orthogonal, y).exp().item() == pytest.approx(1, abs=1e-5)
    two_agree = orthogonal[[0, 1, 1]] + torch.tensor([0, 0, 0, 1.0])
    assert adp.log_determinant(two_agree, y).exp().item() < 1e-5


def test_adp_loss_is_its_formula_on_clean_and_on_attacked_images():
    model, (x, y), settings = linear_ensemble(), a_batch(), settings_of("adp")
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
    clean = adp.adp_loss(model, x, y, settings_of("adp", eps=0.0))
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
    settings = settings_of("gal", optimizer=optimizer)
    torch.manual_seed(1)
    z = gal.noisy(x, 0.045)
    x_adv = pgd(model, z, y, settings.eps, settings.alpha, settings.steps, trusted=True)
    ce = sum(F.cross_entropy(m.logits(batch), y) for m in model.experts for batch in (z, x_adv))
    by_hand = M * (ce / 3 + 0.5 * alignment(model.experts, z, y).mean())
    torch.manual_seed(1)
    assert_same(gal.gal_loss(model, x, y, settings), by_hand, list(model.parameters()))


def test_gal_networks_have_leaky_relus():
    model, _ = untrained("gal")
    slopes = {m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.1}
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


# -------------------------------------------------------------------------------------- DVERGE


@pytest.mark.parametrize("layer", [1, 2, 3, 7, 8])
def test_dverge_distils_features_of_the_target_within_the_ball(layer):
    torch.manual_seed(0)
    expert, settings = ResNet(8, 1, 10, 8).eval(), settings_of("dverge", distill_alpha=0.02)
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
    for layer, by_hand in ((1, first), (2, inner), (3, out), (8, expert.logits(x))):
        torch.testing.assert_close(dverge.features_at(expert, layer)(x), by_hand)
    assert dverge.features_at(expert, 3)(x).min() < 0
    with pytest.raises(ValueError, match="between 1 and 8"):
        dverge.features_at(expert, 9)


def test_dverge_draws_a_new_layer_every_epoch(monkeypatch):
    torch.manual_seed(0)
    settings, (x, y), layers = settings_of("dverge", n=2, eps=0.0), a_batch(), []
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
    model, (x, y), settings = linear_ensemble(), a_batch(), settings_of("dverge")
    members = list(model.experts)
    monkeypatch.setattr(dverge, "distill", lambda e, _, x, *__: x + 0.1 * members.index(e))
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    by_hand = sum(F.cross_entropy(members[i].logits(x + 0.1 * j), y) for i, j in pairs)
    clean = dverge.DvergeLoss()(model, x, y, settings_of("dverge", eps=0.0))
    torch.testing.assert_close(clean, by_hand)
    for member in members:  # and what PGD makes of each member itself
        x_adv = pgd(member.logits, x, y, settings.eps, settings.alpha, settings.steps)
        by_hand = by_hand + F.cross_entropy(member.logits(x_adv), y)
    torch.testing.assert_close(dverge.DvergeLoss()(model, x, y, settings), by_hand)


def test_dverge_moves_an_image_towards_another_one_of_its_batch(monkeypatch):
    model, (x, y), targets = linear_ensemble(), a_batch(), []
    monkeypatch.setattr(dverge, "distill", lambda e, layer, x, to, s: targets.append(to) or x)
    dverge.DvergeLoss()(model, x, y, settings_of("dverge", eps=0.0))
    for x_target in targets:
        assert not (x_target == x).flatten(1).all(1).any()
        assert torch.equal(x_target.flatten(1).unique(dim=0), x.flatten(1).unique(dim=0))


# ---------------------------------------------------------------------------------------- MoRE


def test_more_output_is_the_gate_s_weighted_sum_of_logits():
    model, (x, _) = untrained("more")[0].eval(), a_batch()
    features = torch.cat([e.features(x) for e in model.experts], 1)
    score = (features @ model.gate.weight.T + model.gate.bias).T  # [M, B]
    torch.testing.assert_close(model.all_experts(x)[1], score)
    weights = score.exp() / score.exp().sum(0)
    by_hand = sum(w[:, None] * e.logits(x) for w, e in zip(weights, model.experts))
    torch.testing.assert_close(model(x), by_hand)


def test_more_loss_is_cross_entropy_of_the_mixture_clean_and_attacked():
    """The gate learns, and so does every expert."""
    (model, settings), (x, y) = untrained("more"), a_batch()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # so that the attack below meets the same statistics
    x_adv = pgd(model.eval(), x, y, settings.eps, settings.alpha, settings.steps)
    model.train()
    by_hand = F.cross_entropy(model(x), y) + F.cross_entropy(model(x_adv), y)
    trained = [model.gate.weight, *(expert.p_head.weight for expert in model.experts)]
    trained += [expert.backbone[0].weight for expert in model.experts]
    assert_same(more.more_loss(model, x, y, settings), by_hand, trained)


def test_a_mixture_needs_an_expert():
    with pytest.raises(ValueError, match="at least one expert"):
        Mixture([])


# ------------------------------------------------------------------------ every method, end to end


@pytest.mark.parametrize("name", RIVALS)
def test_attacks_leave_batch_norm_alone(name):
    """It moves with the batches that are learned, and with no other."""
    model, settings = untrained(name)
    METHODS[name].losses[-1](model, *a_batch(), settings)
    learned = 3 if name == "dverge" else 2  # one distilled from each other, one attacked
    for expert in model.experts:
        assert expert.backbone[1].num_batches_tracked == learned


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, eps",
    [(name, "0.1") for name in RIVALS]
    + [(name, "0") for name in ("plain", "adp", "gal", "dverge")],
)
def test_every_method_is_trained_saved_loaded_and_attacked(name, eps, tmp_path, capsys, refused):
    method, run = METHODS[name], tmp_path / "run"
    flags = ["--epochs", "2", "--depth", "8", "--eps", eps, *method.flags.split()]
    train_small(run, *flags, script=method)
    row = "mixture" if name == "more" else "vote"
    assert json.loads((run / "metrics.json").read_text())["table"][row]["clean"] > 50
    assert (run / "curves.png").exists()
    evaluate.main([str(run), *"--eps 0.1 --images 40 --queries 9 --steps 2".split()])
    (result,) = json.loads((run / "attacks.json").read_text())["eps"].values()
    columns = {"clean", "pgd", "apgd", "square", "own", "worst"}
    if row == "mixture":  # a gate may be misled, a vote may not
        columns.add("adaptive")
    else:
        assert "no score says who" in refused(infer, run, "--attack", "adaptive")
    assert set(result["table"][row]) == columns
    infer.main([str(run), "0", "1"])
    assert f"  {row}: " in capsys.readouterr().out  # what the model says, and not one expert


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
def test_a_baseline_resumes_bit_for_bit(module, tmp_path):
    """Adam's moments, DVERGE's layer and the gate come back too."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_small(whole, "--random-start", script=module)
    stop_training(cut, "--random-start", script=module, epoch=3)
    assert not same_weights(whole, cut)
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
        (plain, "--eps -0.1", "must lie in"),
        (adp, "--entropy -1", "must be 0 or more"),
        (dverge, "--distill-eps 0", "must lie in (0, 1]"),
        (gal, "--sigma 1", "unrecognized arguments"),
    ],
)
def test_what_a_baseline_cannot_do_is_one_line(module, flags, message, tmp_path, refused):
    assert message in refused(module, *SMALL, *flags.split(), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name, published",
    [
        ("plain", {"optimizer": "sgd", "together": False}),
        ("adp", {"optimizer": "adam", "entropy": 2.0, "diversity": 0.5}),
        ("gal", {"optimizer": "adam", "coherence": 0.5, "slope": 0.1, "noise": 0.045}),
        ("gal", {"precision": "float32"}),  # it differentiates twice
        ("dverge", {"distill_eps": 0.07, "distill_alpha": 0.007, "distill_steps": 10}),
        ("more", {"optimizer": "sgd"}),
    ],
)
def test_defaults_are_the_published_ones(name, published):
    defaults = vars(METHODS[name].settings())
    assert published.items() <= defaults.items()
    assert not {"sigma", "lambda_", "confidence", "weights", "submodels"} & set(defaults)  # SoE's
