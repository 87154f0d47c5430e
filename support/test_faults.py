"""Damaged files: each is refused in one line that names it, or read correctly.

The faults are random and always the same: a bit turned round, some bytes written over, a part that
is missing or there twice, an end cut off.
"""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import data
import infer
import train_collab
from data.images import read_image
from experiments import records
from experiments.fixtures import arrays, change_checkpoint

CASES = 120  # of each kind


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


@pytest.mark.parametrize(
    "lie",
    [
        {"history": None},
        {"history": [{"stage": 7}]},
        {"history": [{"epoch": 1}]},
        {"rng": {}, "model": {}},
        {"rng": {}},
        {"optimizer": {"state": {}}},
        {"optimizer": None},
        {"scheduler": {"last_epoch": "two"}},
    ],
    ids=str,
)
def test_a_checkpoint_that_cannot_be_resumed_is_refused(lie, whole, tmp_path, refused):
    (tmp_path / "run").mkdir()
    history = torch.load(whole / "model.pt", weights_only=True)["history"][:2]
    change_checkpoint(whole, tmp_path / "run" / "model.pt", **{"history": history} | lie)
    assert "run/model.pt is damaged" in refused(train_collab, "--resume", tmp_path / "run")


def test_random_lies_in_the_settings_are_refused_or_change_nothing(whole, tmp_path):
    rng, expected = random.Random(0), weights(whole)
    settings = torch.load(whole / "model.pt", weights_only=True)["settings"]
    lies = ["", "3", -1, 0, 10**12, 1.5, float("nan"), float("inf"), None, [], {}, [1, 2, 3], True]
    for case in range(CASES):
        name = rng.choice(sorted(settings))
        change_checkpoint(whole, tmp_path / "model.pt", {name: rng.choice(lies)})
        try:
            result = weights(tmp_path)
        except ValueError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error), (case, name)
        else:
            assert all(map(torch.equal, result, expected)), (case, name)
