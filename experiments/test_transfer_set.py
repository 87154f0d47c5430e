"""Statements about the transfer attacks that must hold."""

import numpy as np
import pytest
import torch

import data
import infer
import train_collab
from experiments import transfer_set
from models import Collaboration, ResNet
from support import files


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = Collaboration([ResNet(8, 1, 10, 8) for _ in range(2)]).eval()
    x = torch.rand(20, 1, 8, 8)
    return model, x, model(x).argmax(1)


def made(attack, network, **how):
    torch.manual_seed(1)
    return attack(*network, 0.05, "ce", 4, **how)


def test_sgm_with_gamma_1_is_momentum_pgd(network):
    expected = made(transfer_set.mpgd, network)
    assert torch.equal(made(transfer_set.sgm, network, gamma=1.0), expected)
    assert not torch.equal(made(transfer_set.sgm, network, gamma=0.2), expected)
    assert torch.equal(made(transfer_set.mpgd, network), expected)  # the hooks are gone


def test_di2_with_probability_0_is_momentum_pgd(network):
    expected = made(transfer_set.mpgd, network)
    assert torch.equal(made(transfer_set.di2, network, probability=0.0), expected)
    assert not torch.equal(made(transfer_set.di2, network, probability=1.0), expected)


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
    common = ["--data", "digits", "--epochs", "1", "--images", "20", "--steps", "2", "--eps", "0.1"]
    surrogates = ["--surrogates", str(folder / "surrogates"), "--device", "cpu"]
    out = ["--out", str(folder / "set.npz")]
    assert transfer_set.main([*common, *surrogates, *out]) == 0
    run = "--depth 2 --n 2 --epochs 2 --steps 2 --eps 0.1 --device cpu --out".split()
    assert train_collab.main([*run, str(folder / "run")]) == 0
    return folder


def test_a_transfer_set_has_30_variants_inside_the_ball(small):
    digits = data.load("digits")
    indices, variants = files.load_transfer(str(small / "set.npz"), digits, [0.1], None)
    x, _ = infer.test_images(digits, "cpu", indices)
    assert variants["transfer30"].shape == (30, 20, 1, 8, 8)
    assert variants["transfer3"].shape == (3, 20, 1, 8, 8)
    images = variants["transfer30"]
    assert (images >= x - 0.1).all() and (images <= x + 0.1).all()
    assert images.min() >= 0 and images.max() <= 1
    assert len(images.flatten(1).unique(dim=0)) == 30  # no two variants are the same


def test_an_image_counts_only_if_every_variant_is_right(small):
    digits = data.load("digits")
    indices, variants = files.load_transfer(str(small / "set.npz"), digits, [0.1], None)
    x, y = infer.test_images(digits, "cpu", indices)
    model = infer.load(small / "run")
    table = infer.report(model, x, y, {}, transfer=variants)["table"]
    right = torch.stack([model(images).argmax(1) == y for images in variants["transfer30"]])
    assert table["collaboration"]["transfer30"] == infer.percent(right.all(0))
    assert table["collaboration"]["transfer30"] <= table["collaboration"]["transfer3"]


def test_all_attacks_use_the_images_of_the_transfer_file(small, capsys):
    argv = "--attack all --steps 2 --queries 5 --device cpu --transfer".split()
    assert infer.main([str(small / "run"), *argv, str(small / "set.npz")]) == 0
    out = capsys.readouterr().out
    assert "Accuracy (%) on 20 test images" in out and "transfer30" in out and "worst" in out


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--transfer none.npz", "no transfer file"),
        ("--transfer text.npz", "damaged"),
        ("--transfer cut.npz", "damaged"),
        ("--transfer set.npz --eps 0.03", "made at eps 0.1"),
        ("--transfer set.npz --images 21", "has 20 images"),
        ("--transfer other.npz", "was made for elsewhere"),
        ("--attack transfer3", "needs --transfer"),
    ],
)
def test_a_wrong_transfer_file_is_refused_in_one_line(argv, message, small, monkeypatch, capsys):
    monkeypatch.chdir(small)
    (small / "text.npz").write_text("hello")
    whole = (small / "set.npz").read_bytes()
    (small / "cut.npz").write_bytes(whole[: len(whole) // 2])
    content = dict(np.load(small / "set.npz"))
    np.savez("other.npz", **content | {"checksum": 1, "data": "elsewhere"})
    with pytest.raises(SystemExit) as stop:
        infer.main(["run", "--device", "cpu", *argv.split()])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
