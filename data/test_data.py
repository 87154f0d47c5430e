"""Statements about data that must hold: the digits, batches, one's own files and images."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import infer
import train_collab
from data.images import read_image, read_images
from experiments.fixtures import arrays, train_small


def test_digits_are_split_1437_to_360():
    digits = data.load("digits")
    assert digits.x_train.shape == (1437, 1, 8, 8) and digits.x_test.shape == (360, 1, 8, 8)
    assert digits.x_train.dtype == torch.uint8 and digits.x_train.max() == 255
    assert digits.num_classes == 10
    both = torch.cat([digits.x_train, digits.x_test]).flatten(1).unique(dim=0)
    assert len(both) == 1797  # no image is in both parts, or twice in one


def test_a_table_shows_a_fixed_choice_of_at_most_1000_test_images():
    x = torch.arange(1200).remainder(256).byte().view(1200, 1, 1, 1).expand(-1, 1, 8, 8)
    many = data.Data(x, torch.arange(1200), x, torch.arange(1200), "many", 1200)
    images, labels = many.test_images("cpu")
    assert len(labels.unique()) == 1000 and labels.max() > 1000
    assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels % 256)
    assert torch.equal(labels, many.test_images("cpu")[1])
    assert torch.equal(labels[:7], many.choose_test_images(7))


# ---------------------------------------------------------------------------------------- batches


def test_crop_and_flip_moves_and_mirrors_each_image_by_its_own_draw():
    x = torch.randint(1, 256, (4, 3, 32, 32), dtype=torch.uint8)
    top, left = torch.tensor([4, 0, 4, 4]), torch.tensor([4, 4, 4, 8])
    moved = data.crop_and_flip(x, top, left, torch.tensor([False, False, True, False]))
    assert torch.equal(moved[0], x[0])
    assert (moved[1, :, :4] == 0).all() and torch.equal(moved[1, :, 4:], x[1, :, :-4])
    assert torch.equal(moved[2], x[2].flip(2))
    assert (moved[3, :, :, -4:] == 0).all() and torch.equal(moved[3, :, :, :-4], x[3, :, :, 4:])


@pytest.mark.parametrize("batch_size, sizes", [(32, [32, 32, 32]), (100, [100]), (128, [100])])
def test_an_epoch_shows_every_image_at_most_once_and_drops_the_partial_batch(batch_size, sizes):
    x, y = torch.arange(100).byte().view(100, 1, 1, 1).expand(-1, 1, 8, 8), torch.arange(100)
    batches = list(data.batches(x, y, batch_size))
    labels = torch.cat([y for _, y in batches])
    assert [len(y) for _, y in batches] == sizes and len(labels.unique()) == sum(sizes)
    assert not torch.equal(labels, labels.sort().values)
    for images, labels in batches:
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels)


def test_processes_share_a_batch_and_its_random_numbers():
    x, y = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8), torch.arange(40)

    def first_batch(share):
        torch.manual_seed(0)
        return next(data.batches(x, y, 10, True, share))

    for share in (slice(rank, None, 3) for rank in range(3)):
        for mine, everyones in zip(first_batch(share), first_batch(slice(None))):
            assert torch.equal(mine, everyones[share])


# ---------------------------------------------------------------------------- one's own data files


@pytest.mark.parametrize("shape", [(40, 8, 12), (40, 32, 32, 3), (40, 8, 8, 1)])
def test_ones_own_images_train(shape, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = (np.arange(40) % 4)[:, None]
    np.savez(tmp_path / "own.npz", **arrays(x_train=images, x_test=images, y_train=labels))
    own = ["--data", str(tmp_path / "own.npz"), "--epochs", "2"]
    train_small(tmp_path / "run", *own)
    moved = tmp_path / "moved.npz"
    (tmp_path / "own.npz").rename(moved)
    infer.main([str(tmp_path / "run"), "3", "--data", str(moved)])


BAD_DATA = {
    "a float": ({"x_train": np.zeros((40, 8, 8))}, "must be uint8"),
    "flat": ({"x_test": np.zeros((40, 64), np.uint8)}, "N x H x W"),
    "one number": ({"x_train": np.uint8(3)}, "N x H x W"),
    "two channels": ({"x_test": np.zeros((40, 8, 8, 2), np.uint8)}, "C 1 or 3"),
    "odd sides": ({"x_train": np.zeros((40, 8, 9), np.uint8)}, "multiples of 4"),
    "small": ({"x_train": np.zeros((40, 4, 8), np.uint8)}, "from 8 up"),
    "other size": ({"x_test": np.zeros((40, 12, 12), np.uint8)}, "must be the same"),
    "empty": ({"x_train": np.zeros((0, 8, 8), np.uint8), "y_train": np.zeros(0, int)}, "is empty"),
    "length": ({"y_train": np.arange(39) % 4}, "one integer for each of the 40"),
    "float labels": ({"y_train": np.zeros(40)}, "one integer"),
    "one class": ({"y_train": np.zeros(40, int)}, "at least two"),
    "a gap": ({"y_train": np.arange(40) % 4 * 2}, "out of range"),
    "negative": ({"y_test": np.arange(40) % 4 - 1}, "out of range"),
    "unknown class": ({"y_test": np.arange(40) % 5}, "out of range"),
    "objects": ({"y_test": np.array([{}] * 40)}, "Python objects"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_a_wrong_data_file_is_refused_in_one_line(name, tmp_path, monkeypatch, refused):
    changes, message = BAD_DATA[name]
    monkeypatch.chdir(tmp_path)
    np.savez("bad.npz", **arrays(**changes))
    assert message in refused(train_collab, "--data", "bad.npz")
    assert os.listdir() == ["bad.npz"]


def test_what_is_no_data_file_is_refused_in_one_line(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    Path("text.npz").write_text("hello")
    Path("empty.npz").touch()
    np.savez("some.npz", x_train=np.zeros(3))
    with open("single.npz", "wb") as file:
        np.save(file, np.zeros(3))
    np.savez("whole.npz", **arrays())
    Path("cut.npz").write_bytes(Path("whole.npz").read_bytes()[:3000])
    np.savez_compressed("whole.npz", **arrays())
    flipped = bytearray(Path("whole.npz").read_bytes())
    flipped[200:210] = b"0123456789"
    Path("flipped.npz").write_bytes(flipped)
    messages = {"some": "lacks y_train, x_test, y_test", "none": "no file", "flipped": "damaged"}
    for name in ("text", "empty", "single", "cut", "flipped", "some", "none"):
        error = refused(train_collab, "--data", f"{name}.npz")
        assert messages.get(name, "is no npz file") in error
    assert "runs" not in os.listdir()


def test_cifar10_that_cannot_be_had_says_what_to_do(tmp_path, monkeypatch, refused):
    def offline(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "CIFAR10", offline)
    error = refused(train_collab, "--data", "cifar10")
    assert "put cifar-10-python.tar.gz there" in error and "--data digits" in error


# ------------------------------------------------------------------------------------ image files


CLEAR = "put on white where transparent"


@pytest.mark.parametrize(
    "mode, colour, expected, changes",
    [
        ("L", 51, [0.2], []),
        ("RGB", "white", [1], ["converted from RGB to L"]),
        ("CMYK", (0, 0, 0, 0), [1], ["converted from CMYK to L"]),
        ("LA", (0, 0), [1], [CLEAR, "converted from RGBA to L"]),
        ("RGBA", (0, 0, 0, 204), [0.2] * 3, [CLEAR, "converted from RGBA to RGB"]),
        ("RGB", (255, 51, 0), [1, 0.2, 0], []),
        ("L", 255, [1] * 3, ["converted from L to RGB"]),
    ],
)
def test_an_image_of_any_mode_is_made_to_fit(mode, colour, expected, changes, tmp_path):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, (12, 8), colour).save(path)
    image, said = read_image(path, [len(expected), 8, 12])
    everywhere = torch.tensor(expected, dtype=torch.float)[:, None, None].expand(-1, 8, 12)
    assert said == changes
    torch.testing.assert_close(image, everywhere)


def test_an_image_of_another_size_is_squeezed(tmp_path):
    pixels = np.zeros((20, 32), np.uint8)
    pixels[:, 16:] = 255  # black on the left, white on the right
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    image, said = read_image(str(tmp_path / "wide.png"), [1, 8, 8])
    assert said == ["resized from 32 x 20 to 8 x 8"]
    assert (image[:, :, :4] == 0).all() and (image[:, :, 4:] == 1).all()


def test_a_word_is_a_file_where_there_is_one_else_a_test_image(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), "white").save("17", "png")
    digits, settings = data.load("digits"), {"num_classes": 10, "image_shape": [1, 8, 8]}
    names, x, labels = read_images(["17", "18"], settings, "digits")
    assert capsys.readouterr().out == "17: converted from RGB to L\n" and (x[0] == 1).all()
    assert torch.equal(x[1], digits.x_test[18] / 255)
    assert labels == [None, digits.y_test[18]]
    assert names == ["17", f"test image 18, label {digits.y_test[18]}"]
