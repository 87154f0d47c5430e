"""Statements about the comparison that must hold."""

import json
import shlex

import numpy as np
import pandas as pd
import pytest
import torch

import train_submodel
from baselines import plain
from experiments import compare, intervals, records
from experiments.fixtures import arrays, record_of, same_weights, stop_training, train_small
from support import checkpoints

SMALL = "--depth 2 --n 2 --epochs 2 --eps 0.1 --attack pgd apgd --steps 2 --images 20".split()


def compare_small(out, words):
    compare.main([*SMALL, "--device", "cpu", "--out", str(out), *shlex.split(words)])


def results(out):
    """{method and seed: what its JSON file says}."""
    contents = [json.loads(path.read_text()) for path in out.glob("*.json")]
    return {f"{record['method']} {record['settings']['seed']}": record for record in contents}


def times(paths):
    """{path: when it was written}."""
    return {path: path.stat().st_mtime_ns for path in paths}


def planned(words):
    """The plan of a command at one depth and eps."""
    words = ["--depth", "8", "--eps", "0.1", *shlex.split(words)]
    return compare.plan(compare.comparison_parser().parse_args(words), "digits")


# ----------------------------------------------------------------------------------- what it does


@pytest.mark.slow
def test_two_shards_and_then_all_of_it_train_and_attack_nothing_twice(tmp_path, capsys):
    words = "--methods soe adp 'adp --optimizer sgd' --attack pgd square --queries 5"
    compare_small(tmp_path, f"{words} --shard 1/2")
    assert set(results(tmp_path)) == {"soe 0", "adp --optimizer sgd 0"}
    first = times(tmp_path.glob("*/*"))
    compare_small(tmp_path, f"{words} --shard 2/2")
    assert times(first) == first
    all_files = times([*tmp_path.glob("*/*"), *tmp_path.glob("*.json")])
    capsys.readouterr()
    compare_small(tmp_path, words)
    output = capsys.readouterr().out
    assert times(all_files) == all_files
    assert set(results(tmp_path)) == {"soe 0", "adp 0", "adp --optimizer sgd 0"}
    assert output.count("is there already") == 3 and output.count("| adp") == 2
    for log in tmp_path.glob("*.log"):
        assert "stage 1, epoch 1/" in log.read_text() and log.with_suffix("").is_dir()


def test_a_result_says_how_to_repeat_it_and_what_came_out(tmp_path, capsys):
    compare_small(tmp_path, "--methods soe 'plain --lr 0.05'")
    output = capsys.readouterr().out
    for result in results(tmp_path).values():
        row = "collaboration" if result["method"] == "soe" else "vote"
        assert result["row"] == row and result["threads"] == torch.get_num_threads()
        assert result["trained_on"] == [result["device"]] == [f"cpu ({result['threads']} threads)"]
        assert set(result["correct"]) == {"clean", "pgd", "apgd", "worst"}
        for column, images in result["correct"].items():
            assert result["table"][row][column] == 100 * images.count("1") / 20
            assert f"{result['table'][row][column]:.1f}" in output
        per_batch = sum(compare.units_of_a_batch(result["method"], 2, 10).values())
        batches = 11 if row == "collaboration" else 22  # of each stage: 1,437 images, two epochs
        assert result["units"] == per_batch * batches
    words = results(tmp_path)["plain --lr 0.05 0"]["command"].split()
    assert words[:3] == ["python", "-m", "baselines.plain"]
    plain.main([*words[3:], "--device", "cpu", "--out", str(tmp_path / "again")])
    (first,) = tmp_path.glob("digits-plain-*/model.pt")
    assert same_weights(first, tmp_path / "again")


def test_what_is_there_is_used_only_for_the_same_flags_images_and_attacks(tmp_path, refused):
    own, out = str(tmp_path / "own.npz"), tmp_path / "runs"
    np.savez(own, **arrays())
    words = f"--methods plain --data {own}"
    compare_small(out, words)
    trained = times(out.glob("*/model.pt"))
    again = [*SMALL, *words.split(), "--out", out]
    assert "is of another evaluation" in refused(compare, *again, "--attack", "fgsm")
    (record,) = out.glob("*.json")
    record.rename(tmp_path / "moved")
    compare_small(out, f"{words} --attack fgsm")
    assert times(out.glob("*/model.pt")) == trained
    assert set(results(out)["plain 0"]["correct"]) == {"clean", "fgsm", "worst"}
    (tmp_path / "moved").rename(record)
    with pytest.MonkeyPatch.context() as patch:
        together = compare.METHODS["plain"]._replace(flags="--together")
        patch.setitem(compare.METHODS, "plain", together)
        assert "is of another command (python -m baselines.plain" in refused(compare, *again)
    np.savez(own, **arrays(y_train=(np.arange(40) + 1) % 4))
    assert "is of another data set" in refused(compare, *again)
    record.unlink()
    assert "was trained on other images" in refused(compare, *again)


@pytest.mark.slow
def test_it_resumes_where_it_was_interrupted(tmp_path):
    flags = "--methods plain --attack pgd apgd --images 20".split()
    train_small(tmp_path / "whole", *flags, script=compare)
    stop_training(tmp_path / "cut", *flags, script=compare, epoch=2)
    (checkpoint,) = (tmp_path / "cut").glob("*/model.pt")
    assert not results(tmp_path / "cut") and checkpoints.load(checkpoint)["epoch"] == 2
    train_small(tmp_path / "cut", *flags, script=compare)
    assert "epoch 3/4" in (tmp_path / "cut" / f"{checkpoint.parent.name}.log").read_text()
    cut, whole = (results(tmp_path / name)["plain 0"]["correct"] for name in ("cut", "whole"))
    assert cut == whole


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    sample_loss = train_submodel.sample_loss
    monkeypatch.setattr(train_submodel, "sample_loss", lambda *args: torch.nan * sample_loss(*args))
    with pytest.raises(SystemExit) as stopped:
        compare_small(tmp_path, "--methods soe plain")
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and "became NaN" in error
    assert error.endswith("runs that failed, as said above: 1\n")
    assert list(results(tmp_path)) == ["plain 0"]


def test_models_trained_without_attacks_are_compared_on_clean_images(tmp_path, capsys):
    compare_small(tmp_path, "--eps 0 --methods soe plain")
    assert "| clean | clean less soe's |" in capsys.readouterr().out
    assert all(set(result["correct"]) == {"clean"} for result in results(tmp_path).values())


def test_differences_are_of_the_worst_case_and_from_soe_else_from_the_first_method_named(
    tmp_path, capsys
):
    words = "--methods soe-stage1 plain --attack pgd apgd --epochs 1 --csv"
    compare_small(tmp_path, f"{words} {tmp_path}/runs.csv")
    output = capsys.readouterr().out
    head, _, soe, plain = [row for row in output.split("\n") if row[:1] == "|"]
    assert "worst less soe-stage1's" in head and "| - |" in soe and "±" in plain
    assert "standard deviation over the seeds" in output and "half its 95 % interval" in output
    numbers = pd.read_csv(tmp_path / "runs.csv").set_index("method")
    for method, record in results(tmp_path).items():
        percent = record["table"][record["row"]]["worst"]
        assert numbers["worst"][method.removesuffix(" 0")] == percent
    compare_small(tmp_path, "--methods plain 'more --lr 0.05' --attack fgsm --epochs 2")
    head, _, first, second = [row for row in capsys.readouterr().out.split("\n") if row[:1] == "|"]
    assert "| fgsm | worst | worst less plain's" in head and "| plain |" in first


def test_two_runs_are_compared_image_by_image(tmp_path, capsys, refused):
    """Whatever their methods and seeds; "±" is half the interval over images."""
    files = {
        "a": record_of("soe", {"clean": 90, "pgd": 60, "worst": 50}, seed=1),
        "b": record_of("plain", {"clean": 90, "worst": 40}, seed=2, depth=8),
        "fewer": record_of("plain", {"worst": "01" * 20}),
        "elsewhere": record_of("plain", {"worst": 40}, data_checksum=2),
        "weaker": record_of("plain", {"worst": 40}, eps=0.05),
    }
    for name, record in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    a, b, *others = (tmp_path / f"{name}.json" for name in files)
    compare.main(["--between", str(a), str(b)])
    _, _, clean, worst, _, meaning = capsys.readouterr().out.splitlines()
    assert meaning == compare.MEANING and clean == "| 0.1 | clean | 90.0 | 90.0 | +0.0 ± 0.0 |"
    _, half = intervals.paired_difference([files["a"]["correct"]["worst"]], ["1" * 40 + "0" * 60])
    assert worst == f"| 0.1 | worst | 50.0 | 40.0 | +10.0 ± {half:.1f} |"
    for other in others:
        assert "no attack at one eps, on the same images" in refused(compare, "--between", a, other)
    for name, value in {"steps": 5, "seeds": 4, "rescale": False}.items():
        unequal = {"evaluation": files["b"].get("evaluation", {}) | {name: value}}
        other.write_text(json.dumps(files["b"] | unequal))
        assert "other attacks, steps, queries or seeds" in refused(compare, "--between", a, other)
    for name, message in {"none.json": "no record, none", "*/*soe-depth*": "names several"}.items():
        assert message in refused(compare, "--between", a, name)


def test_recorded_runs_are_compared_on_the_seeds_that_both_have(capsys):
    """As in the project's own table."""
    names = [f"compare/digits-{m}-depth2-n3-eps0.1-*.json" for m in ("plain-together", "soe")]
    compare.main(["--between", *names])
    (worst,) = [row for row in capsys.readouterr().out.splitlines() if "| worst |" in row]
    *_, ensemble, soe, difference = worst.strip("| ").split(" | ")
    page = (records.RESULTS.parent / "results.md").read_text()
    (row,) = [
        row for row in page.splitlines() if row.startswith("| plain-together | 25,740 | 77.6")
    ]
    assert f"| {ensemble} | {difference} |" in row and "±" in soe


@pytest.mark.parametrize("content", ["[]", "5", "", "{}", '{"method": "soe"}'])
def test_a_result_of_another_shape_is_one_line(content, tmp_path, refused):
    (run,) = planned("--methods plain --depth 2 --n 2 --epochs 2")
    path = tmp_path / f"{run.name}.json"
    path.write_text(content)
    for words in (["--methods", "plain", "--out", tmp_path], ["--between", path, path]):
        assert path.name in refused(compare, *SMALL, *words)


# ---------------------------------------------------------------------------------------- the plan


def test_every_run_has_a_name_of_its_own_and_is_planned_once():
    methods = [*compare.METHODS, "soe --sigma 3", "soe --sigma 0.3"]
    names = " ".join(map(shlex.quote, methods * 2))
    runs = planned(f"--methods {names} --eps 0.1 0.2 0.1 --depth 2 8 8 --seeds 3 --seed 5")
    assert len(runs) == len(methods) * 2 * 2 * 3 == len({run.name for run in runs})
    assert len({(run.method, run.command) for run in runs}) == len(runs)  # no two are the same
    assert {run.flags[-1] for run in runs} == {"--seed=5", "--seed=6", "--seed=7"}
    (run,) = planned("--methods 'soe --sigma 3'")
    assert run.method == "soe --sigma 3" and run.flags[:3] == ["--sigma", "3", "--depth=8"]


def test_what_is_recorded_has_its_name_and_command_in_the_plan_and_is_not_done_again(tmp_path):
    words = "--methods plain-together 'gal --optimizer sgd' --depth 2 --eps 0.1 --epochs 30"
    words += " --seeds 3 --out"
    words, stored = [*shlex.split(words), str(tmp_path / "compare")], records.stored()
    args = compare.comparison_parser().parse_args(words)
    for run in compare.plan(args, "digits"):
        assert stored[f"compare/{run.name}.json"]["command"] == run.command
    assert compare.train_and_attack(args, stored) == ([], 0)
    assert not list((tmp_path / "compare").iterdir())


EACH, PLAINLY = 2 * 3 * 4 + 3 * (3 + 9), 2 * 3 * 4 + 6 * 3  # 2 M S + 3 (M + M^2), 2 M S + 6 M
UNITS = {
    "soe": {1: EACH, 2: PLAINLY},
    "soe-stage1": {1: EACH},
    "gal": {1: PLAINLY + 3 * 3},  # the second derivative
    "dverge": {1: PLAINLY, 2: 2 * 3 * 10 + 3 + 2 * 3 * 4 + 3 * 3 + 3 * 3 * 2},
}


@pytest.mark.parametrize("method", compare.METHODS)
def test_units_of_three_members_and_four_steps_of_pgd(method):
    """Counting them changes no random number."""
    before = torch.get_rng_state()
    assert compare.units_of_a_batch(method, 3, 4) == UNITS.get(method, {1: PLAINLY})
    if method != "plain-together":  # which needs an attack
        assert compare.units_of_a_batch(method, 3, 4, eps=0)[1] == (18 if method == "gal" else 9)
    assert torch.equal(torch.get_rng_state(), before)


def test_equal_cost_is_more_epochs_of_a_cheaper_method():
    words = "--methods soe plain-together --epochs 36 --equal-cost"
    assert [run.epochs for run in planned(words)] == [36, 40]  # 87 to 78 units
    assert ["--epochs=40" in run.flags for run in planned(words)] == [False, True]
    assert [run.epochs for run in planned(f"{words} --eps 0")] == [36, 36]


# ------------------------------------------------------------------------------- what it cannot do


@pytest.mark.parametrize(
    "words, message",
    [
        ("--methods soe magic", "unknown method 'magic'"),
        *((f"--methods 'plain {flag}=1'", f"{flag}=1 in 'plain") for flag in compare.SHARED),
        ("--methods soe 'plain --togther'", "arguments: --togther"),
        ("--methods soe 'more --lr -1'", "--lr: -1 is out of range"),
        ("--methods soe 'soe --sigma 10'", "'soe' and 'soe --sigma 10' are the same"),
        ("--attack magic", "invalid choice: 'magic'"),
        ("--shard 3/2", "invalid part value: '3/2'"),
        ("--eps 2", "out of range"),
        ("--seeds 0", "at least 1"),
        ("--depth 3", "depth is 3"),
        ("--data none.npz", "none.npz"),
        ("--methods soe plain --attack pgd adaptive", "plain would be judged by weaker"),
        ("--methods soe --n 1 --attack adaptive", "soe would be judged by weaker"),
        ("--csv runs.txt", "ending in .csv"),
        ("--device magic", "no device 'magic'"),
    ],
)
def test_what_it_cannot_do_is_one_line_before_anything_trains(words, message, tmp_path, refused):
    words = ["--methods", "plain", *shlex.split(words), "--out", tmp_path / "runs"]
    assert message in refused(compare, *SMALL, *words)
    assert not (tmp_path / "runs").exists()
