"""The fast path computes what the plain one does."""

import json
from argparse import Namespace

import pytest
import torch
from torch._dynamo.utils import counters

import infer
import train_collab
import train_submodel
from baselines import dverge
from experiments import scaling
from support import options

SETTINGS = Namespace(
    **{name: default for name, (default, *_) in options.OPTIONS.items()}
    | {"depth": 2, "n": 2, "eps": 0.1, "alpha": 0.03, "steps": 2, "precision": "float32"},
    method="soe",
    image_shape=[1, 8, 8],
    num_classes=10,
)


def gradients(device, compile_, make, times=1):
    """Loss, gradients and batch norm's statistics after the last of some steps."""
    torch.manual_seed(0)
    settings = Namespace(**vars(SETTINGS) | {"compile": compile_})
    model = infer.build(vars(settings)).to(device, memory_format=torch.channels_last)
    x, y = torch.rand(times, 16, 1, 8, 8).to(device), torch.randint(10, (times, 16)).to(device)
    step = train_submodel.forward_and_backward(model, make(model, settings), settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for i in range(times):
        if i:
            optimizer.step()
        optimizer.zero_grad()
        loss = step(x[i].contiguous(memory_format=torch.channels_last), y[i])
    grads = [p.grad for p in model.parameters()]
    return loss, grads, [b.float() for b in model.buffers()]


@pytest.mark.parametrize("stage", [1, 2])
def test_a_compiled_step_is_the_plain_step(stage):
    make = {1: train_submodel.stage1_loss, 2: train_collab.stage2_loss}[stage]
    torch.compiler.reset()
    compiled = counters["stats"]["unique_graphs"]
    plain, fast = (gradients("cpu", compile_, make) for compile_ in (False, True))
    assert counters["stats"]["unique_graphs"] > compiled
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("stage", [1, 2])
def test_a_replayed_cuda_graph_is_the_plain_step(stage):
    """New images and new weights go through it, and the trial steps leave no trace."""
    make = {1: train_submodel.stage1_loss, 2: train_collab.stage2_loss}[stage]
    plain, fast = (gradients("cuda", compile_, make, times=3) for compile_ in (False, True))
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-3)


def test_dverge_is_not_compiled_in_its_second_stage(tmp_path):
    """Its hooks would not be seen; the first stage, of plain members, is."""
    flags = "--depth 2 --n 2 --epochs 12 --steps 1 --eps 0.1 --device cpu --compile".split()
    assert dverge.main([*flags, "--out", str(tmp_path / "run")]) == 0


def test_scaling_measures_and_predicts_every_point(tmp_path, monkeypatch, capsys):
    small = {"n": 1, "batch_size": 4, "depth": 8, "steps": 1}
    monkeypatch.setitem(scaling.BASE, "cpu", small)
    monkeypatch.setitem(scaling.AXES, "n", (1, 2))
    out = tmp_path / "scaling.png"
    flags = ["--axes", "n", "--repeats", "1", "--device", "cpu", "--out", str(out)]
    assert scaling.main(flags) == 0
    table = json.loads((tmp_path / "scaling.json").read_text())["tables"]["M, experts"]
    assert list(table) == ["1", "2"] and out.exists()
    one, two = table["1"], table["2"]
    assert one["predicted 1"] == pytest.approx(one["stage 1"])  # the base, to which all is scaled
    # By hand, S = 1: stage 1 has 2 M + 3 (M + M^2) units, 8 and 22; stage 2 8 and 2 + 2 + 12 = 16.
    assert two["predicted 1"] / one["predicted 1"] == pytest.approx(22 / 8)
    assert two["predicted 2"] / one["predicted 2"] == pytest.approx(16 / 8)
    with pytest.raises(SystemExit) as stopped:
        scaling.main(flags)  # the files are there
    assert stopped.value.code == 2
