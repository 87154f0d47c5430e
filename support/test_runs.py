"""Statements about runs that must hold: what they leave behind, and how they are resumed."""

import errno
import json
import os
import re
import sys
from argparse import Namespace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import attacks
import data
import infer
import train_collab
import train_submodel
import xor_demo
from experiments import compare
from experiments.fixtures import (
    SMALL,
    arrays,
    change_checkpoint,
    interrupt,
    same_weights,
    stop_training,
    train_small,
)
from support import checkpoints, files, runs


def metrics(folder):
    return json.loads(Path(folder, "metrics.json").read_text())


def stages(path):
    return [entry["stage"] for entry in checkpoints.load(path)["history"]]


# ----------------------------------------------------------------------------- a run that is ended


class Killed(BaseException):
    """Stands for kill -9: nothing in the program may catch it."""


MOMENTS = ("between epochs", "inside an epoch", "while writing")


@pytest.mark.slow
@pytest.mark.parametrize("moment, epoch", [*product(MOMENTS, (1, 4, 6)), (MOMENTS[0], 8)])
def test_a_killed_run_resumes_bit_for_bit(moment, epoch, whole, monkeypatch):
    """8 epochs, 4 of each stage; killed around the end of epoch 1, 4 (of stage 1), 6 or 8."""
    cut, steps = Path("cut"), []
    write, fsync, step = files.write, os.fsync, torch.optim.SGD.step

    def epochs_kept():
        return len(stages(cut)) if (cut / "model.pt").exists() else 0

    def killed_write(path, content):
        write(path, content)
        if moment == "between epochs" and epochs_kept() == epoch:
            raise Killed

    def killed_fsync(descriptor):
        if moment == "while writing" and epochs_kept() == epoch:
            os.ftruncate(descriptor, 1000)  # half a file is on the disk
            raise Killed
        fsync(descriptor)

    def killed_step(self, *args):
        steps.append(1)
        if moment == "inside an epoch" and len(steps) == 11 * epoch + 5:
            raise Killed
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", killed_write)
        patch.setattr(os, "fsync", killed_fsync)
        patch.setattr(torch.optim.SGD, "step", killed_step)
        with pytest.raises(Killed):
            train_small(cut, "--augment", "--epochs", "8")
    assert epochs_kept() == epoch
    train_collab.main(["--resume", "cut", "--device", "cpu"])
    for name in ("model.pt", "submodels.pt"):
        assert same_weights(cut / name, whole / name)
    assert metrics(cut)["table"] == metrics(whole)["table"]


@pytest.mark.slow
def test_ctrl_c_names_the_command_to_resume_from_any_folder(monkeypatch, capsys):
    stop_training("run")
    error = capsys.readouterr().err
    assert error == "\nstopped; to resume: python train_collab.py --resume run\n"
    train_collab.main(error.split()[-2:])
    assert stages("run") == [1, 1, 2, 2]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["my code/train_collab.py"])
    stop_training("unused", "--out=-run")
    words = "'my code/train_collab.py' --resume ./-run"
    assert capsys.readouterr().err == f"\nstopped; to resume: python {words}\n"


@pytest.mark.parametrize(
    "call, message",
    [("data.load", "stopped"), ("support.checkpoints.save", "stopped; nothing was trained yet")],
)
def test_ctrl_c_with_nothing_to_resume_says_so(call, message, monkeypatch, capsys):
    monkeypatch.setattr(call, interrupt)
    with pytest.raises(SystemExit) as stop:
        train_small("run")
    assert stop.value.code == 130 and capsys.readouterr().err.strip() == message


def test_a_full_disk_keeps_the_checkpoint_before(monkeypatch, refused):
    calls, fsync = [], os.fsync

    def full(descriptor):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    error = refused(train_collab, *SMALL, "--out", "run")
    assert re.search("cannot save .*No space left.*to resume: .* --resume", error)
    assert stages("run") == [1] and os.listdir("run") == ["model.pt"]


def test_a_loss_that_becomes_nan_keeps_the_last_good_checkpoint(monkeypatch, refused):
    sample_loss, calls = train_submodel.sample_loss, []

    def poisoned(*args):  # 11 steps an epoch, clean and adversarial: NaN in epoch 2
        calls.append(1)
        return sample_loss(*args) * (float("nan") if len(calls) > 30 else 1)

    monkeypatch.setattr(train_submodel, "sample_loss", poisoned)
    error = refused(train_collab, *SMALL, "--out", "run")
    assert "epoch 2 of stage 1" in error and "--lr" in error
    checkpoint = checkpoints.load("run")
    assert checkpoint["epoch"] == 1
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


# ------------------------------------------------------------------------- what a run leaves behind


def test_a_run_leaves_its_folder_as_the_readme_says(whole):
    text = Path(__file__).with_name("README.md").read_text()
    promised = re.findall(r"^\| `([\w.]+)` \|", text.split("## A run's folder")[1], re.M)
    assert {path.name for path in whole.iterdir()} == set(promised)
    left = metrics(whole)
    assert {"settings", "versions", "device", "precision", "specialisation"} <= set(left)
    rows = ["expert 1", "expert 2", "vote", "collaboration", "oracle", "any"]
    assert list(left["table"]) == rows
    assert [entry["stage"] for entry in left["epochs"]] == [1] * 4 + [2] * 4
    assert stages(whole / "submodels.pt") == [1] * 4


def test_runs_of_the_same_name_get_numbers():
    settings = Namespace(out=None, method="soe", data_name="digits", eps=0.03, n=3, seed=0)
    names = [runs.make_folder(settings) for _ in range(3)]
    first = str(Path("runs", "digits-eps0.03-n3-seed0"))
    assert names == [first, first + "-2", first + "-3"]
    settings.method = "soe-stage1"
    assert runs.make_folder(settings) == str(Path("runs", "digits-soe-stage1-eps0.03-n3-seed0"))


def test_a_run_that_runs_is_not_resumed_or_even_read_beside_it(refused):
    Path("run").mkdir()
    files.lock(Path("run"))
    other = files.locks.pop()  # as if another process had it
    assert "another process is working in run" in refused(train_collab, "--resume", "run")
    other.release()
    assert "no checkpoint" in refused(train_collab, "--resume", "run")


def test_nothing_of_the_users_is_overwritten(whole, refused):
    Path("taken").mkdir()
    Path("taken/thesis.png").write_text("mine")
    for script, *argv in (
        (train_collab, "--out", "taken"),
        (train_collab, "--out", "taken/thesis.png"),
        (xor_demo, "--out", "taken/thesis.png"),
        (infer, whole, "0", "--save", "taken/thesis.png"),
    ):
        assert "taken" in refused(script, *argv)
    assert [path.read_text() for path in Path("taken").iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_written_to_is_noticed_before_the_work(whole, monkeypatch, refused):
    monkeypatch.setattr(os, "access", lambda *_: False)
    for script, *argv in (
        (xor_demo, "--out", "a.png"),
        (infer, whole, "0", "--save", "a.png"),
        (compare, "--out", ".", "--methods", "plain"),
    ):
        assert "cannot be written to" in refused(script, *argv)


def test_the_authors_rules_train_too():
    train_small("run", "--confidence", "rectified", "--weights", "confidence")
    assert infer.load("run").confidence == "rectified"


def test_one_expert_is_a_collaboration_too():
    Path("run").mkdir()
    train_small("run", "--n", "1", "--epochs", "2")  # into an empty folder that is there
    assert metrics("run")["specialisation"]["clean"]["disagree"]["images"] == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_small_run_trains_on_the_gpu():
    train_small("run", "--device", "cuda")
    assert stages("run") == [1, 1, 2, 2]


# ----------------------------------------------------------------------- --resume and --submodels


def test_a_finished_run_or_that_of_another_script_is_not_resumed(whole, refused):
    before = (whole / "model.pt").read_bytes()
    assert "has finished" in refused(train_collab, "--resume", whole)
    assert "a run of soe, not soe-stage1" in refused(train_submodel, "--resume", whole)
    assert (whole / "model.pt").read_bytes() == before


@pytest.mark.slow
def test_stage_1_alone_serves_as_submodels():
    train_small("one", script=train_submodel)
    stop_training("two", "--submodels", "one")
    assert same_weights("one", "two")  # where stage 2 starts
    train_collab.main(["--resume", "two"])
    assert stages("two") == [2, 2, 2, 2] and not same_weights("one", "two")
    assert not Path("two", "submodels.pt").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--n 3", "n 2, not 3"),
        ("--depth 8", "depth 2, not 8"),
        ("--eps 0.2", "eps 0.1, not 0.2"),
        ("--data own.npz", "other images than own's"),
        ("--confidence ehead", "confidence rectified, not ehead"),
        ("--stage1-epochs 1", "stage 1 is over"),
    ],
)
def test_submodels_must_fit(flags, message, whole, refused):
    np.savez("own.npz", **arrays())
    argv = [*SMALL, *flags.split(), "--submodels", whole / "submodels.pt"]
    assert message in refused(train_collab, *argv)
    assert not Path("runs").exists()


def test_submodels_are_the_end_of_stage_1_of_soe(whole, refused):
    stop_training("stopped", script=train_submodel)
    change_checkpoint(whole, "rival.pt", method="adp")
    for path, message in (
        ("stopped", "has not finished stage 1"),
        ("rival.pt", "holds adp, not stage 1 of SoE"),
        (whole, "name a submodels.pt"),
    ):
        assert message in refused(train_collab, *SMALL, "--out", "run", "--submodels", path)


@pytest.mark.slow
def test_other_images_under_the_same_name_are_noticed(refused):
    own = ["--data", "own.npz", "--batch-size", "8"]
    np.savez("own.npz", **arrays())
    train_small("one", *own, script=train_submodel)
    stop_training("two", *own)
    Path("own.npz").rename("moved.npz")
    np.savez("own.npz", **arrays(y_train=(np.arange(40) + 1) % 4))
    assert "other images than own's" in refused(train_collab, *SMALL, *own, "--submodels", "one")
    assert "other images" in refused(train_collab, "--resume", "two")
    train_collab.main(["--resume", "two", "--data", "moved.npz"])
    assert stages("two") == [1, 1, 2, 2]


# ---------------------------------------------------------------------- what a run says on the way


def test_robust_accuracy_is_that_of_pgd_on_200_training_images(whole):
    """After each epoch; no test image is looked at."""
    checkpoint, digits, model = checkpoints.load(whole), data.load("digits"), infer.load(whole)
    settings = Namespace(**checkpoint["settings"] | {"eps": 0.5, "alpha": 0.2})
    order = torch.randperm(1437, generator=torch.Generator().manual_seed(0))[:200]
    x, y = digits.x_train[order].float() / 255, digits.y_train[order]
    x_adv = attacks.pgd(model, x, y, 0.5, 0.2, settings.steps)
    clean, by_hand = (100 * (model(z).argmax(1) == y).float().mean().item() for z in (x, x_adv))
    robust = runs.robust(model, digits.x_train, digits.y_train, settings)
    assert robust == pytest.approx(by_hand, abs=0.51) and robust < clean - 3
    assert all("robust" in entry for entry in checkpoint["history"])


@pytest.mark.slow
@pytest.mark.parametrize("first, kept", [(0, [2, 2, 2, 2]), (1, [1, 2, 2, 2]), (4, [1] * 4)])
def test_stage1_epochs_leave_the_rest_to_stage_2(first, kept):
    train_small("run", "--stage1-epochs", str(first))
    assert stages("run") == kept


# ------------------------------------------------------------------------------ the CPU's threads


@pytest.mark.slow
def test_a_run_keeps_its_number_of_threads_when_it_resumes():
    """Its last bits depend on that number, so a busy machine must not change it."""
    before = torch.get_num_threads()
    stop_training("run", "--threads", "2")
    train_collab.main(["--resume", "run", "--device", "cpu"])
    assert {epoch["device"] for epoch in metrics("run")["epochs"]} == {"cpu (2 threads)"}
    train_small("default")
    assert metrics("default")["settings"]["threads"] == before == torch.get_num_threads()
