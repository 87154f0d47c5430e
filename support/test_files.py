"""Statements about files and checkpoints that must hold."""

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import infer
import train_collab
from experiments.fixtures import SMALL, arrays, change_checkpoint, interrupt, stop_training
from support import checkpoints, files


class Code:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "name, message",
    [
        ("text.pt", "is damaged, or no checkpoint: File is not a zip file"),
        ("gone.pt", "no checkpoint"),
        (".", "no checkpoint model.pt"),
        ("code.pt", "holds code"),
        ("list.pt", "is not of this project"),
        ("weights.pt", "is not of this project"),
        ("own.npz", "damaged, or no checkpoint"),
        ("fifo", "no checkpoint fifo"),
        ("bit.pt", "the checksum of"),
        ("nan.pt", "weights that are NaN"),
        ("other.pt", "its n is"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(name, message, whole, refused):
    """Files that are cut or damaged elsewhere: test_faults.py."""
    Path("text.pt").write_text("hello")
    torch.save({"model": Code()}, "code.pt")
    torch.save([1, 2], "list.pt")
    model = checkpoints.load(whole)["model"]
    torch.save(model, "weights.pt")
    np.savez("own.npz", **arrays())
    os.mkfifo("fifo")
    content = bytearray((whole / "model.pt").read_bytes())
    content[content.find(b"\0" * 64) + 300] ^= 1  # somewhere in the first weights
    Path("bit.pt").write_bytes(content)
    model["experts.0.p_head.bias"][0] = torch.nan
    change_checkpoint(whole, "nan.pt", model=model)
    change_checkpoint(whole, "other.pt", {"model": None, "n": "two"})
    assert message in refused(infer, name)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "lie",
    [
        *({"n": lie} for lie in ("3", 0, 10**7, 2.0, True, [3])),
        *({"eps": lie} for lie in (float("nan"), -0.1, 2, "0.1")),
        *({"depth": -4}, {"alpha": 0}, {"alpha": float("inf")}, {"batch_size": 2**63}),
        *({"lr": 1e300}, {"seed": -1}, {"precision": "fp8"}, {"augment": "no"}, {"steps": None}),
        *({"optimizer": "lion"}, {"sigma": 0}, {"lambda_": "1"}, {"weights": "worst"}),
    ],
    ids=str,
)
def test_a_checkpoint_has_no_setting_that_a_flag_would_not_take(lie, whole, refused):
    change_checkpoint(whole, "model.pt", lie)
    assert f"its {[*lie][0]} is" in refused(train_collab, "--resume", ".")


def test_weights_that_do_not_fit_say_what_may_have_changed(whole, refused):
    """As after a change of models.py: other names, or another shape, under the same settings."""
    stop_training("stopped")
    weights = checkpoints.load(whole)["model"]
    weights["experts.0.e_head.weight"] = torch.zeros(1, 16)
    change_checkpoint("stopped/model.pt", "stopped/model.pt", model=weights)
    change_checkpoint(whole / "submodels.pt", "sub.pt", model={"renamed": torch.ones(1)})
    message = "these weights do not fit the network in models.py; was it changed since this run?"
    for script, *argv in (
        (infer, "stopped/model.pt"),
        (train_collab, "--resume", "stopped"),
        (train_collab, *SMALL, "--out", "new", "--submodels", "sub.pt"),
    ):
        assert message in refused(script, *argv)
    assert not Path("new").exists()


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fault", [full, interrupt])
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("before", [b"old", None])
def test_a_file_is_written_whole_or_not_at_all(fault, call, before, monkeypatch):
    path = Path("file")
    if before:
        files.write(path, before)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fault)
        with pytest.raises((files.SaveError, KeyboardInterrupt)) as stop:
            files.write(path, b"new")
    if fault is full:
        assert re.search("cannot save .*file .No space left on device", str(stop.value))
    assert [p.read_bytes() for p in Path().iterdir()] == ([before] if before else [])
    files.write(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_new_file_s_name_is_taken_at_once_and_given_back_if_nothing_is_written():
    path = Path("new.png")
    files.check_new(path, ".png", "--save")
    with pytest.raises(ValueError, match="another process is working in new.png"):
        files.check_new(path, ".png", "--save")
    assert files.new(Path(), "new", ".png") == Path("new-2.png")
    files.write(path, b"content")
    files.unlock()
    assert os.listdir() == ["new.png"]
    with pytest.raises(ValueError, match="is there already"):
        files.check_new(path, ".png", "--save")


def test_a_number_is_free_only_where_every_ending_is():
    for taken in ("table.json", "table-2.png"):
        Path(taken).touch()
    assert files.new(Path(), "table", ".json", ".png") == Path("table-3.json")
    assert files.new(Path(), "new") == Path("new") and Path("new").is_dir()
