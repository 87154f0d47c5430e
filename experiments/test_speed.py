"""The fast path computes what the plain one does."""

import json

import pytest
import torch
from torch._dynamo.utils import counters

from baselines import dverge
from experiments import bench_step, scaling
from experiments.fixtures import SMALL


def weights(device, compile_, stage, steps=1):
    """The model after some steps of training: weights and batch norm's statistics."""
    torch.manual_seed(0)
    size = {"depth": 2, "n": 2, "image_shape": [1, 8, 8]}
    attack = {"eps": 0.1, "alpha": 0.03, "steps": 2}
    settings = bench_step.soe_settings(**size, **attack, precision="float32", compile=compile_)
    model = bench_step.build(settings, torch.device(device))
    step = bench_step.our_step(bench_step.STAGES[stage], model, settings)
    for _ in range(steps):
        x, y = torch.rand(16, 1, 8, 8).to(device), torch.randint(10, (16,)).to(device)
        step(x.contiguous(memory_format=torch.channels_last), y)
    return {name: value.float() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("stage", [1, 2])
def test_a_compiled_step_is_the_plain_step(stage):
    torch.compiler.reset()
    compiled = counters["stats"]["unique_graphs"]
    plain, fast = (weights("cpu", compile_, stage) for compile_ in (False, True))
    assert counters["stats"]["unique_graphs"] > compiled
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("stage", [1, 2])
def test_a_replayed_cuda_graph_is_the_plain_step(stage):
    """New images and new weights go through it, and the trial steps leave no trace."""
    plain, fast = (weights("cuda", compile_, stage, steps=3) for compile_ in (False, True))
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)


def test_dverge_is_not_compiled_in_its_second_stage(tmp_path):
    """Its hooks would not be seen; the first stage, of plain members, is."""
    dverge.main(
        [*SMALL, "--epochs", "12", "--steps", "1", "--compile", "--out", str(tmp_path / "run")]
    )


def test_scaling_measures_and_predicts_every_point(tmp_path, monkeypatch, refused):
    small = {"n": 1, "batch_size": 4, "depth": 8, "steps": 1}
    monkeypatch.setitem(scaling.BASE, "cpu", small)
    monkeypatch.setitem(scaling.AXES, "n", (1, 2))
    out = tmp_path / "scaling.png"
    flags = ["--axes", "n", "--repeats", "1", "--device", "cpu", "--out", str(out)]
    scaling.main(flags)
    table = json.loads((tmp_path / "scaling.json").read_text())["tables"]["M, experts"]
    assert list(table) == ["1", "2"] and out.exists()
    one, two = table["1"], table["2"]
    assert one["predicted 1"] == pytest.approx(one["stage 1"])  # the base, to which all is scaled
    # By hand, S = 1: stage 1 has 2 M + 3 (M + M^2) units, 8 and 22; stage 2 8 and 2 + 2 + 12 = 16.
    assert two["predicted 1"] / one["predicted 1"] == pytest.approx(22 / 8)
    assert two["predicted 2"] / one["predicted 2"] == pytest.approx(16 / 8)
    assert "scaling.png" in refused(scaling, *flags)  # the files are there
