"""Damaged files: each is refused in one line that names it, or read right.

The faults are random and always the same: a bit turned round, some bytes written over, a part that
is missing or there twice, an end cut off.
"""

import io
import json
import random

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
    at, length = rng.randrange(len(content)), rng.choice((1, 8, 100))
    match rng.randrange(5):
        case 0:
            return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        case 1:
            return content[:at] + rng.randbytes(length) + content[at + length :]
        case 2:
            return content[:at] + content[at + length :]
        case 3:
            return content[: at + length] + content[at:]
    return content[:at]


def weights(path):
    return list(infer.load(path).state_dict().values())


def images(path):
    found = data.load(str(path))
    return [found.x_train, found.y_train, found.x_test, found.y_test]


def files_of(whole, tmp_path) -> dict[str, tuple]:
    """{kind: (a file's content, what reads it, must a file that is read be read right?)}. JSON and
    images have no checksums, or none that is always looked at."""
    picture, table = io.BytesIO(), {"settings": {"n": 3}, "correct": {"clean": "01" * 50}}
    np.savez(tmp_path / "whole.npz", **arrays())
    np.savez_compressed(tmp_path / "small.npz", **arrays())
    Image.fromarray(arrays()["x_test"][0]).save(picture, "png")
    return {
        "model.pt": ((whole / "model.pt").read_bytes(), weights, True),
        "data.npz": ((tmp_path / "whole.npz").read_bytes(), images, True),
        "packed.npz": ((tmp_path / "small.npz").read_bytes(), images, True),
        "image.png": (picture.getvalue(), lambda path: read_image(path, [1, 8, 8]), False),
        "result.json": (json.dumps(table).encode(), records.read, False),
    }


@pytest.mark.parametrize("kind", ["model.pt", "data.npz", "packed.npz", "image.png", "result.json"])
def test_a_damaged_file_is_refused_in_one_line_or_read_right(kind, whole, tmp_path):
    content, read, exactly = files_of(whole, tmp_path)[kind]
    path, rng, refused = tmp_path / kind, random.Random(kind), 0
    path.write_bytes(content)
    right = read(path)
    for case in range(CASES):
        path.write_bytes(damaged(content, rng))
        try:
            found = read(path)
        except (ValueError, FileNotFoundError) as error:
            assert str(path) in str(error) or kind in str(error), (case, error)
            assert "\n" not in str(error), case
            refused += 1
        else:
            assert not exactly or all(map(torch.equal, found, right)), case
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
    rng, right = random.Random(0), weights(whole)
    settings = torch.load(whole / "model.pt", weights_only=True)["settings"]
    lies = ["", "3", -1, 0, 10**12, 1.5, float("nan"), float("inf"), None, [], {}, [1, 2, 3], True]
    for case in range(CASES):
        name = rng.choice(sorted(settings))
        change_checkpoint(whole, tmp_path / "model.pt", {name: rng.choice(lies)})
        try:
            found = weights(tmp_path)
        except ValueError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error), (case, name)
        else:
            assert all(map(torch.equal, found, right)), (case, name)
