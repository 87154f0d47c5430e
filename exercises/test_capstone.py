"""Statements about the capstone that must hold."""

import json
from types import SimpleNamespace

import pytest
import torch

import data
from baselines.plain import together_loss
from exercises import ROOT, capstone, entry

ENTRIES = ROOT / "exercises" / "entries"


@pytest.fixture
def small(monkeypatch):
    """A hundredth of the budget, weak attacks."""
    monkeypatch.setattr(capstone, "BUDGET", capstone.BUDGET // 100)
    monkeypatch.setattr(capstone, "DECIDE", ("pgd", "cw"))
    monkeypatch.setattr(capstone, "FOLDS", 2)


def trained(loss, budget):
    """The progress at every step that the budget is enough for."""
    seen = []

    def watched(model, x, y, settings):
        seen.append(settings.progress)
        return loss(model, x, y, settings)

    digits = data.load("digits")
    method = SimpleNamespace(COMBINE="vote", loss=watched)
    entry.train_entry(method, digits.x_train[:512], digits.y_train[:512], budget, 0)
    return seen


def test_a_dearer_loss_has_fewer_steps_within_the_same_budget():
    cheap = trained(together_loss, 36 * 128 * 10)
    twice = trained(lambda *a: together_loss(*a) + together_loss(*a), 36 * 128 * 10)
    assert len(cheap) == 10 and len(twice) == 5
    assert cheap == pytest.approx([k / 10 for k in range(10)])


def test_asking_without_a_gradient_is_free():
    def loss(model, x, y, settings):
        with torch.no_grad():
            model(x)
        return torch.nn.functional.cross_entropy(model(x), y)

    assert len(trained(loss, 3 * 128 * 7)) == 7


@pytest.mark.slow
def test_the_judge_loads_nothing_but_finite_weights_of_our_networks(tmp_path, refused, small):
    bad = {
        "ValueError: mine": "def loss(*a):\n    raise ValueError('mine')",
        "left no weights": "import os\ndef loss(*a):\n    os._exit(0)",
        "NaN": "def loss(model, x, y, s):\n    return model(x).sum() * float('nan')",
        "no attribute 'loss'": "",
        "no digits": "import data\ndef loss(*a):\n    try:\n        data.load('digits')\n"
        "    except OSError:\n        raise ValueError('no digits')",
        "COMBINE is 'all'": "COMBINE = 'all'",
        "COMBINE is ['vote']": "COMBINE = ['vote']",
        "malformed node": "COMBINE = open('/etc/passwd').read()",
    }
    for message, content in bad.items():
        (tmp_path / "entry.py").write_text(f"COMBINE = 'vote'\n{content}\n")
        assert message in refused(capstone, tmp_path / "entry.py", "--quick")
    assert "no file" in refused(capstone, tmp_path / "none.py")


def test_what_is_no_python_is_one_line(tmp_path, refused):
    (tmp_path / "cut.py").write_text("def loss(model,")
    assert "cut.py: SyntaxError: '(' was never closed" in refused(capstone, tmp_path / "cut.py")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.py"]


@pytest.mark.slow
def test_an_entry_is_trained_attacked_and_ranked(tmp_path, small, capsys, refused):
    (tmp_path / "mine.py").write_text((ENTRIES / "together.py").read_text())
    capstone.main([str(tmp_path / "mine.py")])
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "mine.json").read_text())
    assert {len(bits) for bits in result["correct"].values()} == {1797} and "\nmine  " in out
    assert {"together", "soe"} <= set(result["others"]) and "transfer" in result["correct"]
    assert "is there already" in refused(capstone, tmp_path / "mine.py")


def test_entries_between_which_nothing_is_decided_are_level():
    def entry(name, count, doubts=()):
        bits = "1" * count + "0" * (1797 - count)
        return {"entry": name, "correct": {"clean": bits, "worst": bits}, "doubts": list(doubts)}

    text = capstone.table([entry("a", 300), entry("b", 500, ["zero"]), entry("c", 499)])
    first, second, third = text.split("\n")[1:]
    assert first.startswith("c") and second.startswith("a") and "level" not in second
    assert third.startswith("b") and third.endswith("level  not ranked: look at its signs")


def test_the_masked_example_is_caught():
    found = json.loads((ENTRIES / "example_masked.json").read_text())
    signs = " ".join(found["doubts"])
    assert "the gradient is exactly zero on" in signs
    assert found["correct"]["pgd"].count("1") > 2 * found["correct"]["apgd"].count("1")
    entries = [json.loads(path.read_text()) for path in sorted(ENTRIES.glob("*.json"))]
    *_, last = capstone.table(entries).split("\n")
    assert last.startswith("example_masked") and last.endswith("look at its signs")


def test_every_entry_is_attacked_by_all_the_others_and_by_itself_not():
    names = {path.stem for path in ENTRIES.glob("*.json")}
    for name in names:
        others = capstone.other_entries(ENTRIES / f"{name}.py")
        assert {name, *others} == names and {len(models) for models in others.values()} == {5}
        result = json.loads((ENTRIES / f"{name}.json").read_text())
        assert set(result["others"]) == others.keys()


@pytest.mark.slow
def test_what_one_entry_s_images_take_counts_in_another_s_worst_case(monkeypatch):
    monkeypatch.setattr(capstone, "DECIDE", ("pgd", "cw"))
    mine, *_ = capstone.other_entries(ENTRIES / "soe.py")["example_masked"]
    theirs, *_ = capstone.other_entries(ENTRIES / "soe.py")["together"]
    digits = data.load("digits")
    x, y = digits.test_images("cpu")
    correct = capstone.attacked(mine, [theirs], x, y)["correct"]
    alone = capstone.attacked(mine, [], x, y)["correct"]
    assert correct["pgd"] == alone["pgd"] and "transfer" not in alone
    assert correct["worst"].count("1") < alone["worst"].count("1")


def test_the_readme_shows_the_entries():
    entries = [json.loads(path.read_text()) for path in sorted(ENTRIES.glob("*.json"))]
    assert capstone.table(entries) in (ROOT / "exercises" / "README.md").read_text()
