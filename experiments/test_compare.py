"""Statements about the comparison that must hold."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

import train_submodel
from baselines import plain
from experiments import compare
from experiments.fixtures import arrays, same_weights
from support import checkpoints

SMALL = "--depth 2 --n 2 --epochs 2 --eps 0.1 --attack pgd apgd --steps 2 --images 20".split()


def compare_small(out, *flags):
    compare.main([*SMALL, "--device", "cpu", "--out", str(out), *flags])


def results(out):
    """{method and seed: what its JSON file says}."""
    found = [json.loads(path.read_text()) for path in out.glob("*.json")]
    return {f"{r['method']} {r['settings']['seed']}": r for r in found}


def planned(**changed):
    """`plan` of two methods at one depth and eps."""
    asked = {"depth": [8], "eps": [0.1], "methods": ["soe", "plain-together"], "seeds": 1}
    asked |= {"n": 3, "seed": 0, "epochs": 36, "equal_cost": False, "data": "digits"}
    return compare.plan(Namespace(**asked | changed), "digits")


# ----------------------------------------------------------------------------------- what it does


@pytest.mark.slow
def test_two_shards_and_then_all_of_it_train_and_attack_nothing_twice(tmp_path, capsys):
    flags = ["--methods", "soe", "adp", "adp --optimizer sgd", "--attack", "pgd", "square"]
    flags += ["--queries", "5"]
    compare_small(tmp_path, *flags, "--shard", "1/2")
    assert set(results(tmp_path)) == {"soe 0", "adp --optimizer sgd 0"}
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    compare_small(tmp_path, *flags, "--shard", "2/2")
    assert {path: path.stat().st_mtime_ns for path in first} == first
    every = {
        path: path.stat().st_mtime_ns for path in [*tmp_path.glob("*/*"), *tmp_path.glob("*.json")]
    }
    capsys.readouterr()
    compare_small(tmp_path, *flags)
    said = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in every} == every
    assert set(results(tmp_path)) == {"soe 0", "adp 0", "adp --optimizer sgd 0"}
    assert said.count("is there already") == 3 and said.count("| adp") == 2
    assert Image.open(tmp_path / "compare-3.png").width > 400
    for log in tmp_path.glob("*.log"):
        assert "stage 1, epoch 1/" in log.read_text() and log.with_suffix("").is_dir()


@pytest.mark.slow
def test_a_result_says_how_to_repeat_it_and_what_was_found(tmp_path, capsys):
    compare_small(tmp_path, "--methods", "soe", "plain --lr 0.05")
    said = capsys.readouterr().out
    for result in results(tmp_path).values():
        row = "collaboration" if result["method"] == "soe" else "vote"
        assert result["row"] == row and result["threads"] == torch.get_num_threads()
        assert result["trained_on"] == [result["device"]] == [f"cpu ({result['threads']} threads)"]
        assert set(result["correct"]) == {"clean", "pgd", "apgd", "worst"}
        for column, images in result["correct"].items():
            assert result["table"][row][column] == 100 * images.count("1") / 20
            assert f"{result['table'][row][column]:.1f}" in said
        per_batch = sum(compare.units_of_a_batch(result["method"], 2, 10).values())
        batches = 11 if row == "collaboration" else 22  # of each stage: 1,437 images, two epochs
        assert result["units"] == per_batch * batches
    words = results(tmp_path)["plain --lr 0.05 0"]["command"].split()
    assert words[:3] == ["python", "-m", "baselines.plain"]
    plain.main([*words[3:], "--device", "cpu", "--out", str(tmp_path / "again")])
    (first,) = tmp_path.glob("digits-plain-*/model.pt")
    assert same_weights(first, tmp_path / "again")


@pytest.mark.slow
def test_other_flags_images_or_attacks_under_the_same_name_are_noticed(tmp_path, refused):
    own, out = str(tmp_path / "own.npz"), tmp_path / "runs"
    np.savez(own, **arrays())
    plain_on = ["--methods", "plain", "--out", out, "--data"]
    compare_small(out, "--methods", "plain", "--data", own)
    again = [*SMALL, *plain_on, own]
    assert "was evaluated in another way" in refused(compare, *again, "--attack", "fgsm")
    with pytest.MonkeyPatch.context() as patch:
        together = compare.METHODS["plain"]._replace(flags=("--together",))
        patch.setitem(compare.METHODS, "plain", together)
        assert "was made by python -m baselines.plain" in refused(compare, *again)
    np.savez(own, **arrays(y_train=(np.arange(40) + 1) % 4))
    assert "is of other images" in refused(compare, *again)
    (kept,) = out.glob("*.json")
    kept.unlink()
    assert "was trained on other images" in refused(compare, *again)


@pytest.mark.slow
def test_other_attacks_of_the_same_models_go_into_another_folder(tmp_path):
    compare_small(tmp_path, "--methods", "plain")
    (model,) = tmp_path.glob("*/model.pt")
    trained = model.stat().st_mtime_ns
    flags = ["--methods", "plain", "--attack", "fgsm", "--results", str(tmp_path / "fgsm")]
    compare_small(tmp_path, *flags)
    assert model.stat().st_mtime_ns == trained
    assert set(results(tmp_path / "fgsm")["plain 0"]["correct"]) == {"clean", "fgsm"}


@pytest.mark.slow
def test_it_resumes_where_it_was_interrupted(tmp_path, monkeypatch):
    flags = ["--methods", "plain", "--seeds", "2", "--epochs", "4"]
    compare_small(tmp_path / "whole", *flags)
    save = checkpoints.save

    def stop(path, checkpoint):
        save(path, checkpoint)
        if checkpoint["epoch"] == 2 and checkpoint["settings"]["seed"] == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(checkpoints, "save", stop)
        compare_small(tmp_path / "cut", *flags)
    assert stopped.value.code == 130 and list(results(tmp_path / "cut")) == ["plain 0"]
    (second,) = (tmp_path / "cut").glob("*-seed1/model.pt")
    assert checkpoints.load(second)["epoch"] == 2
    compare_small(tmp_path / "cut", *flags)
    assert "epoch 3/4" in (tmp_path / "cut" / f"{second.parent.name}.log").read_text()
    cut, whole = (results(tmp_path / name)["plain 1"]["correct"] for name in ("cut", "whole"))
    assert cut == whole


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    sample_loss = train_submodel.sample_loss
    monkeypatch.setattr(train_submodel, "sample_loss", lambda *args: torch.nan * sample_loss(*args))
    with pytest.raises(SystemExit) as stopped:
        compare_small(tmp_path, "--methods", "soe", "plain")
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and "became NaN" in error
    assert error.endswith("runs that failed, as said above: 1\n")
    assert list(results(tmp_path)) == ["plain 0"]


# ---------------------------------------------------------------------------------------- the plan


def test_every_run_has_a_name_of_its_own_and_is_planned_once():
    methods = [*compare.METHODS, "soe --sigma 3", "soe --sigma 0.3"]
    runs = planned(methods=methods * 2, eps=[0.1, 0.2, 0.1], depth=[2, 8, 8], seeds=3, seed=5)
    assert len(runs) == len(methods) * 2 * 2 * 3
    assert len({str(of) for of in runs.values()}) == len(runs)  # no two are the same
    assert {flags[-1] for _, flags in runs.values()} == {"--seed=5", "--seed=6", "--seed=7"}
    (flags,) = planned(methods=["soe --sigma 3"]).values()
    assert flags == ("soe --sigma 3", ["--sigma", "3", *flags[1][2:]])


EACH, PLAINLY = 2 * 3 * 4 + 3 * (3 + 9), 2 * 3 * 4 + 6 * 3  # 2 M S + 3 (M + M^2), 2 M S + 6 M
UNITS = {
    "soe": {1: EACH, 2: PLAINLY},
    "soe-stage1": {1: EACH},
    "gal": {1: PLAINLY + 3 * 3},  # the second derivative
    "dverge": {1: PLAINLY, 2: 2 * 3 * 10 + 3 + 2 * 3 * 4 + 3 * 3 + 3 * 3 * 2},
}


@pytest.mark.parametrize("method", compare.METHODS)
def test_units_of_three_members_and_four_steps_of_pgd(method):
    assert compare.units_of_a_batch(method, 3, 4) == UNITS.get(method, {1: PLAINLY})
    if method != "plain-together":  # which needs an attack
        assert compare.units_of_a_batch(method, 3, 4, eps=0)[1] == (18 if method == "gal" else 9)


def test_counting_units_changes_no_random_number():
    before = torch.get_rng_state()
    compare.units_of_a_batch.__wrapped__("adp", 2, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_recorded_already_is_not_done_again(tmp_path):
    words = [*SMALL, "--methods", "soe", "plain", "--out", str(tmp_path / "set")]
    args = compare.comparison_parser().parse_args(words)
    names = {f"set/{name}.json" for name in compare.plan(args, "digits")}
    assert compare.run(args, names) == ([], 0) and len(names) == 2
    assert not list((tmp_path / "set").iterdir())


def test_models_trained_without_attacks_are_compared_on_clean_images(tmp_path, capsys):
    compare_small(tmp_path, "--eps", "0", "--methods", "soe", "plain")
    assert "| clean | clean less soe's |" in capsys.readouterr().out
    for result in results(tmp_path).values():
        assert set(result["correct"]) == {"clean"}


@pytest.mark.parametrize("flag", compare.OURS)
def test_what_is_the_same_for_all_is_no_method_s_own(flag, tmp_path, refused):
    flags = [*SMALL, "--out", tmp_path / "runs", "--methods", f"plain {flag}=1"]
    assert f"{flag}=1 in 'plain {flag}=1' would differ" in refused(compare, *flags)
    assert not (tmp_path / "runs").exists()


def test_flags_that_a_script_does_not_know_are_refused_before_anything_trains(tmp_path, refused):
    flags = [*SMALL, "--out", tmp_path / "runs", "--methods", "soe"]
    assert "arguments: --togther" in refused(compare, *flags, "plain --togther")
    assert "--lr: -1 is out of range" in refused(compare, *flags, "more --lr -1")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_method_without_the_last_attack_is_compared_by_what_it_has(tmp_path, capsys):
    compare_small(
        tmp_path, "--methods", "soe", "plain --alpha 2/255", "--attack", "pgd", "adaptive"
    )
    head, _, soe, plain = [row for row in capsys.readouterr().out.split("\n") if row[:1] == "|"]
    assert "worst less soe's" in head and "| - | - |" in plain and "±" in plain


def test_equal_cost_is_more_epochs_of_a_cheaper_method():
    assert compare.epochs_at_equal_cost("plain-together", "soe", 36, 3, 10) == 40  # 87 to 78
    assert compare.epochs_at_equal_cost("soe", "soe", 36, 3, 10) == 36
    assert compare.epochs_at_equal_cost("plain-together", "soe", 36, 3, 10, eps=0) == 36
    flags = [flags for _, flags in planned(equal_cost=True).values()]
    assert "--epochs=36" in flags[0] and "--epochs=40" in flags[1]


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--methods soe magic", "unknown method 'magic'"),
        ("--attack magic", "invalid choice: 'magic'"),
        ("--shard 3/2", "invalid part value: '3/2'"),
        ("--eps 2", "out of range"),
        ("--seeds 0", "at least 1"),
        ("--depth 3", "depth is 3"),
        ("--data none.npz", "none.npz"),
        ("--device magic", "no device 'magic'"),
    ],
)
def test_what_it_cannot_do_is_one_line(flags, message, tmp_path, refused):
    small = [*SMALL, "--methods", "plain"]
    assert message in refused(compare, *small, *flags.split(), "--out", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
