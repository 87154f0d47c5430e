"""Statements about data that must hold: the digits, batches, one's own files and images."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import infer
import train_collab
from data.images import border, read_image, read_images
from experiments import evaluate
from experiments.fixtures import arrays, train_small


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Where every test runs."""
    monkeypatch.chdir(tmp_path)


def test_digits_are_split_1437_to_360():
    digits = data.load("digits")
    assert digits.x_train.shape == (1437, 1, 8, 8) and digits.x_test.shape == (360, 1, 8, 8)
    assert digits.x_train.dtype == torch.uint8 and digits.x_train.max() == 255
    assert digits.num_classes == 10
    both = torch.cat([digits.x_train, digits.x_test]).flatten(1).unique(dim=0)
    assert len(both) == 1797  # no image is in both parts, or twice in one


def test_a_table_shows_a_fixed_choice_of_at_most_1000_test_images():
    x = torch.arange(1200).remainder(256).byte().view(1200, 1, 1, 1).expand(-1, 1, 8, 8)
    many = data.Data(x, torch.arange(1200), x, torch.arange(1200), "many", ["a", "b"])
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

    def first_batch(part):
        torch.manual_seed(0)
        return next(data.batches(x, y, 10, True, part))

    for part in (slice(rank, None, 3) for rank in range(3)):
        for mine, everyones in zip(first_batch(part), first_batch(slice(None))):
            assert torch.equal(mine, everyones[part])


# ---------------------------------------------------------------------------- one's own data files


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(40, 8, 12), (40, 32, 32, 3), (40, 8, 8, 1)])
def test_ones_own_images_train(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = (np.arange(40) % 4)[:, None]
    np.savez("own.npz", **arrays(x_train=images, x_test=images, y_train=labels))
    train_small("run", "--data", "own.npz", "--epochs", "2")
    Path("own.npz").rename("moved.npz")
    infer.main(["run", "3", "--data", "moved.npz"])


UNTRAINED = ["--epochs", "1"]  # refused once the data is read: two stages need two
BAD_DATA = {
    "a float": ({"x_train": np.zeros((40, 8, 8))}, "must be uint8"),
    "flat": ({"x_test": np.zeros((40, 64), np.uint8)}, "N x H x W"),
    "one number": ({"x_train": np.uint8(3)}, "N x H x W"),
    "two channels": ({"x_test": np.zeros((40, 8, 8, 2), np.uint8)}, "C 1 or 3"),
    "odd sides": ({"x_train": np.zeros((40, 8, 9), np.uint8)}, "multiples of 4"),
    "small": ({"x_train": np.zeros((40, 4, 8), np.uint8)}, "from 8 up"),
    "other size": ({"x_test": np.zeros((40, 12, 12), np.uint8)}, "must be the same"),
    "empty": ({"x_train": np.zeros((0, 8, 8), np.uint8), "y_train": np.zeros(0, int)}, "is empty"),
    "length": ({"y_train": np.arange(39) % 4}, "one integer for each of 40"),
    "float labels": ({"y_train": np.zeros(40)}, "one integer"),
    "one class": ({"y_train": np.zeros(40, int)}, "at least two"),
    "a gap": ({"y_train": np.arange(40) % 4 * 2}, "no image of class 1"),
    "negative": ({"y_test": np.arange(40) % 4 - 1}, "out of range"),
    "unknown class": ({"y_test": np.arange(40) % 5}, "out of range"),
    "objects": ({"y_test": np.array([{}] * 40)}, "Object arrays cannot be loaded"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_a_wrong_data_file_is_refused_in_one_line(name, refused):
    changes, message = BAD_DATA[name]
    np.savez("bad.npz", **arrays(**changes))
    assert message in refused(train_collab, "--data", "bad.npz", *UNTRAINED)
    assert os.listdir() == ["bad.npz"]


def test_what_is_no_data_file_is_refused_in_one_line(refused):
    """Files that are cut or damaged: support/test_faults.py."""
    Path("text.npz").write_text("hello")
    Path("empty.npz").touch()
    np.savez("some.npz", x_train=np.zeros(3))
    with open("single.npz", "wb") as file:
        np.save(file, np.zeros(3))
    messages = {"some": "lacks y_train, x_test, y_test", "none": "no npz file"}
    for name in ("text", "empty", "single", "some", "none"):
        error = refused(train_collab, "--data", f"{name}.npz")
        assert messages.get(name, "is damaged, or no npz file") in error
    assert "runs" not in os.listdir()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_that_cannot_be_had_says_what_to_do(name, monkeypatch, refused):
    def offline(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(f"torchvision.datasets.{name.upper()}", offline)
    error = refused(train_collab, "--data", name)
    assert f"put {name.replace('r1', 'r-1')}-python.tar.gz there" in error
    assert "Network is unreachable" in error and "--data digits" in error


def test_the_arrays_of_medmnist_are_read_as_they_are(capsys):
    images = {name: arrays()[f"x_{name}"] for name in ("train", "test")}
    medmnist = {f"{name}_images": x for name, x in images.items()}
    medmnist |= {f"{name}_labels": (np.arange(40) % 4)[:, None] for name in images}
    np.savez("own.npz", **arrays())
    np.savez("bloodmnist.npz", val_images=images["test"], **medmnist)
    assert data.load("bloodmnist.npz").checksum == data.load("own.npz").checksum
    assert capsys.readouterr().out == "bloodmnist.npz: not used: val_images\n"


# ------------------------------------------------------------------------------------ image files


CLEAR = "put on white where transparent"


@pytest.mark.parametrize(
    "mode, colour, expected, changes",
    [
        ("L", 51, [0.2], []),
        ("RGB", "white", [1], ["converted from RGB to L"]),
        ("CMYK", (0, 0, 0, 0), [1], ["converted from CMYK to L"]),
        ("LA", (0, 0), [1], [CLEAR]),
        ("RGBA", (0, 0, 0, 204), [0.2] * 3, [CLEAR]),
        ("RGB", (255, 51, 0), [1, 0.2, 0], []),
        ("L", 255, [1] * 3, ["converted from L to RGB"]),
    ],
)
def test_an_image_of_any_mode_is_made_to_fit(mode, colour, expected, changes):
    path = "image.tif" if mode == "CMYK" else "image.png"
    Image.new(mode, (12, 8), colour).save(path)
    image, noted = read_image(path, [len(expected), 8, 12])
    everywhere = torch.tensor(expected, dtype=torch.float)[:, None, None].expand(-1, 8, 12)
    assert noted == changes
    torch.testing.assert_close(image, everywhere)


def test_an_image_of_another_shape_is_cropped_and_not_squeezed():
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:, 16:], pixels[:, :8], pixels[:, 24:] = 255, 99, 99  # the middle: black, then white
    Image.fromarray(pixels).save("wide.png")
    image, changes = read_image("wide.png", [1, 8, 8])
    cropped, resized = "cropped from 32 x 16 to 16 x 16", "resized from 16 x 16 to 8 x 8"
    assert changes == [f"{cropped}, the middle", resized]
    assert (image[:, :, :4] == 0).all() and (image[:, :, 4:] == 1).all()


def test_a_photograph_is_turned_as_its_camera_says():
    upright = Image.fromarray(np.uint8([[0] * 4 + [255] * 4] * 8))  # black on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.rotate(90).save("photo.png", exif=exif)
    image, changes = read_image("photo.png", [1, 8, 8])
    assert changes == ["turned upright"]
    assert (image[:, :, :4] == 0).all() and (image[:, :, 4:] == 1).all()


@pytest.mark.parametrize(
    "ground, shade, inverted",
    [(0.1, 255, True), (0.1, 30, False), (0.9, 0, True), (0.9, 230, False), (0.5, 255, False)],
)
def test_an_image_with_the_wrong_ground_looks_inverted(ground, shade, inverted):
    Image.new("L", (8, 8), shade).save("image.png")
    _, warnings = read_image("image.png", [1, 8, 8], ground)
    assert any("looks inverted" in warning for warning in warnings) == inverted


def test_a_border_is_the_outermost_pixels():
    x = torch.zeros(2, 1, 4, 4)
    x[:, :, 1:-1, 1:-1] = 1
    assert border(x) == 0 and border(1 - x) == 1
    assert border((255 * (1 - x)).byte()) == 255


# ------------------------------------------------------------------------------- folders of images


def a_folder(path, parts=("train", "test"), classes=("cat", "dog"), count=10, mode="RGB"):
    """Class folders of noise; a cat is dark and a dog is light."""
    rng = np.random.default_rng(0)
    for part in parts or ("",):
        for k, name in enumerate(classes):
            Path(path, part, name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                low = 200 * k // (len(classes) - 1)
                pixels = rng.integers(low, low + 50, (12, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(Path(path, part, name, f"{i}.png"))


@pytest.mark.parametrize("mode, channels", [("RGB", 3), ("L", 1), ("LA", 1)])
def test_a_folder_of_images_is_a_data_set(mode, channels):
    a_folder("pets", mode=mode)
    pets = data.load("pets", 16)
    assert pets.x_train.shape == (20, channels, 16, 16) and pets.x_test.shape == pets.x_train.shape
    assert pets.class_names == ["cat", "dog"] and pets.name == "pets"
    assert torch.equal(pets.y_train, (pets.x_train.float().mean((1, 2, 3)) > 128).long())


def test_labels_are_the_training_classes_where_test_lacks_one():
    a_folder("pets", classes=("ape", "cat", "dog"), count=3)
    shutil.rmtree("pets/test/ape")
    assert data.load("pets").y_test.tolist() == [1] * 3 + [2] * 3


def test_a_folder_without_parts_is_split_class_by_class_and_always_alike():
    a_folder("pets", parts=())
    pets, again = (data.load("pets", test_share=0.3) for _ in range(2))
    assert len(pets.y_test) == 6 and int(pets.y_test.sum()) == 3 and len(pets.y_train) == 14
    assert pets.checksum == again.checksum and pets.x_train.shape[2:] == (32, 32)
    both = torch.cat([pets.x_train, pets.x_test]).flatten(1).unique(dim=0)
    assert len(both) == 20  # no image is in both parts


def test_a_run_on_a_folder_names_its_classes_everywhere(capsys):
    a_folder("pets", count=20)
    train_small("run", "--data", "pets", "--size", "8", "--epochs", "2")
    assert re.search("^ +cat +dog$", capsys.readouterr().out, re.M)
    infer.main(["run", "0", "pets/test/dog/0.png"])
    out = capsys.readouterr().out
    assert "test image 0, label cat" in out
    assert re.search("expert 1: (cat|dog),", out) and not re.search("expert 1: [0-9]", out)
    infer.main(["run"])
    assert re.search("^ +cat +dog$", capsys.readouterr().out, re.M)


def test_a_folder_that_has_changed_is_other_data(refused):
    """One more file, and other images are for testing, perhaps some of the training images."""
    a_folder("pets", parts=(), count=20)
    train_small("run", "--data", "pets", "--size", "8", "--epochs", "2")
    infer.main(["run"])
    Image.new("RGB", (8, 8)).save("pets/cat/00.png")
    for script in (infer, evaluate):
        assert "other images than those of the run" in refused(script, "run")
    infer.main(["run", "--data", "pets"])  # as one who knows it
    Path("pets").rename("moved")
    assert "unknown data" in refused(infer, "run")


def grey_16_bit(path):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)


BROKEN = {
    "1 of the 40 files cannot be read": lambda: Path("pets/train/cat/3.png").write_text("none"),
    "cat/3.png has more than 8 bits": lambda: grey_16_bit("pets/train/cat/3.png"),
    "no PNG or JPEG file pets/train": lambda: Path("pets/train/cat/a.png").symlink_to("gone"),
    "classes dog: it must have two": lambda: shutil.rmtree("pets/train/cat"),
    "classes that train lacks: fox": lambda: Path("pets/test/dog").rename("pets/test/fox"),
    "only one of the folders train and test": lambda: shutil.rmtree("pets/test"),
    "eel is no class, as it holds no image": lambda: Path("pets/train/eel").mkdir(),
    "test is no class, as it holds folders": lambda: [
        Path("pets", part).rename(f"pets/my_{part}") for part in ("train", "test")
    ],
    "class a has one image": lambda: [
        shutil.rmtree("pets"),
        a_folder("pets", parts=(), count=1, classes="ab"),
    ],
    "not UTF-8 among the classes": lambda: [
        Path("pets", part, "cat").rename(f"pets/{part}/\udcff") for part in ("train", "test")
    ],
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_wrong_folder_is_refused_in_one_line(message, refused):
    a_folder("pets")
    BROKEN[message]()
    assert message in refused(train_collab, "--data", "pets", *UNTRAINED)
    assert os.listdir() == ["pets"]


def test_what_is_no_image_of_a_class_is_left_out_and_named(capsys):
    a_folder("pets", parts=("Train", "TEST"))
    checksum = data.load("pets", 8).checksum
    capsys.readouterr()
    hidden = ["Train/.ipynb_checkpoints/a.png", "__MACOSX/TEST/cat/a.png", "Train/cat/._a.png"]
    unused = ["val/cat/a.png", "a.png", "Train/cat/a.jfif", "Train/cat/b.jfif", "TEST/dog/NOTES"]
    for name in hidden + unused:
        Path("pets", name).parent.mkdir(parents=True, exist_ok=True)
        Path("pets", name).touch()
    assert data.load("pets", 8).checksum == checksum
    assert "pets: 5 files are not used: .jfif 2, .png 2, no ending 1\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--data pets --size 10", "multiple of 4"),
        ("--data pets --test-share 0.5", "has its own folder test"),
        ("--data pets --test-share 1", "(0, 1)"),
        ("--size 16", "for folders of images"),
    ],
)
def test_options_of_a_folder_are_checked(flags, message, refused):
    a_folder("pets")
    assert message in refused(train_collab, *flags.split())


# ------------------------------------------------------------------------ words of a command line


def test_a_word_is_a_file_where_there_is_one_else_a_test_image(capsys):
    Image.new("RGB", (8, 8), "white").save("17", "png")
    Path("18").mkdir()  # a folder is no image
    digits, settings = data.load("digits"), {"num_classes": 10, "image_shape": [1, 8, 8]}
    names, x, labels = read_images(["17", "18"], settings, "digits")
    assert capsys.readouterr().out == "17: converted from RGB to L\n" and (x[0] == 1).all()
    assert torch.equal(x[1], digits.x_test[18] / 255)
    assert labels == [None, digits.y_test[18]]
    assert names == ["17", f"test image 18, label {digits.y_test[18]}"]
