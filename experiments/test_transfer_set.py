"""Statements about the transfer attacks that must hold."""

import numpy as np
import pytest
import torch

import data
import infer
from attacks import cross_entropy
from experiments import evaluate, transfer_set
from experiments.fixtures import train_small
from models import Collaboration, ResNet
from support.printing import percent


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = Collaboration([ResNet(8, 1, 10, 8) for _ in range(2)]).eval()
    x = torch.rand(20, 1, 8, 8)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize(
    "attack, neutral, strong",
    [
        (transfer_set.sgm, {"gamma": 1.0}, {"gamma": 0.2}),
        (transfer_set.di2, {"probability": 0.0}, {"probability": 1.0}),
    ],
)
def test_sgm_and_di2_without_their_trick_are_momentum_pgd(attack, neutral, strong, network):
    def made(attack, **trick):
        torch.manual_seed(1)
        return attack(*network, eps=0.05, loss=cross_entropy, steps=4, **trick)

    expected = made(transfer_set.mpgd)
    assert torch.equal(made(attack, **neutral), expected)
    assert not torch.equal(made(attack, **strong), expected)
    assert torch.equal(made(transfer_set.mpgd), expected)  # SGM's hooks are gone


def test_decayed_residuals_scale_the_gradient_of_the_branch_alone():
    model = ResNet(8, 1, 10, 8).eval()
    block, z = model.backbone[3], torch.rand(2, 16, 4, 4)

    def gradient(gamma):
        x = z.clone().requires_grad_()
        with transfer_set.decayed_residuals(model, gamma):
            return torch.autograd.grad(block(x).sum(), x)[0]

    torch.testing.assert_close(gradient(0.5), (gradient(0.0) + gradient(1.0)) / 2)
    assert not torch.allclose(gradient(0.0), gradient(1.0))


def test_diversified_images_are_smaller_and_lie_on_black():
    torch.manual_seed(0)
    sizes = set()
    for _ in range(30):
        image = transfer_set.diversify(torch.ones(1, 1, 40, 40), probability=1.0)
        assert image.shape == (1, 1, 40, 40)
        sizes.add((image > 0).sum().item())
    assert min(sizes) >= 36 * 36 and len(sizes) > 2


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A transfer file of 20 digits, weakly made, and a trained run."""
    folder = tmp_path_factory.mktemp("transfer")
    common = "--epochs 1 --images 20 --steps 2 --eps 0.1 --device cpu".split()
    surrogates = ["--surrogates", str(folder / "surrogates")]
    transfer_set.main([*common, *surrogates, "--out", str(folder / "set.npz")])
    train_small(folder / "run", "--epochs", "2")
    return folder


@pytest.fixture
def images(small):
    """The model, and what the transfer file holds: x, y, {"transfer3" and "transfer30": images}."""
    digits = data.load("digits")
    chosen, variants = transfer_set.load_transfer(str(small / "set.npz"), digits, [0.1], None)
    return infer.load(small / "run"), *digits.test_images("cpu", chosen), variants


@pytest.mark.slow
def test_a_transfer_set_has_30_variants_inside_the_ball(images):
    _, x, _, variants = images
    x_adv = variants["transfer30"]
    assert x_adv.shape == (30, 20, 1, 8, 8) and variants["transfer3"].shape == (3, 20, 1, 8, 8)
    assert (x_adv >= x - 0.1).all() and (x_adv <= x + 0.1).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert len(x_adv.flatten(1).unique(dim=0)) == 30  # no two variants are the same


@pytest.mark.slow
def test_an_image_counts_only_if_every_variant_is_correct(images):
    model, x, y, variants = images
    attacks = evaluate.attacks_at(transfer_set.TRANSFER, model, 0.1, transfer=variants)
    cells = evaluate.measure(model, x, y, attacks)["table"]["collaboration"]
    for column, x_adv in variants.items():
        correct = torch.stack([model(variant).argmax(1) == y for variant in x_adv])
        assert cells[column] == percent(correct.all(0))
    assert cells["transfer30"] <= cells["transfer3"]


@pytest.mark.slow
def test_all_attacks_use_the_images_of_the_transfer_file(small, capsys):
    argv = f"--attack pgd {' '.join(transfer_set.TRANSFER)} --device cpu --transfer".split()
    evaluate.main([str(small / "run"), *argv, str(small / "set.npz")])
    out = capsys.readouterr().out
    assert "Accuracy (%) on 20 test images" in out and "transfer30" in out and "worst" in out


@pytest.mark.slow
def test_surrogates_are_used_again_if_they_are_what_they_should_be(small, refused, capsys):
    again = ["--surrogates", small / "surrogates", "--images", 20, "--steps", 1]
    capsys.readouterr()
    transfer_set.main([*map(str, again), "--out", str(small / "again.npz")])
    assert "stage 1" not in capsys.readouterr().out  # nothing was trained
    (small / "mine").mkdir()
    (small / "run").rename(small / "mine" / "3")
    mine = ["--surrogates", small / "mine", "--out", small / "mine.npz"]
    assert "holds no plain ensemble of 3" in refused(transfer_set, *mine)
    (small / "mine" / "3").rename(small / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv, message",
    [
        ("--transfer none.npz", "no file of experiments/transfer_set.py"),
        ("--transfer text.npz", "damaged"),
        ("--transfer cut.npz", "damaged"),
        ("--transfer set.npz --eps 0.03", "made at eps 0.1"),
        ("--transfer set.npz --images 21", "has 20 images"),
        ("--transfer other.npz", "was made for elsewhere"),
        ("--transfer twice.npz", "indices are not those of test images"),
        ("--transfer negative.npz", "indices are not those of test images"),
        ("--transfer far.npz", "outside the ball, or are NaN"),
        ("--transfer nan.npz", "outside the ball, or are NaN"),
        ("--attack transfer3", "needs --transfer"),
    ],
)
def test_a_wrong_transfer_file_is_refused_in_one_line(argv, message, small, monkeypatch, refused):
    monkeypatch.chdir(small)
    (small / "text.npz").write_text("hello")
    whole = (small / "set.npz").read_bytes()
    (small / "cut.npz").write_bytes(whole[: len(whole) // 2])
    content = dict(np.load(small / "set.npz"))
    np.savez("other.npz", **content | {"checksum": 1, "data": "elsewhere"})
    indices, images = content["indices"], content["images"]
    np.savez("twice.npz", **content | {"indices": indices[[0, *range(len(indices) - 1)]]})
    np.savez("negative.npz", **content | {"indices": -1 - indices})
    np.savez("far.npz", **content | {"images": np.where(images > 0.5, images - 0.3, images)})
    np.savez("nan.npz", **content | {"images": np.where(images > 0.99, np.nan, images)})
    assert message in refused(evaluate, "run", "--device", "cpu", *argv.split())
