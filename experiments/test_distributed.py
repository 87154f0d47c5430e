"""Two processes train as one does: torchrun on the CPU, with gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import infer
import train_collab
from experiments.fixtures import SMALL, stop_training

ROOT = Path(__file__).parent.parent
SMALL = [*SMALL, "--precision", "float32"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="this torch has no torch.distributed"
    ),
]


def torchrun(*command, processes=2, wait=True, fails=False):
    """The finished process, or the running one, of torchrun in the project's folder."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # without -- torchrun takes --n for the start of an option of its own
    words += ["--nproc-per-node", str(processes), "--", *map(str, command)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, **pipes)
    if wait:
        process.out, process.err = process.communicate(timeout=300)
        assert (process.returncode != 0) == fails, process.err
    return process


GRADIENT = """
import sys, torch
from models import Collaboration, ResNet
from support import ranks
import train_submodel

ranks.start("cpu")
assert ranks.count() == int(sys.argv[2])
torch.manual_seed(0)
model = Collaboration([ResNet(8, 1, 10, 8) for _ in range(3)]).eval()
x_adv, y = torch.rand(64, 1, 8, 8), torch.randint(10, (64,))
settings = train_submodel.SoESettings()
x_adv, y = x_adv[ranks.part()], y[ranks.part()]
train_submodel.sample_loss(model, x_adv, y, settings).mean().backward()
ranks.average_gradients(model)
ranks.average_gradients(model)  # the average of equal gradients is the same
if ranks.rank() == 0:
    torch.save([p.grad for p in model.parameters()], sys.argv[1])
"""


def test_averaged_gradient_is_the_one_process_gradient(tmp_path):
    """For given x_adv, and batch norm in eval mode."""
    script = tmp_path / "gradient.py"
    script.write_text(GRADIENT)
    grads = []
    for processes in (1, 2):
        path = tmp_path / f"{processes}.pt"
        torchrun(script, path, processes, processes=processes)
        grads.append(torch.load(path))
    for one, two in zip(*grads):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)


WEIGHTS = """
import sys, torch
import train_collab
from support import ranks, runs

def keep(run, table):
    torch.save(run.model.state_dict(), f"{sys.argv[1]}-{ranks.rank()}.pt")

runs.Run.finish = keep
train_collab.main(sys.argv[2:])
"""


def test_ranks_hold_the_same_weights_and_statistics_after_training(tmp_path):
    """Each learns other images: without the averages they would part."""
    script = tmp_path / "weights.py"
    script.write_text(WEIGHTS)
    torchrun(script, tmp_path / "rank", *SMALL, "--random-start", "--out", tmp_path / "run")
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_run_resumes_with_another_number_of_ranks(tmp_path):
    """Rank 0 alone prints and writes."""
    flags, out = [*SMALL, "--depth", "8", "--epochs", "6"], tmp_path / "run"
    stop_training(out, *flags, epoch=3)
    done = torchrun("train_collab.py", "--resume", out, "--device", "cpu")
    metrics = json.loads((out / "metrics.json").read_text())
    assert done.out.count("Accuracy (%)") == 1 and len(metrics["epochs"]) == 6
    assert metrics["table"]["collaboration"]["pgd-20"] > 50
    assert infer.load(out)


@pytest.mark.parametrize(
    "flag, value, message",
    [
        ("--batch-size", "127", "2 ranks cannot share a batch"),
        ("--epochs", "2{rank}", "with different settings: epochs"),
    ],
)
def test_bad_input_is_one_line_of_rank_0(flag, value, message, tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "run"
    script.write_text(
        "import os, sys, train_collab\n"
        "train_collab.main([w.format(rank=os.environ['RANK']) for w in sys.argv[1:]])\n"
    )
    done = torchrun(script, *SMALL, flag, value, "--out", out, fails=True)
    ours = [line for line in done.err.splitlines() if "train_collab.py: error" in line]
    assert len(ours) == 1 and message in ours[0]
    assert not out.exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
@pytest.mark.parametrize("victim", [0, 1, "torchrun"])
def test_when_one_process_dies_all_end(victim, tmp_path):
    out = tmp_path / "run"
    flags = [*SMALL, "--epochs", "4000", "--batch-size", "126", "--out", out]
    running = torchrun("train_collab.py", *flags, processes=3, wait=False)
    while not (out / "model.pt").exists():
        assert running.poll() is None
        time.sleep(0.1)
    children = subprocess.run(
        ["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    ranks = {}
    for pid in children:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks |= {int(word[5:]): int(pid) for word in words if word.startswith(b"RANK=")}
    time.sleep(1)
    os.kill(ranks.get(victim, running.pid), signal.SIGKILL)
    _, error = running.communicate(timeout=60)  # nothing hangs, all have closed their pipes
    assert running.returncode != 0 and (victim not in ranks or f"rank      : {victim} " in error)
    assert infer.load(out)  # what --resume starts from


def test_ranks_without_torchrun_are_refused(monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "not by torchrun" in refused(train_collab, *SMALL)
