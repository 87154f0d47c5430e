"""Faults: each ends in one line that says what is wrong, or changes nothing.

The faults are random and always the same: bytes of files, parts of a checkpoint, words of a command
line. What a killed process leaves, and what an environment holds, is listed.
"""

import copy
import json
import os
import random
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import infer
import train_collab
import train_submodel
import xor_demo
from baselines import adp, plain
from data.images import open_image, read_image
from experiments import evaluate, records
from experiments.fixtures import arrays, change_checkpoint, stop_training
from support import checkpoints, files, options, pictures, runs

CASES = 120  # of each kind
ROOT = Path(__file__).parent.parent


def work(*_):
    """Stands for what a script does once its command line is understood."""
    raise ValueError("nothing was wrong")


# ------------------------------------------------------------------------------- bytes of a file


def damaged(content: bytes, rng: random.Random) -> bytes:
    i, length = rng.randrange(len(content)), rng.choice((1, 8, 100))
    match rng.randrange(5):
        case 0:
            return content[:i] + bytes([content[i] ^ 1 << rng.randrange(8)]) + content[i + 1 :]
        case 1:
            return content[:i] + rng.randbytes(length) + content[i + length :]
        case 2:
            return content[:i] + content[i + length :]
        case 3:
            return content[: i + length] + content[i:]
    return content[:i]


def weights(path):
    return list(infer.load(path).state_dict().values())


def images(path):
    dataset = data.load(str(path))
    return [dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test]


# {file: (what writes it, what reads it, must it be read correctly?)}. JSON and images have no
# checksums, or none that is always looked at.
KINDS = {
    "model.pt": (lambda path, whole: shutil.copy(whole / "model.pt", path), weights, True),
    "data.npz": (lambda path, _: np.savez(path, **arrays()), images, True),
    "packed.npz": (lambda path, _: np.savez_compressed(path, **arrays()), images, True),
    "image.png": (
        lambda path, _: Image.fromarray(arrays()["x_test"][0]).save(path),
        lambda path: read_image(path, [1, 8, 8]),
        False,
    ),
    "result.json": (
        lambda path, _: path.write_text(json.dumps({"correct": {"clean": "01" * 50}})),
        records.read,
        False,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_in_one_line_or_read_correctly(kind, whole, tmp_path):
    write, read, exactly = KINDS[kind]
    path, rng, refused = tmp_path / kind, random.Random(kind), 0
    write(path, whole)
    content, expected = path.read_bytes(), read(path)
    for case in range(CASES):
        path.write_bytes(damaged(content, rng))
        try:
            result = read(path)
        except (ValueError, FileNotFoundError) as error:
            assert str(path) in str(error) or kind in str(error), (case, error)
            assert "\n" not in str(error), case
            refused += 1
        else:
            assert not exactly or all(map(torch.equal, result, expected)), case
    assert refused > CASES / 3


# --------------------------------------------------------------------------- parts of a checkpoint

LIES = ["", "3", -1, 0, 10**12, 1.5, 2.0, float("nan"), float("inf"), None, [], {}, [1, 2, 3], True]
LIES += [{1: 2}, {3: 4}, {1: -1, 2: 5}, {"momentum": 0.0}, "22", "adp", torch.zeros(2), b"x", (1,)]


def places(value, above=()):
    """Every (container, key) within a checkpoint."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, dict | list):
            yield from places(item)


def lie(checkpoint: dict, rng: random.Random) -> None:
    """Changes one thing somewhere: a lie in its place, another type, two that change places."""
    parts = [part for part in checkpoint.values() if isinstance(part, dict | list)]
    parts = list(places(rng.choice(parts)))
    (container, key), (other, its) = rng.choice(parts), rng.choice(parts)
    value = container[key]
    if isinstance(value, torch.Tensor) and rng.random() < 0.7:
        types = (torch.int8, torch.bool, torch.half, torch.complex64, torch.float64)
        changed = [value.to(rng.choice(types)), value - 1, value[None], value * torch.nan]
        container[key] = rng.choice(changed)
    elif rng.random() < 0.2:
        container[key], other[its] = other[its], value
    elif rng.random() < 0.2 and isinstance(container, dict):
        del container[key]
    else:
        container[key] = rng.choice(LIES)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped after the first epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stop_training(folder, epoch=1)
    return folder


def resumed(folder: Path, capsys) -> str | None:
    """The line with which --resume refuses; None where it would train."""
    with pytest.raises(SystemExit) as end:
        train_collab.main(["--resume", str(folder), "--device", "cpu"])
    error = capsys.readouterr().err
    if end.value.code == 77:
        return None
    assert end.value.code == 2 and error.count("error: ") == 1 and "Traceback" not in error
    return error


def types(checkpoint: dict) -> dict:
    """Of its weights, which `load_state_dict` would cast."""
    return {name: (value.dtype, value.shape) for name, value in checkpoint["model"].items()}


@pytest.mark.parametrize("digest", ["kept", "of the lies", "none"])
def test_a_checkpoint_that_lies_is_refused_in_one_line(digest, stopped, monkeypatch, capsys):
    """Always, by its digest; where that is right or missing, `infer` and --resume end well."""
    Path("run").mkdir()
    rng, true = random.Random(digest), checkpoints.load(stopped)
    monkeypatch.setattr(runs.Run, "epochs", lambda *_: sys.exit(77))  # where training would start
    refusals = 0
    for case in range(CASES):
        checkpoint = copy.deepcopy(true)
        while checkpoints.digest(checkpoint) == true["digest"]:
            lie({name: checkpoint[name] for name in true if name not in ("digest", "epoch")}, rng)
        if digest == "none":
            del checkpoint["digest"]
        if digest == "of the lies":
            checkpoints.save(Path("run/model.pt"), checkpoint)
        else:
            torch.save(checkpoint, "run/model.pt")
        error = resumed(Path("run"), capsys)
        refusals += error is not None
        try:
            infer.load("run")
        except ValueError as message:
            assert "run/model.pt is damaged" in str(message) and "\n" not in str(message), case
        else:
            assert digest != "kept" and types(checkpoint) == types(true), case
        assert os.listdir("run") == ["model.pt"], case
    assert refusals == CASES if digest == "kept" else refusals > CASES / 2


@pytest.mark.parametrize(
    "settings, others",
    [
        *(({"stage_epochs": lie}, {}) for lie in ({3: 4}, {1: 2}, {1: -1, 2: 5}, {2: 4})),
        *(({name: lie}, {}) for name, lie in (("class_names", ["a"]), ("image_shape", [8, 8]))),
        *(({}, {"history": lie}) for lie in ([], [{"stage": 7}], [{"epoch": 1}], None)),
        *(({}, {"optimizer": lie}) for lie in ({}, {"state": {}}, {"state": {0: {}}}, None)),
        *(({}, {"rng": {}}), ({}, {"epoch": 3}), ({"model": "ensemble"}, {})),
    ],
    ids=str,
)
def test_a_checkpoint_that_contradicts_itself_is_refused(settings, others, stopped, refused):
    """With a digest that is right."""
    Path("run").mkdir()
    change_checkpoint(stopped, Path("run/model.pt"), settings, **others)
    assert "run/model.pt is damaged" in refused(train_collab, "--resume", "run", "--device", "cpu")


def test_a_checkpoint_of_an_older_version_has_no_digest_and_resumes(stopped, monkeypatch, capsys):
    Path("run").mkdir()
    checkpoint = checkpoints.load(stopped)
    del checkpoint["digest"]
    torch.save(checkpoint, "run/model.pt")
    infer.load("run")
    assert not capsys.readouterr().err
    monkeypatch.setattr(runs.Run, "epochs", work)
    with pytest.raises(ValueError, match="nothing was wrong"):
        train_collab.main(["--resume", "run", "--device", "cpu"])
    assert capsys.readouterr().err == "run has no digest, which would show a change: it is older\n"


# ------------------------------------------------------------------------ words of a command line

SCRIPTS = [train_collab, train_submodel, adp, plain, infer, evaluate, xor_demo]
VALUES = [
    "0",
    "-1",
    "3",
    "1e400",
    "8//255",
    "nan",
    "",
    " ",
    "--",
    "none",
    "Ä",
    "²",
    "o\udcff",
    "1/0",
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_random_command_line_is_refused_in_one_line(script, monkeypatch, refused, capsys):
    monkeypatch.setattr(runs, "Run", work)
    monkeypatch.setattr(xor_demo, "xor_samples", work)
    with pytest.raises(SystemExit):
        script.main(["--help"])
    flags = sorted(set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"})
    rng = random.Random(script.__name__)
    for _ in range(CASES // 2):
        words = rng.choices([*flags, "--experts", "--dataset", "-x", "--"], k=rng.randrange(1, 4))
        words = [rng.choice((word, f"{word}=", f"{word}={rng.choice(VALUES)}")) for word in words]
        refused(script, *words, *rng.sample(VALUES, rng.randrange(3)))
    assert os.listdir() == []


# --------------------------------------------------------------- ends, litter, folders, environment


def test_a_run_that_was_killed_while_it_ended_resumes(whole, monkeypatch):
    """metrics.json, which marks a finished run, comes last; what was half written goes."""
    shutil.copytree(whole, "run", ignore=shutil.ignore_patterns("*.png", "*.html", "*.json"))
    write = files.write

    def killed(path, content):
        if path.name == "report.html":
            path.with_name("report.html.77.tmp").touch()
            raise SystemExit(9)
        write(path, content)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(files, "write", killed)
        train_collab.main(["--resume", "run", "--device", "cpu"])
    assert not Path("run/metrics.json").exists()
    train_collab.main(["--resume", "run", "--device", "cpu"])
    assert sorted(os.listdir("run")) == sorted(os.listdir(whole))


def test_resuming_what_is_no_run_deletes_nothing(refused):
    Path("theirs").mkdir()
    Path("theirs", "notes.2024.tmp").touch()
    refused(train_collab, "--resume", "theirs")
    assert Path("theirs", "notes.2024.tmp").exists()


@pytest.mark.parametrize("theirs", [(), ("thesis.tex",)])
def test_a_folder_with_litter_alone_is_empty(theirs):
    litter = ("model.pt.77.tmp", ".lock")
    for name in (*litter, *theirs):
        Path(name).touch()
    settings = options.RunSettings(out=".")
    vars(settings).update(method="soe", data_name="digits", eps=0.1, n=2)
    if theirs:
        with pytest.raises(ValueError, match="is taken"):
            runs.make_folder(settings)
    else:
        assert runs.make_folder(settings) == "."
    files.unlock()
    assert set(os.listdir()) == ({*theirs, litter[0]} if theirs else set())


@pytest.mark.parametrize(
    "size, rank, local_rank, speaks",
    [
        ("", "3", "", True),
        ("1", "3", "3", True),
        ("0", "3", "3", True),
        ("8", "3", None, True),  # a cluster's, without torchrun
        ("8", "0", "0", True),
        ("8", "3", "3", False),
    ],
)
def test_an_error_is_silent_only_in_torchrun_s_other_processes(
    size, rank, local_rank, speaks, monkeypatch, capsys
):
    for name, value in (("WORLD_SIZE", size), ("RANK", rank), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, False)
    with pytest.raises(SystemExit) as end:
        infer.main(["gone"])
    assert (end.value.code, capsys.readouterr().err.count("\n")) == (2, speaks)


@pytest.mark.parametrize("name", ["adp", "dverge", "gal", "more", "plain"])
def test_a_baseline_started_as_a_file_says_how_to_start_it(name):
    words = [sys.executable, f"baselines/{name}.py"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    message = f"{name}.py: error: start it as python -m baselines.{name}\n"
    assert (ended.returncode, ended.stderr) == (2, message)


def test_a_backend_that_is_not_installed_ends_nothing():
    """Jupyter names one for the commands of a notebook."""
    environment = os.environ | {"MPLBACKEND": "not-installed"}
    words = [sys.executable, "-c", "import support.pictures"]
    assert not subprocess.run(words, cwd=ROOT, env=environment, capture_output=True).returncode


def test_no_raw_warning_of_names_and_large_images():
    Image.new("1", (9500, 9500)).save("large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image("large.png")[0].size == (9500, 9500)
        assert pictures.grid(["猫"], torch.zeros(1, 1, 8, 8), ["ネコ"])
