"""Statements about the paper's tables and claims that must hold."""

import re
from pathlib import Path

import numpy as np
import pytest

from experiments import claims, paper, records, results
from experiments.claims import Claim, Evidence
from experiments.fixtures import record_of


def run(method, correct, data="digits", **more):
    return record_of(method, correct, data_name=data, epochs=claims.EPOCHS.get(data, 30), **more)


def evidence_of(start, runs):
    """What these runs say of the claim that starts so."""
    judged = claims.judged(records.frame(runs))
    (claim,) = [claim for claim in judged if claim.text.startswith(start)]
    return claim.evidence


# ------------------------------------------------------------------------------------ the verdicts


@pytest.mark.parametrize(
    "kind, differences, said",
    [
        ("more", [(5, 2), (1, 0.5)], "holds"),
        ("more", [(5, 2), (1, 2)], "holds at 1, undecided at 1, of 2"),
        ("more", [(-5, 2), (5, 2), (1, 2)], "holds at 1, fails at 1, undecided at 1, of 3"),
        ("more", [(-5, 2), (-1, 0.5), (1, 2)], "fails at 2, undecided at 1, of 3"),
        ("more", [(-5, 2), (-1, 0.5)], "fails"),
        ("more", [(-1, 2), (1, 2)], "undecided"),
        ("same", [(1, 1), (-2, 1)], "holds"),
        ("same", [(1, 3)], "undecided"),
        ("same", [(-5, 1)], "fails"),
        ("same", [(0, 0)], "holds"),
        ("more", [], "not measured"),
    ],
)
def test_a_verdict_follows_from_the_intervals(kind, differences, said):
    evidence = [Evidence("place", *pair, "a.json", seeds=3) for pair in differences]
    assert Claim(kind, "-", evidence, "").verdict == said


def test_a_claim_is_judged_on_the_same_images_and_seeds_alone():
    start = "Under Square SoE keeps more than MoRE"
    ours = [run("soe", {"square": 60}, seed=seed) for seed in (0, 1)]
    theirs = [run("more", {"square": 50}, seed=seed) for seed in (1, 2)]
    ((where, difference, half, _, seeds),) = evidence_of(start, [*ours, *theirs])
    assert where == "digits, ResNet2, eps 0.1" and difference == pytest.approx(10)
    assert 0 < half < 10 and seeds == 1
    assert not evidence_of(start, [ours[0], theirs[0]])  # no seed that both have
    for elsewhere in ({"depth": 8}, {"data": "digits-val"}):
        assert not evidence_of(start, [ours[1], run("more", {"square": 50}, seed=1, **elsewhere)])


def test_the_stronger_adp_is_the_rival_on_digits_where_it_was_chosen():
    percent = {"soe": 60, "adp": 10, "adp --optimizer sgd": 70}
    for data, difference in (("digits", -10), ("cifar10-jpeg-10000", 50)):
        runs = [run(name, {"square": count}, data=data) for name, count in percent.items()]
        (one,) = evidence_of("Under Square SoE keeps more than ADP", runs)
        assert one.difference == pytest.approx(difference)


def test_costs_are_those_of_three_experts():
    units = {("soe", 3): 90, ("gal", 3): 90, ("adp", 3): 80, ("more", 3): 60, ("soe", 5): 200}
    photos = "cifar10-jpeg-10000"
    runs = [run(name, {"clean": 50}, photos, n=M, units=u) for (name, M), u in units.items()]
    costs = evidence_of("SoE's training costs more", runs)
    assert [e.difference for e in costs] == pytest.approx([0, 12.5, 50])  # gal, adp, more
    assert Claim("more", "-", costs, "").verdict == "holds at 2, fails at 1, of 3"  # no doubt


def test_claims_about_depth_are_those_of_table_4():
    clean = {(2, "soe", 3): 60, (2, "plain", 1): 50, (20, "soe", 3): 81, (20, "plain", 1): 80}
    runs = [run(m, {"clean": c}, n=n, depth=depth, eps=0) for (depth, m, n), c in clean.items()]
    frame = records.frame(runs)
    evidence = [claim.evidence for claim in claims.judged(frame) if claim.place == "4.4, Table 4"]
    assert [round(one.difference) for (one,) in evidence] == [10, 1, 9]
    row = results.table4(frame).splitlines()[2]
    assert row.startswith("| digits, ResNet2, without attacks | 50.0 | 60.0 | +10.0 ±")


def test_the_experts_of_table_2_are_compared_from_the_best_to_the_worst():
    clean = {f"expert {j}": f"{'1' * count:0<100}" for j, count in enumerate((40, 70, 60), 1)}
    runs = [run("soe", {"clean": 80, "square": 50, "worst": 40}, clean=clean)]
    for start, difference in (("All experts are", 30), ("Together they", 10)):
        assert evidence_of(start, runs)[0].difference == pytest.approx(difference)


def test_who_is_best_and_worst_is_not_chosen_by_the_images_that_compare_them():
    """Three experts that are equally good differ on the images that choose them, by chance."""
    rng, differences = np.random.default_rng(0), []
    for _ in range(50):
        bits = rng.random((3, 400)) < 0.4
        clean = {f"expert {j}": "".join(map(str, row.astype(int))) for j, row in enumerate(bits)}
        chosen, share = claims.best_and_worst(clean), bits.mean(1)
        differences.append((np.subtract(*chosen).mean(), share.max() - share.min()))
    other_images, same_images = 100 * np.mean(differences, 0)
    assert abs(other_images) < 1.5 and same_images > 3


@pytest.mark.parametrize(
    "changed, method, columns",
    [
        ({"part": "vote"}, "soe's vote", ["clean", "square", "transfer3", "worst"]),
        ({"part": "vote", "queries": 5000}, "soe's vote", ["square5000", "transfer3"]),
        ({"part": "vote", "steps": 100}, "soe's vote", ["transfer3"]),
        ({}, "soe", ["transfer3"]),
        ({"temperature": 0.3}, "soe at T = 0.3", ["clean", "square", "transfer3", "worst"]),
        ({"sigma": 3.0}, "soe --sigma 3", ["transfer3"]),
    ],
)
def test_what_evaluate_measures_elsewhere_is_kept_apart(changed, method, columns):
    """Square of 5,000 queries is not compare's of 1,000, nor is a vote the collaboration."""
    trained = run("soe", {"clean": 9, "square": 5, "transfer3": 6, "worst": 5})
    command = {"queries": 1000, "part": None, "steps": 20} | changed
    model = trained.pop("settings") | {"method": trained.pop("method")}
    model["sigma"] = changed.get("sigma", 10.0)
    record = trained | {"model": model, "row": "vote", "command": command}
    runs = [record | {"eps": eps} for eps in ("0.1", "0.2")]  # at the eps of training alone
    counted = claims.counted(records.frame(runs))
    assert sorted(counted["column"]) == columns and set(counted["method"]) <= {method}


def test_experts_are_compared_by_who_answers():
    methods = {"soe": (50, 10), "soe's vote": (70, 30), "soe at T = 3": (60, 20), "gal": (1, 1)}
    runs = [run(name, {"clean": c, "worst": w}) for name, (c, w) in methods.items()]
    frame = records.frame(runs)
    frame["method"] = frame["method"].str.replace("soe", f"soe{records.TRAP}")
    _, _, argmax, soft, vote = results.softened(frame).splitlines()
    assert "| the most confident | 50.0 | 10.0 | - | - |" in argmax
    assert "| at T = 3 | 60.0 | 20.0 | +10.0 ±" in soft
    assert "| vote | 70.0 | 30.0 | +20.0 ±" in vote


def test_every_table_and_figure_of_the_paper_has_its_claims():
    judged = claims.judged(records.frame([run("soe", {"clean": 50})]))
    places = " ".join(claim.place for claim in judged)
    assert len(judged) >= 12 and len({claim.text for claim in judged}) == len(judged)
    for number in range(1, 5):
        assert f"Table {number}" in places and re.search(rf"Figures? .*{number}", places)


# ---------------------------------------------------------------------------------- the command


@pytest.fixture
def tiny(monkeypatch):
    """Two epochs of small networks, on 20 images."""
    scale = paper.Scale("digits", "compare", 2, 20, 1, {2: [0.1]}, [2])
    monkeypatch.setitem(paper.SCALES, "digits", scale)
    monkeypatch.setitem(claims.EPOCHS, "digits", 2)
    return scale


def paper_at(folder, *words):
    paper.main([*words, "--again", "--out", str(folder), "--device", "cpu"])


def test_the_dry_run_names_every_run_once_even_in_two_shards_and_writes_nothing(
    tiny, tmp_path, capsys
):
    def named(*words):
        paper_at(tmp_path, *words, "--dry-run")
        *runs, total = capsys.readouterr().out.splitlines()
        assert "units in all" in total
        return [line.split(":")[0].split()[-1] for line in runs]

    assert len(set(named("all"))) == len(named("all")) > 20
    for name in ("table3", "figure3"):
        halves = named(name, "--shard", "1/2") + named(name, "--shard", "2/2")
        assert sorted(halves) == sorted(named(name))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_table_is_trained_once_and_printed_with_its_claims(tiny, tmp_path, capsys):
    paper_at(tmp_path, "table4")
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("compare/*.json")}
    assert len(files) == 3 and "| digits, ResNet2, without attacks |" in capsys.readouterr().out
    paper_at(tmp_path, "table4")
    output = capsys.readouterr().out
    assert files == {path: path.stat().st_mtime_ns for path in files}
    assert "- Without attacks SoE is better than one network at depth 2 (4.4, Table 4): " in output
    paper_at(tmp_path, "table4", "--dry-run")
    assert capsys.readouterr().out.count("there  digits-") == 3


@pytest.mark.slow
def test_images_of_other_networks_are_made_once_for_an_eps(tiny, tmp_path, monkeypatch):
    calls = []

    def write(flags):
        calls.append(flags)
        Path(flags[-1].removeprefix("--out=")).write_text("{}")

    monkeypatch.setattr(paper.transfer_set, "main", write)
    monkeypatch.setattr(paper.evaluate, "main", write)
    monkeypatch.setattr(paper, "show", lambda *_: None)
    for _ in range(2):
        paper_at(tmp_path, "figure2")
    made, *attacked = calls
    assert "--images=20" in made and made[-1].endswith(".npz")
    assert len(attacked) == 2 == len({flags[0] for flags in attacked})


@pytest.mark.parametrize(
    "words, message",
    [
        (["table5"], "invalid choice: 'table5'"),
        (["table4", "--scale", "photos"], "cifar10-jpeg-10000.npz"),
        (["table4", "--shard", "3/2"], "--shard"),
    ],
)
def test_what_it_cannot_do_is_one_line(words, message, tmp_path, refused):
    flags = ["--again", "--out", tmp_path / "runs", "--device", "cpu"]
    assert message in refused(paper, *words, *flags)


def test_a_file_is_no_folder_of_results(tmp_path, refused):
    (tmp_path / "file.json").write_text("{}")
    assert "file.json" in refused(paper, "table1", "--out", tmp_path / "file.json")
