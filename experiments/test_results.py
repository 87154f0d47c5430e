"""Statements about what is reported that must hold: no number without its file."""

import io
import json
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

import data
from experiments import figures, intervals, records, results, scaling, subset
from experiments.fixtures import arrays, record_of
from support import files
from train_submodel import SoESettings


@pytest.mark.parametrize("path", results.TEXTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_tables_of_the_texts_are_those_of_the_json_files(path):
    """If this fails: python -m experiments.results"""
    assert results.written(path.read_text()) == path.read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in the place of results/."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    return tmp_path


def test_a_table_is_made_anew_between_its_marks_and_nothing_else_is_touched(folder, monkeypatch):
    names = lambda runs: " ".join(record["named"] for record in runs["record"])  # noqa: E731
    monkeypatch.setitem(results.MAKERS, "names", names)
    for name in ("b", "a"):
        (folder / f"{name}.json").write_text(json.dumps({"named": name}))
    text = "before\n<!-- names: *.json -->\nold\n<!-- end -->\nafter\n"
    new = text.replace("old", "\na b\n")
    assert results.written(text) == new == results.written(new)
    with pytest.raises(ValueError, match="no record none.json"):
        results.written(text.replace("*.json", "none.json"))


def test_a_file_that_tells_of_no_run_is_refused(tmp_path):
    for content in ('{"method": "soe"}', "[1]", "5", "", '{"eps": {"0.1": {}}}'):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(files.FileError, match="a.json"):
            records.read(tmp_path / "a.json")


LIES = [None, "", "3", "x", -1, 0, 1.5, math.nan, 10**12, [], [1], {}, {"x": 1}, True]


def test_a_result_with_a_lie_in_it_is_refused_in_one_line_or_makes_a_table(tmp_path):
    """Of a run, or of a model attacked at two eps: a value replaced by another, or left out."""
    rng, path, refused = random.Random(0), tmp_path / "lie.json", 0
    run = record_of("soe", {"clean": 90, "pgd": 40, "worst": 40})
    model = {"model": run["settings"] | {"method": "soe"}, "command": {"part": None}}
    of_eps = {key: run[key] for key in ("table", "correct", "specialisation", "doubts")}
    for case in range(500):
        content = json.loads(json.dumps(rng.choice([run, model | {"eps": {"0.1": of_eps}}])))
        part = content
        while True:
            key = rng.choice(list(part))
            if not (isinstance(part[key], dict) and part[key] and rng.random() < 0.7):
                break
            part = part[key]
        part[key] = rng.choice(LIES)
        if rng.random() < 0.2:
            del part[key]
        path.write_text(json.dumps(content))
        try:
            runs = records.frame(records.read(path))
            if "method" in content:
                ((_, of_title),) = records.by_title(runs)
                results.comparison(of_title)
        except ValueError as error:
            assert "\n" not in str(error), case
            refused += 1
    assert refused > 50


def test_records_keep_what_a_file_says_to_the_last_bit(folder, tmp_path_factory):
    """A run of compare, and a model that evaluate attacked at two eps."""
    new = tmp_path_factory.mktemp("new")
    run = record_of("soe", {"clean": "0110" * 5, "worst": "0" * 20})
    of_eps = {key: run[key] for key in ("table", "correct", "specialisation", "doubts")}
    model = {"command": {"part": None}, "model": run["settings"] | {"method": "soe"}}
    results = {"0.1": of_eps, "0.2": of_eps | {"doubts": ["?"]}}
    (new / "run.json").write_text(json.dumps(run))
    (new / "attacked.json").write_text(json.dumps(model | {"eps": results}))
    assert records.append(sorted(new.iterdir()), "set") == 3
    *of_model, stored = records.matching("set/*.json")
    assert stored == run | {"name": "set/run.json", "file": "results/runs.jsonl#L1"}
    for number, (record, (eps, result)) in enumerate(zip(of_model, results.items()), 1):
        where = {"name": "set/attacked.json", "file": f"results/attacks.jsonl#L{number}"}
        assert record == model | {"eps": eps} | result | where
    for name, twice in {"set": 1, "set-2": 2}.items():  # stored already; twice in one call
        with pytest.raises(ValueError, match=f"{name}/run.json is stored already"):
            records.append([new / "run.json"] * twice, name)


def test_records_are_found_by_name_as_files_are(folder, tmp_path_factory):
    new = tmp_path_factory.mktemp("runs")
    for name in ("b-1", "a-1", "a-2"):
        (new / f"{name}.json").write_text(json.dumps(record_of(name, {"worst": 1})))
    records.append([new / "b-1.json", new / "a-1.json"], "set")
    records.append([new / "a-2.json"], "set-2")
    (folder / "alone.json").write_text("{}")
    for pattern, methods in {
        "set/*.json": ["a-1", "b-1"],
        "*/a-*.json": ["a-1", "a-2"],
        "*.json": [None],
        "none/*.json": [],
    }.items():
        assert [record.get("method") for record in records.matching(pattern)] == methods


def test_the_pictures_are_drawn_from_the_same_files():
    for name, picture in figures.drawn().items():
        assert Image.open(io.BytesIO(picture)).width > 400
        assert (results.HERE / "figures" / name).is_file()


def test_student_s_t():
    for df, t in ((1, 12.706), (2, 4.303), (10, 2.228), (1e5, 1.960)):
        assert intervals.t_quantile(df) == pytest.approx(t, abs=1e-3)


def test_a_paired_difference_knows_that_both_saw_the_same_images():
    """80 against 79 of 100: on the same 79 images there is hardly a doubt, on others there is."""
    ours, same, other = "1" * 80 + "0" * 20, "1" * 79 + "0" * 21, "0" * 21 + "1" * 79
    (a, near), (b, far) = (intervals.paired_difference([ours], [text]) for text in (same, other))
    assert a == pytest.approx(1) and b == pytest.approx(1)
    d = np.array([int(x) - int(y) for x, y in zip(ours, other)])
    assert near < 2.1 < 10 < far == pytest.approx(198.4 * d.std(ddof=1) / 10, rel=1e-3)
    assert intervals.paired_difference([ours], [ours]) == (0, 0)


def test_a_paired_difference_counts_the_seeds_too():
    """+10 and -10 points of two seeds on 1,000 images: nobody knows which is better."""
    half, more, fewer = ("1" * n + "0" * (1000 - n) for n in (500, 600, 400))
    difference, spread = intervals.paired_difference([more, fewer], [half, half])
    assert difference == 0 and spread > 100
    _, agreed = intervals.paired_difference([more, more], [half, half])
    assert agreed < 3


def rows(table):
    return [line[2:-2].split(" | ") for line in table.splitlines() if "---" not in line]


def test_a_comparison_shows_means_deviations_and_paired_differences():
    all_, half = "1" * 8, "11110000"
    runs = [
        record_of("soe", {"clean": all_, "pgd": pgd, "adaptive": half, "worst": half}, seed=seed)
        for seed, pgd in enumerate((all_, half))
    ]
    rival, nobody = {"clean": half, "pgd": half, "worst": half}, {"specialisation": {}}
    runs += [record_of("plain", rival, seed=seed, **nobody) for seed in (0, 1)]
    ((title, of_title),) = records.by_title(records.frame(reversed(runs)))
    assert title == "digits, 3 x ResNet2, eps 0.1"
    head, soe, plain = rows(results.comparison(of_title))
    deviation = f"75.0 ± {50 / math.sqrt(2):.1f}"
    assert soe[3] == deviation and soe[-3:] == ["-", "10.0 ± 0.0", "90.0 ± 0.0"]
    assert head[2:-2] == ["clean", "PGD-20", "adaptive", "worst", "worst less soe's"]
    assert plain[-5:-2] == ["-", "50.0 ± 0.0", "+0.0 ± 0.0"]
    _, of_soe = rows(results.routing(of_title))  # nobody answers alone in the other
    assert of_soe == ["soe", "4.0 ± 0.0", "50.0 ± 0.0", "25.0 ± 0.0", "75.0 ± 0.0", "75.0 ± 0.0"]
    assert rows(results.decided(of_title))[1] == ["soe", "4 (0)", "8 (4)"]


def test_a_model_is_named_by_the_settings_that_differ_from_today_s_defaults():
    soe = vars(SoESettings()) | {"method": "soe"}
    assert records.trained_as(soe) == "soe"
    assert records.trained_as(soe | {"weights": "confidence", "sigma": 1}) == (
        "soe --weights confidence"  # sigma counts for nothing then
    )
    older = {"sigma": 1, "lambda_": 0.5, "confidence": "ehead"}
    assert records.trained_as(soe | older) == "soe --sigma 1 --confidence ehead --lambda 0.5"
    assert records.trained_as({"method": "plain", "together": True}) == "plain-together"


def test_a_run_that_two_records_tell_of_is_refused():
    with pytest.raises(ValueError, match="a.json measured what another record did"):
        records.measurements(records.frame([record_of("soe", {"worst": 1})] * 2))


def test_the_folds_of_a_data_set_are_one_table():
    folds = [{"data_name": f"d-fold{i}", "seed": i} for i in (1, 2)]
    runs = records.frame(record_of("soe", {"clean": 2, "worst": 1}, **fold) for fold in folds)
    ((title, of_title),) = records.by_title(runs)
    assert title.startswith("d-folds, ") and of_title["seed"].tolist() == [1, 2]


def test_stronger_attacks_stand_beside_the_weaker_ones_on_the_same_images(folder):
    (folder / "photos").mkdir()
    attacked = []
    for method, before, now in (("plain", "1100", "10001111"), ("soft", "1110", "11101111")):
        for seed in (0, 1):
            run, name = record_of(method, {"worst": before}, seed=seed), f"{method}-{seed}.json"
            (folder / "photos" / name).write_text(json.dumps(run))
            model = run.pop("settings") | {"method": run.pop("method")}
            evaluated = {"correct": {"clean": "1" * 8, "worst": now}, "command": {"part": None}}
            attacked.append(run | evaluated | {"name": name, "model": model, "eps": "0.1"})
    columns, first, second, difference = rows(results.stronger(records.frame(attacked)))
    shown = ["worst, on these", "by the weaker attacks", "on the others"]
    assert columns == ["", "clean", "worst", *shown] and first[0] == "plain"
    assert second == ["soft", *(f"{v:.1f} ± 0.0" for v in (100, 87.5, 75, 75, 100))]
    assert [cell.split()[0] for cell in difference[2:]] == ["+25.0", "+50.0", "+25.0", "+0.0"]


@pytest.fixture
def part_of(tmp_path):
    """part_of(*flags): numbers of the training and of the test images that `subset` takes of 80
    images, the first 40 of which are for training."""
    content = arrays()
    content["x_train"][:, 0, 0], content["x_test"][:, 0, 0] = np.arange(80).reshape(2, 40)
    np.savez(tmp_path / "mine.npz", **content)

    def part(*flags):
        out = str(tmp_path / f"{'_'.join(flags).replace('/', '_')}.npz")
        subset.main(["--data", str(tmp_path / "mine.npz"), "--out", out, *flags])
        images = data.load(out)
        train, test = images.x_train[:, 0, 0, 0], images.x_test[:, 0, 0, 0]
        assert torch.equal(images.y_test, test % 4)  # their labels
        return train.tolist(), test.tolist()

    return part


def test_a_subset_is_fixed_and_its_validation_images_are_no_test_images(part_of):
    order = np.random.default_rng(0).permutation(40).tolist()
    assert part_of("--train", "30", "--validation", "10") == (order[:30], order[30:])
    assert part_of("--train", "30") == (order[:30], [*range(40, 80)])


def test_over_all_folds_each_image_is_a_test_image_once(part_of):
    folds = [part_of("--fold", f"{i}/3") for i in (1, 2, 3)]
    assert all(sorted(train + test) == [*range(80)] for train, test in folds)
    tested = [number for _, test in folds for number in test]
    assert sorted(tested) == [*range(80)] != tested


def test_a_subset_that_cannot_be_is_refused(part_of, tmp_path, refused):
    flags = ["--data", tmp_path / "mine.npz", "--out", tmp_path / "new.npz"]
    assert "too few" in refused(subset, *flags, "--train", "41")
    assert "2 to 80 parts" in refused(subset, *flags, "--fold", "1/1")
    assert "goes with --train" in refused(subset, *flags, "--fold", "1/2", "--validation", "3")


@pytest.mark.slow
def test_scaling_measures_and_predicts_every_point(tmp_path, monkeypatch, refused):
    small = {"n": 1, "batch_size": 4, "depth": 8, "steps": 1}
    monkeypatch.setitem(scaling.BASE, "cpu", small)
    monkeypatch.setattr(scaling, "AXES", {"n": ("M, experts", (1, 3))})
    flags = ["--repeats", "1", "--device", "cpu", "--out", str(tmp_path / "scaling.png")]
    scaling.main(flags)
    table = json.loads((tmp_path / "scaling.json").read_text())["tables"]["M, experts"]
    assert list(table) == ["1", "3"] and (tmp_path / "scaling.png").stat().st_size
    one, three = table["1"], table["3"]
    assert one["predicted 1"] == pytest.approx(one["stage 1"])  # the base, to which all is scaled
    assert three["predicted 1"] / one["predicted 1"] == pytest.approx(42 / 8)
    # 24 units, less the backward pass of one expert: the attack asks 3 and differentiates 1
    assert three["predicted 2"] / one["predicted 2"] == pytest.approx(23 / 8)
    assert "scaling.png" in refused(scaling, *flags)  # the files are there
