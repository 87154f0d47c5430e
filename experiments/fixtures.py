"""What the tests share. pytest loads this file as a plugin: see pyproject.toml."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import train_collab
from support import checkpoints

torch.set_num_threads(1)  # for small networks a second costs more than it gives
SMALL = "--depth 2 --n 2 --epochs 4 --steps 2 --eps 0.1 --device cpu".split()


def train_small(out: str | Path, *more: str, script=train_collab) -> None:
    """A run of SMALL settings; `more` overrides them."""
    script.main([*SMALL, "--out", str(out), *more])


@pytest.fixture(scope="session")
def default_run(tmp_path_factory):
    """The folder of `python train_collab.py --eps 0.03 --n 3`, and its metrics: that of the
    environment's DEFAULT_RUN, or trained here."""
    out = tmp_path_factory.mktemp("default") / "run"
    if kept := os.environ.get("DEFAULT_RUN"):
        shutil.copytree(kept, out)
    else:
        train_collab.main(["--eps", "0.03", "--n", "3", "--out", str(out)])
    return out, json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A small run that nothing interrupts, with crop and flip, so that random numbers matter."""
    out = tmp_path_factory.mktemp("small") / "whole"
    train_small(out, "--augment", "--epochs", "8")
    return out


def interrupt(*_):
    """Stands for Ctrl-C."""
    raise KeyboardInterrupt


def stop_training(out: str | Path, *more: str, script=train_collab, epoch: int = 0) -> None:
    """A run that Ctrl-C ends once this epoch is saved; 0 is the start."""
    save = checkpoints.save

    def save_and_stop(path, checkpoint):
        save(path, checkpoint)
        if checkpoint["epoch"] == epoch:
            interrupt()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(checkpoints, "save", save_and_stop)
        train_small(out, *more, script=script)
    assert stop.value.code == 130


def same_weights(a: Path, b: Path) -> bool:
    """Bit for bit, of two checkpoints."""
    a, b = (checkpoints.load(path)["model"] for path in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def change_checkpoint(path: Path, new: Path, settings: dict | None = None, **changes) -> None:
    """Writes `path`'s checkpoint to `new`, with some of its contents, or settings, changed."""
    checkpoint = checkpoints.load(path)
    changes["settings"] = checkpoint["settings"] | (settings or {})
    checkpoints.save(Path(new), checkpoint | changes)


@pytest.fixture
def refused(capsys):
    """refused(script, *argv): the one line that says why, the script ending with status 2."""

    def of(script, *argv) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            script.main([str(word) for word in argv])
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.count("\n") == 1 and ": error: " in error and "Traceback" not in error
        return error

    return of


@pytest.fixture
def linear():
    """A two-class linear model on 4 x 4 images, images, labels; the worst corners at eps 0.1."""
    torch.manual_seed(0)
    slope, x = torch.randn(16), torch.rand(30, 1, 4, 4)
    border = (x.flatten(1) @ slope).median()

    def model(z):  # so flat that CW's kappa is out of reach
        rise = 0.01 * (z.flatten(1) @ slope - border)
        return torch.stack([torch.zeros_like(rise), rise], 1)

    y = model(x).argmax(1)
    away = slope.sign() * (1 - 2 * y[:, None])  # raises the other class
    return model, x, y, (x + 0.1 * away.view_as(x)).clamp(0, 1)


def arrays(**changes) -> dict[str, np.ndarray]:
    """The contents of a FILE.npz: 40 random 8 x 8 images in each part, 4 classes."""
    rng, parts = np.random.default_rng(0), ("train", "test")
    images = {f"x_{part}": rng.integers(0, 256, (40, 8, 8), dtype=np.uint8) for part in parts}
    return images | {f"y_{part}": np.arange(40) % 4 for part in parts} | changes


def record_of(method: str, correct: dict[str, str | int], **changed) -> dict:
    """What experiments.compare writes of a run, as far as a table reads it. `correct` holds bits,
    or how many of 100 images are correct; `changed` replaces settings, or other parts."""
    settings = {"data_name": "digits", "depth": 2, "eps": 0.1, "n": 3, "seed": 0, "epochs": 30}
    settings |= {"data_checksum": 1, "sigma": 10.0, "confidence": "rectified"}
    settings |= {name: changed.pop(name) for name in settings if name in changed}
    correct = {c: b if isinstance(b, str) else f"{'1' * b:0<100}" for c, b in correct.items()}
    experts = {f"expert {j}": {"clean": 10.0} for j in (1, 2, 3)}
    cells = {column: 100 * bits.count("1") / len(bits) for column, bits in correct.items()}
    share = {"disagree": {"images": 4, "answering": 50.0, "best fixed": 25.0, "any": 75.0}}
    return {
        "method": method,
        "units": 1000,
        "settings": settings,
        "evaluation": {"attack": ["pgd", "adaptive"]},
        "table": {"model": cells, "any": {"clean": 90.0}} | experts,
        "doubts": [],
        "correct": correct,
        "specialisation": {"clean": share | {"answers": [[100.0, 50.0]]}},
        "file": "a.json",
    } | changed


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def browser(tmp_path):
    """browser(url, *flags): what headless Chromium writes when it opens a page; skips without."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --disable-quic --user-data-dir={tmp_path}"

    def opened(url: str, *more: str) -> str:
        words = [CHROMIUM, *flags.split(), *more, url]
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout

    return opened
