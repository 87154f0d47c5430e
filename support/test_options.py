"""Statements about options and devices that must hold: what they say, and what they refuse."""

import argparse
import json
import os
import pkgutil
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import infer
import train_collab
import xor_demo
from experiments import compare, evaluate, transfer_set
from experiments.fixtures import arrays, change_checkpoint
from support import options

ROOT = Path(__file__).parent.parent


BAD_FLAGS = {
    "--eps 2": "(0, 1]",
    "--eps nan": "(0, 1]",
    **{f"--eps {text}": "argument --eps" for text in ("8/0", "8/", "/255", "1/2/3", "8:255")},
    "--eps 256/255": "is out of range",
    "--eps half": "'half' is no number: it must lie in (0, 1]",
    "--sigma 0": "must be positive",
    "--alpha 0": "must be positive",
    "--lambda -1": "0 or more",
    "--n 0": "at least 1",
    "--n 2.5": "a whole number",
    "--steps inf": "a whole number",
    "--epochs 0": "at least 1",
    "--epochs 1": "2 stages need at least 2",
    "--epochs 4 --stage1-epochs 5": "is 5 of 4",
    "--seed -1": "at least 0",
    "--depth 10": "nearest is 8 or 14",
    "--depth 0": "it must be 6n + 2",
    "--data mnist": "digits, cifar10, cifar100, a FILE.npz or a folder",
    "--device tpu": "no device 'tpu': this machine has",
    "--device hpu": "this machine has",
    "--device meta": "this machine has",
    "--precision float16": "invalid choice",
    "--colour red": "unrecognized",
    "--experts 3": "did you mean --n?",
    "--dataset digits": "did you mean --data?",
    "--data CIFAR-10": "did you mean cifar10",
    "--out=--": "argument --out: -- is no value",
    "--out o\udcff": "is not UTF-8",
    "--submodels none.pt": "no checkpoint",
    "--resume none": "no such folder",
    "--resume none --eps 0.03 --lambda 3 --no-augment": "leave out --augment, --eps, --lambda",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_a_wrong_flag_is_refused_in_one_line(flags, refused):
    assert BAD_FLAGS[flags] in refused(train_collab, *flags.split())
    assert os.listdir() == []


@pytest.mark.parametrize(
    "argv, message",
    [
        ("text.png", "text.png is damaged, or no PNG or JPEG file"),
        ("deep.png", "more than 8 bits"),
        ("gone.png", "no PNG or JPEG file"),
        ("²", "no PNG or JPEG file"),
        ("pipe.png", "no PNG or JPEG file"),
        ("360", "digits has 0 .. 359"),
        ("--eps 0", "(0, 1]"),
        ("--attack pgd magic", "'magic' is none of pgd, fgsm"),
        ("--save a.png", "name some"),
        ("0 --save nowhere/a.png", "existing folder"),
        ("0 --save deep.png", "is there already"),
        ("0 --save a.jpg", "ending in .png"),
        ("0 --data own.npz", "own has 4 classes of images (1, 8, 8); the checkpoint was trained"),
    ],
)
def test_infer_refuses_in_one_line(argv, message, whole, refused):
    Path("text.png").write_text("no image")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save("deep.png")
    np.savez("own.npz", **arrays())
    os.mkfifo("pipe.png")
    before = os.listdir()
    assert message in refused(infer, whole, *argv.split())
    assert os.listdir() == before


@pytest.mark.parametrize("script", [infer, evaluate])
def test_a_run_without_attacks_needs_an_eps(script, whole, refused):
    change_checkpoint(whole, "model.pt", {"eps": 0})
    assert "trained without attacks: give --eps" in refused(script, ".")


def test_infer_makes_the_table_of_the_run_or_the_one_that_is_asked_for(whole, capsys):
    table = json.loads((whole / "metrics.json").read_text())["table"]["collaboration"]

    def row(*argv):
        infer.main([str(whole), "--device", "cpu", *argv])
        row = re.search("^collaboration (.*)$", capsys.readouterr().out, re.M)[1]
        return [float(cell) for cell in row.split()]

    # two of 360 images: in training the weights lie in another order
    assert row() == pytest.approx(list(table.values()), abs=0.6)
    clean, square, pgd, own, worst = row("--eps", "0.02", "--attack", "square", "pgd")
    assert table["pgd-20"] + 2 < pgd < clean and worst <= square == own < clean


# --------------------------------------------------------------------------------- what --help says

# Options that are absent or off by default
ABSENT = "--help --resume --submodels --save --part --transfer".split()
ABSENT += "--random-start --trap --together --jointly --animate".split()
SCRIPTS = ["train_collab", "train_submodel", "infer", "xor_demo", "experiments.evaluate"]
SCRIPTS += [f"baselines.{name}" for name in ("plain", "adp", "gal", "dverge", "more")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_explains_itself_with_its_default(script, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        pkgutil.resolve_name(script).main(["--help"])
    text = capsys.readouterr().out.split("\noptions:\n")[1]
    assert stop.value.code == 0 and "(default: None)" not in text
    text = re.sub(r"^[a-z].*:$", "", text, flags=re.M)  # the headings of groups
    entries = [entry for entry in re.split(r"^  (?=-)", text, flags=re.M) if entry.strip()]
    assert len(entries) > 3
    for entry in entries:
        words = " ".join(entry.split())
        name = re.search(r"--[a-z][a-z0-9-]*", words)[0]
        assert re.search(r"\S(  |\n)\s*\S", entry), f"{name} has no help"
        moved = name == "--data" and "has moved" in words
        assert "(default" in words or name in ABSENT or moved, name


def examples():
    """Every example in a script's docstring."""
    folders = ("", "baselines", "experiments")
    for path in sorted(path for folder in folders for path in (ROOT / folder).glob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if "test_" not in name and "def main(argv" in path.read_text():
            doc = pkgutil.resolve_name(name).__doc__
            yield from re.findall("^    (python (?!-m pip).*)$", doc, re.M)


class Parsed(Exception):
    """The words of a command were understood."""


@pytest.mark.parametrize("command", list(examples()))
def test_every_example_in_a_docstring_is_understood(command, monkeypatch):
    """By the script that it names; what it then does is tested elsewhere."""

    def parse(parser, *args):
        raise Parsed(argparse.ArgumentParser.parse_args(parser, *args))

    monkeypatch.setattr(options.Parser, "parse_args", parse)
    monkeypatch.setattr(options.Parser, "parse_given", parse)
    _, script, *words = shlex.split(command, comments=True)
    script = words.pop(0) if script == "-m" else script.removesuffix(".py")
    with pytest.raises(Parsed):
        pkgutil.resolve_name(script).main(words)


@pytest.mark.parametrize(
    "text, value", [("8/255", 8 / 255), ("0.03", 0.03), ("1/1", 1.0), ("3e-2", 0.03)]
)
def test_a_number_may_be_a_fraction(text, value):
    assert options.radius(text) == pytest.approx(value, abs=0)


OTHERS = {"--help", "--nproc-per-node", "--torch-backend"}  # argparse's, torchrun's, uv's
OTHERS |= {"--index", "--find-links"}  # pip's
OTHERS |= {"--both", "--detach"}  # of commit 48d9328, whose results experiments/readings.md has
TEXTS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("**/*.md"))


@pytest.mark.parametrize("text", [text for text in TEXTS if not text.startswith(".")])
def test_every_option_that_a_text_names_exists(text):
    paths = [path.relative_to(ROOT) for path in ROOT.glob("**/*.py")]
    own = [p for p in paths if p.parts[0][0] != "." and "test_" not in p.name]  # no environment
    sources = [(ROOT / path).read_text() for path in own]
    added = re.compile(r'add(?:_argument)?\(\s*"(--[a-z][a-z0-9-]*)"')
    known = {name for source in sources for name in added.findall(source)}
    for method in compare.METHODS.values():
        known |= {options.flag(name.rstrip("?")) for name in options.kinds(method.settings)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", (ROOT / text).read_text()))
    named = {"--" + name.removeprefix("--").removeprefix("no-") for name in named}
    assert len(known) > 30 and named - OTHERS <= known


@pytest.mark.parametrize("text, least", [("README.md", 10), ("METHOD.md", 15)])
def test_every_function_that_the_text_names_exists(text, least):
    own = {path.stem for path in ROOT.glob("*.py")} | {p.parent.name for p in ROOT.glob("*/*.py")}
    names = re.findall(
        rf"`((?:{'|'.join(own)})\.(?!(?:py|npz|json|png|pt)\b)[\w.]+)`", (ROOT / text).read_text()
    )
    assert len(set(names)) >= least
    for name in set(names):
        pkgutil.resolve_name(name)


def test_scripts_that_run_in_one_process_are_not_for_torchrun(monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for script, *argv in (
        (xor_demo,),
        (infer, "run"),
        (evaluate, "run"),
        (compare, "--eps", "0.1"),
        (transfer_set, "--out", "x.npz"),
    ):
        assert "not under torchrun" in refused(script, *argv)
