"""Other people's attacks run on our models, unchanged.

    python -m pip install foolbox adversarial-robustness-toolbox
    python -m pytest experiments/test_other_tools.py -rs

Each part is skipped where its tool is not installed.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import data
import infer
from experiments.fixtures import train_small
from experiments.other_tools import art_attack, foolbox_pgd

pytestmark = pytest.mark.slow
EPS = 0.1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained digits collaboration, 60 test images and their labels."""
    out = tmp_path_factory.mktemp("tools") / "run"
    train_small(out, "--depth", "8", "--steps", "3")
    x, y = data.load("digits").test_images("cpu")
    return infer.load(out), x[:60], y[:60]


def assert_an_attack(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> None:
    assert x_adv.shape == x.shape and ((x_adv - x).abs() <= EPS + 1e-6).all()
    before, after = ((model(images).argmax(1) == y).sum() for images in (x, x_adv))
    assert after < before


def test_foolbox_linf_pgd_attacks_our_model(trained):
    pytest.importorskip("foolbox")
    assert_an_attack(*trained, foolbox_pgd(*trained, EPS, steps=20))


@pytest.mark.parametrize("name", ["AutoProjectedGradientDescent", "SquareAttack"])
def test_art_attacks_our_model(trained, name):
    pytest.importorskip("art")
    np.random.seed(0)
    torch.manual_seed(0)
    model, x, y = trained
    x_adv = art_attack(model, x, y, EPS, 10, name, max_iter=20, batch_size=60)
    assert_an_attack(model, x, y, x_adv)
