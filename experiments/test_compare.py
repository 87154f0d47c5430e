"""Statements about the comparison that must hold."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

import data
import models
import train_submodel
from baselines import adp, dverge, gal, more, plain
from experiments import compare
from experiments.fixtures import arrays
from support import files
from train_collab import stage2_loss
from train_submodel import stage1_loss

SMALL = "--depth 2 --n 2 --epochs 2 --eps 0.1 --attack pgd --steps 2 --images 20".split()
LOSSES = {  # method: its model, where its options are, its losses stage by stage
    "soe": ("collaboration", None, [stage1_loss, stage2_loss]),
    "soe-stage1": ("collaboration", None, [stage1_loss]),
    "plain": ("ensemble", plain, [plain.plain_loss]),
    "plain-together": ("ensemble", plain, [plain.together_loss]),
    "adp": ("ensemble", adp, [adp.adp_loss]),
    "gal": ("ensemble", gal, [gal.gal_loss]),
    "dverge": ("ensemble", dverge, [plain.plain_loss, dverge.DvergeLoss()]),
    "more": ("mixture", more, [more.more_loss]),
}


def compare_small(out, *flags):
    compare.main([*SMALL, "--device", "cpu", "--out", str(out), *flags])


def tables(out, name="compare.json"):
    return json.loads((out / name).read_text())["tables"]


def planned(**changed):
    """`plan` of two methods at one depth and eps, {method: flags}."""
    asked = {"depth": [8], "eps": [0.1], "methods": ["soe", "plain-together"], "seeds": 1}
    asked |= {
        "n": 3,
        "seed": 0,
        "epochs": 36,
        "equal_passes": False,
        "data": "digits",
        "out": "out",
    }
    return compare.plan(Namespace(**asked | changed), "digits")


# ----------------------------------------------------------------------------------- what it does


def test_two_shards_and_then_all_of_it_train_and_attack_nothing_twice(tmp_path, capsys):
    flags = ["--methods", "soe", "adp", "adp, SGD", "--attack", "pgd", "square", "--queries", "5"]
    compare_small(tmp_path, *flags, "--shard", "1/2")
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    trained = {path.parent.name.split("-depth")[0] for path in first}
    assert trained == {"digits-soe", "digits-adp-SGD"}
    compare_small(tmp_path, *flags, "--shard", "2/2")
    assert {path: path.stat().st_mtime_ns for path in first} == first
    every = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    compare_small(tmp_path, *flags)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")} == every
    assert tables(tmp_path, "compare-2.json") == tables(tmp_path, "compare-3.json")
    (part,), (whole,) = tables(tmp_path).values(), tables(tmp_path, "compare-2.json").values()
    assert list(part) == ["soe", "adp, SGD"] and list(whole) == ["soe", "adp", "adp, SGD"]
    assert part["soe"] == whole["soe"]
    assert Image.open(tmp_path / "compare-2.png").width > 400
    said = capsys.readouterr().out
    assert "±" not in said and "stage 1, epoch" not in said
    for log in tmp_path.glob("*.log"):
        assert "stage 1, epoch 1/" in log.read_text() and log.with_suffix("").is_dir()


def test_a_table_says_what_was_found_about_each_model_attacked_itself(tmp_path, capsys):
    compare_small(tmp_path, "--methods", "soe", "plain", "adp, SGD", "--attack", "fgsm", "pgd")
    ((title, table),) = tables(tmp_path).items()
    assert title == "digits, 2 x ResNet2, eps 0.1"
    for method, row in (("soe", "collaboration"), ("plain", "vote"), ("adp, SGD", "vote")):
        folder = tmp_path / f"digits-{method.replace(', ', '-')}-depth2-n2-eps0.1-epochs2-seed0"
        (result,) = json.loads((folder / "compared.json").read_text()).values()
        cells, experts = table[method], [result["table"][f"expert {j}"] for j in (1, 2)]
        for column in ("clean", "fgsm", "pgd", "worst"):
            assert cells[column] == [result["table"][row][column]]
        assert result["table"][row]["own"] == result["table"][row]["fgsm"]
        assert cells["alone, clean"] == [(experts[0]["clean"] + experts[1]["clean"]) / 2]
        assert cells["any, clean"] == [result["table"]["any"]["clean"]]
        per_batch = sum(compare.passes_of_a_batch(method, 2, 10).values())
        batches = 11 if method == "soe" else 22  # of each stage: 1,437 images, two epochs
        assert cells["passes"] == [per_batch * batches]
        assert cells["seeds"] == [1] and cells["epochs"] == [2]
        checkpoint = files.load_checkpoint(folder)["settings"]
        assert (checkpoint["optimizer"], checkpoint["lr"]) == ("sgd", 0.1)
        assert ("answering" in cells) == (method == "soe")
    answers = torch.tensor(result_of_soe(tmp_path)["specialisation"]["clean"]["answers"])
    assert table["soe"]["class share"] == pytest.approx([answers.max(0).values.mean().item()])
    said = capsys.readouterr().out
    assert title in said and said.count("answering") == 1
    assert f"{table['plain']['pgd'][0]:.1f}" in said


def result_of_soe(out):
    (path,) = out.glob("digits-soe-*/compared.json")
    (result,) = json.loads(path.read_text()).values()
    return result


def test_another_evaluation_is_made_of_the_same_models(tmp_path):
    compare_small(tmp_path, "--methods", "plain")
    (model,) = tmp_path.glob("*/model.pt")
    trained = model.stat().st_mtime_ns
    compare_small(tmp_path, "--methods", "plain", "--attack", "fgsm")
    assert model.stat().st_mtime_ns == trained
    kept = json.loads((model.parent / "compared.json").read_text())
    assert [list(result["table"]["vote"]) for result in kept.values()] == [
        ["clean", "pgd", "own"],
        ["clean", "fgsm", "own"],
    ]


def test_other_images_under_the_same_name_are_noticed(tmp_path, refused):
    own, out = str(tmp_path / "own.npz"), tmp_path / "runs"
    np.savez(own, **arrays())
    compare_small(out, "--methods", "plain", "--data", own)
    np.savez(own, **arrays(y_train=(np.arange(40) + 1) % 4))
    error = refused(compare, *SMALL, "--methods", "plain", "--data", own, "--out", out)
    assert "was trained on other images" in error


def test_it_resumes_where_it_was_interrupted(tmp_path, monkeypatch):
    flags = ["--methods", "plain", "--seeds", "2", "--epochs", "4"]
    compare_small(tmp_path / "whole", *flags)
    save = files.save_checkpoint

    def stop(path, checkpoint):
        save(path, checkpoint)
        if checkpoint["epoch"] == 2 and checkpoint["settings"]["seed"] == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(files, "save_checkpoint", stop)
        compare_small(tmp_path / "cut", *flags)
    assert stopped.value.code == 130 and not (tmp_path / "cut" / "compare.json").exists()
    (second,) = (tmp_path / "cut").glob("*-seed1/model.pt")
    assert files.load_checkpoint(second)["epoch"] == 2
    compare_small(tmp_path / "cut", *flags)
    assert "epoch 3/4" in (tmp_path / "cut" / f"{second.parent.name}.log").read_text()
    assert tables(tmp_path / "cut") == tables(tmp_path / "whole")
    (table,) = tables(tmp_path / "cut").values()
    assert table["plain"]["seeds"] == [2] and len(table["plain"]["pgd"]) == 2


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    sample_loss = train_submodel.sample_loss
    monkeypatch.setattr(train_submodel, "sample_loss", lambda *args: torch.nan * sample_loss(*args))
    with pytest.raises(SystemExit) as stopped:
        compare_small(tmp_path, "--methods", "soe", "plain")
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and "became NaN" in error
    assert error.endswith("runs that failed, as said above: 1\n")
    (table,) = tables(tmp_path).values()
    assert list(table) == ["plain"]


# ---------------------------------------------------------------------------------------- the plan


def test_every_run_has_a_folder_of_its_own_and_is_planned_once():
    twice = {"methods": list(compare.METHODS) * 2, "eps": [0.1, 0.2, 0.1], "depth": [2, 8, 8]}
    runs = planned(**twice, seeds=3, seed=5)
    assert len(runs) == len(compare.METHODS) * 2 * 2 * 3
    titles = {title for title, _, _ in runs.values()}
    assert titles == {f"digits, 3 x ResNet{d}, eps {e}" for d in (2, 8) for e in (0.1, 0.2)}
    assert len({str(of) for of in runs.values()}) == len(runs)  # no two are the same
    assert {flags[-1] for _, _, flags in runs.values()} == {"--seed=5", "--seed=6", "--seed=7"}


def forward_passes(loss, model, x, y, settings):
    """How many batches the members saw in all, one that is half of the batch counting a half."""
    seen = []
    for expert in model.experts:
        expert.backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    loss(model, x, y, settings)
    return sum(seen) / len(x)


@pytest.mark.parametrize("method", compare.METHODS)
def test_gradient_passes_are_those_that_a_loss_makes(method):
    """Against the batches that really go through the members, forward."""
    method_alone = method.removesuffix(", SGD")
    kind, module, losses = LOSSES[method_alone]
    parser = module.parser() if module else train_submodel.soe_parser("", "")
    settings = parser.parse_args([])
    small = {"depth": 8, "n": 3, "steps": 4, "alpha": 0.03, "weights": "best", "steps_per_epoch": 4}
    small |= {"distill_steps": 5, "image_shape": [1, 8, 8], "num_classes": 10, "model": kind}
    settings = Namespace(**vars(settings) | small)
    counted = compare.passes_of_a_batch(method, 3, 4, 5)
    assert list(counted) == list(range(1, len(losses) + 1))
    dataset = data.load("digits")
    x, y = dataset.x_train[:16].float() / 255, dataset.y_train[:16]
    for stage, loss in enumerate(losses, 1):
        forward = forward_passes(loss, models.build(vars(settings)), x, y, settings)
        # GAL's second derivative needs no forward pass; DVERGE's target no backward one.
        extra = {"gal": 3, "dverge": -1.5 if stage == 2 else 0}.get(method_alone, 0)
        assert counted[stage] == forward + extra


def test_equal_passes_are_more_epochs_of_a_cheaper_method():
    assert compare.epochs_at_equal_passes("plain-together", "soe", 36, 3, 10) == 39
    assert compare.epochs_at_equal_passes("soe", "soe", 36, 3, 10) == 36
    flags = [flags for _, _, flags in planned(equal_passes=True).values()]
    assert ["--epochs=36" in flags[0], "--epochs=39" in flags[1]] == [True, True]


def test_a_summary_is_mean_and_deviation_of_what_there_is():
    lines = [{"clean": 50.0, "answering": None, "epochs": 2}, {"clean": 54.0, "answering": 3.0}]
    assert compare.summarise([lines[0]]) == {
        "seeds": [1],
        "clean": [50.0],
        "answering": [],
        "epochs": [2],
    }
    lines[1]["epochs"] = 2
    summary = compare.summarise(lines)
    assert summary["clean"] == pytest.approx([52, 8**0.5])
    assert summary["answering"] == [3.0] and summary["epochs"] == [2]


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--methods soe magic", "invalid choice: 'magic'"),
        ("--attack magic", "invalid choice: 'magic'"),
        ("--shard 3/2", "invalid shard value: '3/2'"),
        ("--eps 0", "out of range"),
        ("--seeds 0", "at least 1"),
        ("--depth 3", "depth is 3"),
        ("--data none.npz", "no file none.npz"),
        ("--device magic", "no device 'magic'"),
    ],
)
def test_what_it_cannot_do_is_one_line(flags, message, tmp_path, refused):
    small = [*SMALL, "--methods", "plain"]
    assert message in refused(compare, *small, *flags.split(), "--out", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_it_is_not_for_torchrun(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--shard" in refused(compare, *SMALL, "--methods", "plain", "--out", tmp_path / "runs")
