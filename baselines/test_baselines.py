"""Statements about the baselines that must hold."""

import json
import math
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import data
import infer
from attacks import pgd
from baselines import adp, dverge, gal, more, plain
from experiments import compare
from models import Collaboration, Ensemble, Mixture, ResNet
from support import files, options
from train_collab import stage2_loss
from train_submodel import stage1_loss, training_attack

SMALL = "--depth 2 --n 2 --epochs 2 --steps 2 --eps 0.1 --device cpu".split()
WAYS = {  # every method, and every way to run it
    "plain": (plain, []),
    "plain-clean": (plain, ["--eps", "0"]),
    "plain-together": (plain, ["--together"]),
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
    small = {"depth": 8, "eps": 0.1, "alpha": 0.03, "steps": 3, "steps_per_epoch": 4}
    shape = {"image_shape": [1, 8, 8], "num_classes": 10}
    method = module.__name__.split(".")[-1]
    return Namespace(**module.PARSER.defaults | small | shape | changed, method=method)


def a_batch(count=16):
    dataset = data.load("digits")
    return dataset.x_train[:count].float() / 255, dataset.y_train[:count]


class Linear(nn.Module):
    """An expert whose logits are W x, so that every gradient can be written down."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x):
        return x.flatten(1) @ self.weights.T, x.new_zeros(len(x))


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
        loss = plain.plain_loss(model, settings)(x, y)
        grads.append(torch.autograd.grad(loss, first.p_head.weight)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("together", [False, True])
def test_plain_adds_clean_and_adversarial_cross_entropies_of_all_members(together):
    torch.manual_seed(0)
    x, y = a_batch()
    model = Ensemble([Linear(torch.randn(10, 64)) for _ in range(3)])
    settings = settings_of(plain, together=together)
    eps, alpha, steps = settings.eps, settings.alpha, settings.steps

    def attacked(predict):
        x_adv = x.clone()
        for _ in range(steps):
            x_adv.requires_grad_()
            (grad,) = torch.autograd.grad(F.nll_loss(predict(x_adv), y, reduction="sum"), x_adv)
            x_adv = (x_adv + alpha * grad.sign()).detach()
            x_adv = torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)
        return x_adv

    def average(z):
        return torch.stack([e(z)[0].softmax(1) for e in model.experts]).mean(0).log()

    hand = 0
    for expert in model.experts:
        x_adv = attacked(average if together else lambda z, e=expert: e(z)[0].log_softmax(1))
        hand += F.cross_entropy(expert(x)[0], y) + F.cross_entropy(expert(x_adv)[0], y)
    torch.testing.assert_close(plain.method_loss(model, settings)(x, y), hand)
    if not together:
        clean = sum(F.cross_entropy(expert(x)[0], y) for expert in model.experts)
        torch.testing.assert_close(
            plain.plain_loss(model, settings_of(plain, eps=0.0))(x, y), clean
        )


@pytest.mark.parametrize("random_start", [False, True])
def test_training_attack_starts_at_random_only_where_asked(random_start):
    """A step of 1e-4 shows where it started."""
    torch.manual_seed(0)
    expert, (x, y) = Linear(torch.randn(10, 64)), a_batch()
    settings = settings_of(plain, alpha=1e-4, steps=1, random_start=random_start)
    x_adv = training_attack(lambda z: expert(z)[0], x, y, settings)
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


def test_adp_loss_is_its_formula_and_adds_the_members_losses_under_attack():
    torch.manual_seed(0)
    x, y = a_batch()
    model = Ensemble([Linear(torch.randn(10, 64)) for _ in range(3)])
    f = torch.stack([e(x)[0] for e in model.experts]).softmax(-1).double()
    mean, hand = f.mean(0), 0.0
    for i in range(len(x)):
        V = torch.stack([torch.cat([f_j[i, : y[i]], f_j[i, y[i] + 1 :]]) for f_j in f], 1)
        V = V / V.norm(dim=0)
        det = torch.linalg.det(V.T @ V + 1e-6 * torch.eye(3))
        ce = -f[:, i, y[i]].log().sum()
        entropy = -(mean[i] * mean[i].log()).sum()
        hand += (ce - 2.0 * entropy - 0.5 * det.log()).item() / len(x)
    assert adp.adp_loss(model, settings_of(adp, eps=0.0))(x, y).item() == pytest.approx(hand)
    settings = settings_of(adp)
    x_adv = pgd(model, x, y, settings.eps, settings.alpha, settings.steps)  # against the vote
    hand += sum(F.cross_entropy(e(x_adv)[0], y) for e in model.experts).item()
    assert adp.adp_loss(model, settings)(x, y).item() == pytest.approx(hand)


def test_adp_leaves_what_is_not_finite_to_the_training_loop():
    logits = torch.full((3, 2, 10), torch.nan)
    assert adp.log_determinant(logits, torch.tensor([0, 1])).isnan().all()


# ----------------------------------------------------------------------------------------- GAL


def test_gal_term_follows_the_gradients_of_linear_members():
    """grad_x CE of a linear member is W^T (f - onehot(y)): their cosines, by hand."""
    torch.manual_seed(0)
    x, y = a_batch()
    members = [Linear(torch.randn(10, 64)) for _ in range(3)]
    x = x.requires_grad_()
    losses = [F.cross_entropy(m(x)[0], y, reduction="none") for m in members]
    ours = gal.coherence(losses, x)
    g = [(m(x)[0].softmax(1) - F.one_hot(y, 10)) @ m.weights for m in members]
    cosines = [F.cosine_similarity(g[i], g[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(ours, torch.stack(cosines).exp().sum(0).log())
    weights = [m.weights for m in members]
    grads = torch.autograd.grad(ours.sum(), weights)  # differentiable once more
    assert all(grad.abs().sum() > 0 for grad in grads)


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


def test_gal_loss_is_its_formula():
    """mean_i CE_i + 0.5 * alignment on noisy images, mean_i CE_i on PGD against the vote; all times
    M, so that a member moves as far as in the other methods."""
    torch.manual_seed(0)
    x, y = a_batch()
    model, settings = Ensemble([Linear(torch.randn(10, 64)) for _ in range(3)]), settings_of(gal)
    x_adv = pgd(model, x, y, settings.eps, settings.alpha, settings.steps)
    torch.manual_seed(1)
    z = gal.noisy(x, 0.045)
    g = [(m(z)[0].softmax(1) - F.one_hot(y, 10)) @ m.weights for m in model.experts]
    cosines = [F.cosine_similarity(g[i], g[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    alignment = torch.stack(cosines).exp().sum(0).log().mean()
    ce = sum(F.cross_entropy(m(batch)[0], y) for m in model.experts for batch in (z, x_adv))
    torch.manual_seed(1)
    torch.testing.assert_close(gal.gal_loss(model, settings)(x, y), ce + 3 * 0.5 * alignment)


def test_gal_networks_have_leaky_relus():
    model = infer.build(vars(settings_of(gal)))
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
    for layer, hand in ((1, first), (2, inner), (3, out), (8, expert(x)[0])):
        torch.testing.assert_close(dverge.features_at(expert, layer)(x), hand)
    assert dverge.features_at(expert, 3)(x).min() < 0
    with pytest.raises(ValueError, match="between 1 and 8"):
        dverge.features_at(expert, 9)


def test_dverge_draws_a_new_layer_every_epoch(monkeypatch):
    torch.manual_seed(0)
    settings, (x, y), layers = settings_of(dverge, n=2), a_batch(), []
    monkeypatch.setattr(dverge, "distill", lambda e, layer, x, *_: layers.append(layer) or x)
    model = Ensemble([ResNet(8, 1, 10, 8) for _ in range(2)])
    loss = dverge.dverge_loss(model, Namespace(**vars(settings) | {"eps": 0.0}))
    for _ in range(40 * settings.steps_per_epoch):
        loss(x, y)
    per_epoch = torch.tensor(layers).view(40, -1)  # both members, every step of an epoch
    assert (per_epoch == per_epoch[:, :1]).all()
    assert set(layers) == set(range(1, 9))


def test_dverge_members_learn_from_what_deceives_the_others(monkeypatch):
    """Member i sees x'_j for all j != i, and never its own."""
    shifts = {}
    monkeypatch.setattr(dverge, "distill", lambda e, layer, x, *_: x + shifts[e])
    torch.manual_seed(0)
    members = [Linear(torch.randn(10, 64)) for _ in range(3)]
    shifts.update({member: 0.1 * j for j, member in enumerate(members)})
    x, y = a_batch()
    loss = dverge.dverge_loss(Ensemble(members), settings_of(dverge, eps=0.0))(x, y)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    hand = sum(F.cross_entropy(members[i](x + 0.1 * j)[0], y) for i, j in pairs)
    torch.testing.assert_close(loss, hand)
    settings = settings_of(dverge)
    for member in members:  # and what PGD makes of each member itself
        x_adv = pgd(lambda z, m=member: m(z)[0], x, y, 0.1, settings.alpha, settings.steps)
        hand = hand + F.cross_entropy(member(x_adv)[0], y)
    torch.testing.assert_close(dverge.dverge_loss(Ensemble(members), settings)(x, y), hand)


# ---------------------------------------------------------------------------------------- MoRE


def test_more_output_is_the_gate_s_weighted_sum_of_logits():
    torch.manual_seed(0)
    model, (x, _) = infer.build(vars(settings_of(more))).eval(), a_batch()
    logits, score = model.all_experts(x)
    weights = torch.softmax(score, 0)  # [M, B]
    torch.testing.assert_close(weights.sum(0), torch.ones(len(x)))
    features = torch.cat([e.features(x) for e in model.experts], 1)
    torch.testing.assert_close(score, (features @ model.gate.weight.T + model.gate.bias).T)
    hand = sum(weights[j, :, None] * e(x)[0] for j, e in enumerate(model.experts))
    torch.testing.assert_close(model(x), hand)
    assert logits.shape == (3, len(x), 10)


def test_more_trains_gate_and_experts():
    torch.manual_seed(0)
    settings = settings_of(more)
    model = infer.build(vars(settings))
    more.more_loss(model, settings)(*a_batch()).backward()
    trained = [model.gate.weight, *(expert.p_head.weight for expert in model.experts)]
    trained += [expert.backbone[0].weight for expert in model.experts]
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trained)


def test_more_loss_is_cross_entropy_of_the_mixture_clean_and_attacked():
    torch.manual_seed(0)
    settings, (x, y) = settings_of(more), a_batch()
    model = infer.build(vars(settings))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # so that the attack below meets the same statistics
    x_adv = pgd(model.eval(), x, y, settings.eps, settings.alpha, settings.steps)
    model.train()
    hand = 3 * (F.cross_entropy(model(x), y) + F.cross_entropy(model(x_adv), y))
    torch.testing.assert_close(more.more_loss(model, settings)(x, y), hand)


def test_a_mixture_needs_an_expert():
    with pytest.raises(ValueError, match="at least one expert"):
        Mixture([], nn.Linear(1, 1))


# ------------------------------------------------------------------------ every method, end to end


@pytest.mark.parametrize("method", ["plain", "together", "adp", "gal", "dverge", "more"])
def test_attacks_leave_batch_norm_alone(method):
    """It moves with the batches that are learned, and with no other."""
    makers = {
        "plain": (plain, plain.plain_loss, 2),
        "together": (plain, plain.together_loss, 2),
        "adp": (adp, adp.adp_loss, 2),
        "gal": (gal, gal.gal_loss, 2),
        "dverge": (dverge, dverge.dverge_loss, 3),  # one distilled from each other, one attacked
        "more": (more, more.more_loss, 2),
    }
    module, make, learned = makers[method]
    settings = settings_of(module)
    model = infer.build(vars(settings))
    make(model, settings)(*a_batch())
    for expert in model.experts:
        assert expert.backbone[1].num_batches_tracked == learned


@pytest.mark.parametrize("way", WAYS)
def test_every_method_is_trained_saved_loaded_and_attacked(way, tmp_path, capsys):
    module, flags = WAYS[way]
    out = tmp_path / "run"
    assert module.main([*SMALL, *flags, "--depth", "8", "--out", str(out)]) == 0
    table = json.loads((out / "metrics.json").read_text())["table"]
    me = "mixture" if way == "more" else "vote"
    assert table[me]["clean"] > 50
    assert (out / "curves.png").exists()
    attacks = "pgd,adaptive,square"
    capsys.readouterr()
    command = [str(out), "--attack", attacks, "--eps", "0.1", "--images", "40", "--queries", "9"]
    assert infer.main([*command, "--steps", "2"]) == 0
    (found,) = json.loads((out / "attacks.json").read_text())["eps"].values()
    assert {"clean", "pgd", "adaptive", "square"} <= set(found["table"][me])
    assert infer.main([str(out), "0", "1"]) == 0
    assert f"  {me}: " in capsys.readouterr().out  # what the model says, and not one expert


def test_infer_gives_the_answer_of_the_vote_not_of_the_first_member(capsys):
    weights = torch.zeros(3, 10, 64)
    weights[0, 3], weights[1:, 7] = 0.01, 1.0
    model = Ensemble([Linear(w) for w in weights])
    answers, titles = infer.describe(model, torch.ones(1, 1, 8, 8), ["an image"])
    assert answers == [7] and titles == ["7 by the vote"]
    assert "  expert 1: 3\n" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["adp", "dverge", "more"])
def test_a_baseline_resumes_bit_for_bit(way, tmp_path, monkeypatch):
    """Adam's moments, DVERGE's layer and the gate come back too."""
    module, _ = WAYS[way]
    flags = [*SMALL, "--epochs", "4", "--random-start"]
    assert module.main([*flags, "--out", str(tmp_path / "whole")]) == 0
    calls, save = [], module.run.__globals__["files"].save_checkpoint

    def stop(path, checkpoint):
        save(path, checkpoint)
        calls.append(path.name)
        if checkpoint["epoch"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("train_submodel.files.save_checkpoint", stop)
        assert module.main([*flags, "--out", str(tmp_path / "cut")]) == 130
    assert module.main(["--resume", str(tmp_path / "cut")]) == 0
    whole, cut = (torch.load(tmp_path / name / "model.pt") for name in ("whole", "cut"))
    assert all(torch.equal(v, cut["model"][name]) for name, v in whole["model"].items())
    if way == "adp":
        (group,) = whole["optimizer"]["param_groups"]
        assert (group["eps"], group["weight_decay"], group["initial_lr"]) == (1e-7, 1e-4, 1e-3)


@pytest.mark.parametrize(
    "module, flags, message",
    [
        (adp, "--n 10", "only 9 members fit"),
        (gal, "--n 1", "at least 2"),
        (dverge, "--n 1", "needs 2"),
        (dverge, "--batch-size 1", "another one of its batch"),
        (plain, "--eps 0 --together", "with --eps 0 nothing is"),
        (plain, "--eps -0.1", "must lie in"),
        (adp, "--entropy -1", "must be 0 or more"),
        (dverge, "--distill-eps 0", "must be positive"),
        (gal, "--sigma 1", "unrecognized arguments"),
    ],
)
def test_what_a_baseline_cannot_do_is_one_line(module, flags, message, tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        module.main([*SMALL, *flags.split(), "--out", str(out)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert not out.exists()


def test_defaults_are_the_published_ones():
    published = {
        plain: {"optimizer": "sgd"},
        adp: {"optimizer": "adam", "entropy": 2.0, "diversity": 0.5},
        gal: {"optimizer": "adam", "coherence": 0.5, "slope": 0.1, "noise": 0.045},
        dverge: {"distill_eps": 0.07, "distill_alpha": 0.007, "distill_steps": 10},
        more: {"optimizer": "sgd"},
    }
    for module, values in published.items():
        assert values.items() <= module.PARSER.defaults.items()
        assert not set(options.ONLY_SOE) & set(module.PARSER.defaults)
    assert gal.PARSER.defaults["precision"] == "float32"  # it differentiates twice


# ---------------------------------------------------------------------------------- the comparison


def test_comparison_trains_reuses_and_tabulates(tmp_path, capsys):
    """Two parts of one plan, then all of it: nothing is trained twice."""
    out = tmp_path / "runs"
    common = (
        "--eps 0.1 --depth 2 --n 2 --epochs 2 --attack pgd,square --steps 2 --queries 5".split()
    )
    common += ["--images", "50", "--methods", "soe,adp", "--device", "cpu", "--out", str(out)]
    assert compare.main([*common, "--shard", "1/2"]) == 0
    first = {path: path.stat().st_mtime_ns for path in out.glob("*/model.pt")}
    assert {path.parent.name.split("-depth")[0] for path in first} == {
        "digits-soe",
        "digits-adp-shared",
    }
    assert compare.main([*common, "--shard", "2/2"]) == 0
    assert all(path.stat().st_mtime_ns == then for path, then in first.items())
    (table,) = json.loads((out / "compare-2.json").read_text())["tables"].values()
    assert list(table) == ["soe", "adp", "adp, SGD"]
    assert (out / "compare-2.png").exists()
    of_run = json.loads(next(out.glob("digits-soe-*/compared.json")).read_text())
    (result,) = of_run.values()
    assert table["soe"]["clean"] == [result["table"]["collaboration"]["clean"]]
    checkpoints = map(torch.load, out.glob("digits-adp-*/model.pt"))
    rates = {(c["settings"]["optimizer"], c["settings"]["lr"]) for c in checkpoints}
    assert rates == {("adam", 0.001), ("sgd", 0.1)}
    assert table["adp"]["seeds"] == [1] and table["adp"]["epochs"] == [2]
    assert "±" not in capsys.readouterr().out


def test_comparison_sees_other_images_under_the_same_name(tmp_path, capsys):
    common = "--eps 0.1 --depth 2 --n 2 --epochs 2 --attack pgd --steps 2 --methods plain".split()
    rng = np.random.default_rng(0)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        images = {name: rng.integers(0, 256, (9, 8, 8), np.uint8) for name in ("x_train", "x_test")}
        labels = {name: np.arange(9) for name in ("y_train", "y_test")}
        np.savez(tmp_path / folder / "mine.npz", **images, **labels)
    common += ["--out", str(tmp_path / "runs"), "--data"]
    assert compare.main([*common, str(tmp_path / "one" / "mine.npz")]) == 0
    with pytest.raises(SystemExit):
        compare.main([*common, str(tmp_path / "two" / "mine.npz")])
    assert "was trained on other images" in capsys.readouterr().err


def test_comparison_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    common = "--eps 0.1 --depth 2 --n 2 --epochs 4 --attack pgd --steps 2 --images 20".split()
    common += ["--methods", "plain", "--seeds", "2", "--device", "cpu"]
    assert compare.main([*common, "--out", str(tmp_path / "whole")]) == 0
    save = files.save_checkpoint

    def stop(path, checkpoint):
        save(path, checkpoint)
        if checkpoint["epoch"] == 2 and checkpoint["settings"]["seed"] == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("train_submodel.files.save_checkpoint", stop)
        assert compare.main([*common, "--out", str(tmp_path / "cut")]) == 130
    assert compare.main([*common, "--out", str(tmp_path / "cut")]) == 0
    whole, cut = (json.loads((tmp_path / n / "compare.json").read_text()) for n in ("whole", "cut"))
    assert whole["tables"] == cut["tables"]


@pytest.mark.parametrize("method", compare.METHODS)
def test_comparison_counts_gradient_passes(method):
    """Against the batches that really go through the members, forward."""
    stages = {
        "soe": {1: stage1_loss, 2: stage2_loss},
        "soe-stage1": {1: stage1_loss},
        "plain-together": {1: plain.together_loss},
        "adp": {1: adp.adp_loss},
        "gal": {1: gal.gal_loss},
        "dverge": {1: plain.plain_loss, 2: dverge.dverge_loss},
        "more": {1: more.more_loss},
    }.get(method, {1: plain.plain_loss})
    counted = compare.passes_of_a_batch(method, 3, 4, 5)
    assert set(counted) == set(stages)
    x, y = a_batch()
    for stage, make in stages.items():
        defaults = {name: default for name, (default, *_) in options.OPTIONS.items()}
        small = settings_of(more, steps=4, distill_eps=0.1, distill_alpha=0.1, distill_steps=5)
        settings = Namespace(**defaults | vars(small) | {"coherence": 0.5, "noise": 0.1})
        settings.entropy = settings.diversity = 1.0
        experts = [ResNet(8, 1, 10, 8) for _ in range(3)]
        model = Mixture(experts, nn.Linear(192, 3)) if method == "more" else Ensemble(experts)
        model = Collaboration(experts) if "soe" in method else model
        seen = []

        def count(module, args, output, seen=seen):
            seen.append(len(args[0]))

        for expert in experts:
            expert.backbone.register_forward_hook(count)
        make(model, settings)(x, y)
        forward = sum(seen) / len(x)
        # GAL's second derivative needs no forward pass; DVERGE's target no backward one.
        extra = {"gal": 3, "dverge": -1.5 if stage == 2 else 0}.get(method, 0)
        assert counted[stage] == forward + extra


def test_comparison_at_equal_passes():
    assert compare.epochs_at_equal_passes("plain-together", "soe", 36, 3, 10) == 39
    assert compare.epochs_at_equal_passes("soe", "soe", 36, 3, 10) == 36


@pytest.mark.parametrize(
    "flags",
    [
        "--methods soe,magic",
        "--shard 3/2",
        "--eps 0",
        "--seeds 0",
        "--attack magic",
        "--depth 3",
        "--data none.npz",
    ],
)
def test_what_a_comparison_cannot_do_is_one_line(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        compare.main([*flags.split(), "--out", str(tmp_path / "runs")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
