"""Statements about the paper's tables and claims that must hold."""

import json
import re
from argparse import Namespace

import numpy as np
import pytest

from experiments import claims, compare, paper, tables
from experiments.claims import CLAIMS, LARGE, MIDDLE, SMALL, Evidence, Place, verdict


def evidence(*pairs):
    return [Evidence(f"place {i}", *pair, "a.json", seeds=3) for i, pair in enumerate(pairs)]


def run(method, correct, n=3, depth=2, eps=0.1, seed=0, data="digits", **more):
    """What a file of compare says: of 100 images so many are correct, from the first one on."""
    bits = {column: "1" * count + "0" * (100 - count) for column, count in correct.items()}
    settings = {"data_name": data, "depth": depth, "eps": eps, "n": n, "seed": seed}
    settings["epochs"] = claims.EPOCHS.get(data, 30)
    return {"method": method, "settings": settings, "correct": bits, "file": "a.json", **more}


def claim(start):
    (found,) = [claim for claim in CLAIMS if claim.text.startswith(start)]
    return found


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
    assert verdict(kind, evidence(*differences)) == said


def test_a_claim_is_judged_on_the_same_images_and_seeds_alone():
    found = claim("Under Square SoE keeps more than MoRE").find
    ours = [run("soe", {"square": 60}, seed=seed) for seed in (0, 1)]
    theirs = [run("more", {"square": 50}, seed=seed) for seed in (1, 2)]
    ((where, difference, half, _, seeds),) = found([*ours, *theirs])
    assert where == "digits, ResNet2, eps 0.1" and difference == pytest.approx(10)
    assert 0 < half < 10 and seeds == 1
    assert not found([ours[0], theirs[0]])  # no seed that both have
    assert not found([ours[1], run("more", {"square": 50}, seed=1, depth=8)])
    assert not found([ours[1], run("more", {"square": 50}, seed=1, data="digits-val")])


PHOTOS = {"data_name": "cifar10-jpeg-10000", "epochs": 12}


def test_the_stronger_adp_is_the_rival():
    weak, strong = run("adp", {"square": 10}), run("adp --optimizer sgd", {"square": 70})
    find = claim("Under Square SoE keeps more than ADP").find
    for rivals, difference in (([weak], 50), ([weak, strong], -10)):
        ((_, found, *_),) = find([run("soe", {"square": 60}), *rivals])
        assert found == pytest.approx(difference)
    photos = [r | {"settings": r["settings"] | PHOTOS} for r in (weak, strong)]
    ((_, found, *_),) = find(
        [run("soe", {"square": 60}) | {"settings": photos[0]["settings"]}, *photos]
    )
    assert found == pytest.approx(50)  # chosen on digits, and there alone


def test_costs_are_those_of_three_experts():
    units = {("soe", 3): 90, ("gal", 3): 90, ("adp", 3): 80, ("more", 3): 60, ("soe", 5): 200}
    found = [run(name, {}, M) | {"units": of} for (name, M), of in units.items()]
    costs = claim("SoE's training costs more").find(found)
    assert [e.difference for e in costs] == pytest.approx([0, 12.5, 50])  # gal, adp, more
    assert verdict("more", costs) == "holds at 2, fails at 1, of 3"  # what is counted is certain


def test_claims_about_depth_are_those_of_table_4():
    clean = {(2, "soe", 3): 60, (2, "plain", 1): 50, (20, "soe", 3): 81, (20, "plain", 1): 80}
    found = [run(m, {"clean": c}, n, depth, eps=0) for (depth, m, n), c in clean.items()]
    told = {c.text: c.find(found) for c in CLAIMS if c.place == "4.4, Table 4"}
    assert [[round(e.difference) for e in of] for of in told.values()] == [[10], [1], [9]]
    row = tables.table4([r | {"table": {"vote": {}}, "row": "vote"} for r in found])[1]
    assert row[0] == "digits, ResNet2, without attacks" and row[3].startswith("+10.0 ±")


def test_the_experts_of_table_2_are_compared_from_the_best_to_the_worst():
    rows = {"expert 1": 40, "expert 2": 70, "expert 3": 60, "collaboration": 80}
    clean = {row: "1" * count + "0" * (100 - count) for row, count in rows.items()}
    found = [run("soe", {}, clean=clean)]
    for start, difference in (("All experts are", 30), ("Together they", 10)):
        assert claim(start).find(found)[0].difference == pytest.approx(difference)


def test_who_is_best_and_worst_is_not_chosen_by_the_images_that_compare_them():
    """Three experts that are equally good differ on the images that choose them, by chance."""
    rng, differences = np.random.default_rng(0), []
    for _ in range(50):
        bits = rng.random((3, 400)) < 0.4
        clean = {f"expert {j}": "".join(map(str, row.astype(int))) for j, row in enumerate(bits)}
        chosen, share = claims.best_and_worst({"clean": clean}), bits.mean(1)
        differences.append((np.subtract(*chosen).mean(), share.max() - share.min()))
    other_images, same_images = 100 * np.mean(differences, 0)
    assert abs(other_images) < 1.5 and same_images > 3


def test_small_middle_and_large_eps():
    digits, photos = [("digits", 2), ("digits", 8)], [("cifar10", 20), ("cifar10-jpeg-10000", 8)]
    for name, depth in digits:
        sizes = [Place(name, depth, eps).size for eps in paper.SCALES["digits"].eps[depth]]
        assert sizes == [SMALL, MIDDLE, LARGE]
    for name, depth in photos:
        sizes = [Place(name, depth, eps).size for eps in paper.SCALES["full"].eps[20]]
        assert sizes == [SMALL, MIDDLE, MIDDLE, *[LARGE] * 4]


def test_what_evaluate_measures_elsewhere_is_kept_apart():
    """Square of 5,000 queries is not compare's of 1,000, nor is a vote the collaboration."""
    of_eps = {"correct": {"clean": "11", "square": "10", "transfer3": "11", "worst": "10"}}
    settings = {"method": "soe", "eps": 0.1, "seed": 0}
    told = {"model": settings, "row": "vote", "file": "a.json", "eps": {"0.1": of_eps, "0.2": {}}}
    command = {"queries": 5000, "part": "vote", "steps": 20}
    (found,) = claims.runs_of(told | {"command": command})
    assert found["method"] == "soe's vote"
    assert found["correct"] == {"transfer3": "11", "square5000": "10"}
    (found,) = claims.runs_of(told | {"command": command | {"queries": 1000}})
    assert found["correct"] == of_eps["correct"]
    (found,) = claims.runs_of(told | {"command": command | {"queries": 1000, "steps": 100}})
    assert "worst" not in found["correct"]
    whole = {"queries": 1000, "part": None, "steps": 20}
    (found,) = claims.runs_of(told | {"command": whole})
    assert (found["method"], found["correct"]) == ("soe", {"transfer3": "11"})
    (found,) = claims.runs_of(told | {"command": whole | {"temperature": 0.3}})
    assert (found["method"], found["correct"]) == ("soe at T = 0.3", of_eps["correct"])
    other = told | {"model": settings | {"sigma": 3.0}, "command": command}
    assert claims.runs_of(other) == []  # SoE trained so is another method


def test_experts_are_compared_by_who_answers():
    methods = {"soe": (50, 10), "soe's vote": (70, 30), "soe at T = 3": (60, 20), "gal": (1, 1)}
    found = [run(name, {"clean": c, "worst": w}) for name, (c, w) in methods.items()]
    _, argmax, soft, vote = tables.softened(found)
    assert argmax[1:] == ["the most confident", "50.0", "10.0", "-", "-"]
    assert soft[1] == "at T = 3" and soft[4].startswith("+10.0 ±")
    assert vote[1:4] == ["vote", "70.0", "30.0"] and vote[5].startswith("+20.0 ±")


def test_every_number_of_the_paper_has_its_place_and_every_claim_too():
    for name, of in tables.PAPER.items():
        assert name.title() in of["place"] and of["what"]
    assert {len(values) for values in list(tables.PAPER["table 3"].values())[2:]} == {7}
    places = " ".join(claim.place for claim in CLAIMS)
    assert len(CLAIMS) >= 12 and len({claim.text for claim in CLAIMS}) == len(CLAIMS)
    for number in range(1, 5):
        assert f"Table {number}" in places and re.search(rf"Figures? .*{number}", places)


# ---------------------------------------------------------------------------------- the command


@pytest.fixture
def tiny(monkeypatch):
    """Two epochs of small networks, on 20 images."""
    scale = paper.Scale("digits", "compare", 2, 20, {2: [0.1]}, [2], 1)
    monkeypatch.setitem(paper.SCALES, "digits", scale)
    monkeypatch.setitem(claims.EPOCHS, "digits", 2)
    return scale


def paper_at(folder, *words):
    flags = ["--out", str(folder / "runs"), "--results", str(folder / "results")]
    paper.main([*words, *flags, "--device", "cpu"])


def test_the_dry_run_says_what_is_missing_and_writes_nothing(tiny, tmp_path, capsys):
    paper_at(tmp_path, "all", "--dry-run")
    *runs, total = capsys.readouterr().out.splitlines()
    names = [line.split(":")[0].split()[-1] for line in runs]
    assert len(set(names)) == len(names) > 20 and "in all, on cpu" in total
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_table_is_trained_once_and_printed_with_its_claims(tiny, tmp_path, capsys):
    paper_at(tmp_path, "table4")
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/compare/*.json")}
    assert len(files) == 3 and "| digits, ResNet2, without attacks |" in capsys.readouterr().out
    paper_at(tmp_path, "table4")
    out = capsys.readouterr().out
    assert files == {path: path.stat().st_mtime_ns for path in files}
    assert "- Without attacks SoE is better than one network at depth 2 (4.4, Table 4): " in out
    paper_at(tmp_path, "table4", "--dry-run")
    assert capsys.readouterr().out.count("there  digits-") == 3


def test_two_shards_do_every_run_once(tiny):
    args = {"data": None, "scale": "digits", "out": "o", "results": "r", "device": None}
    for name in ("table3", "figure3"):
        shards = [paper.jobs(name, tiny, Namespace(**args, shard=(i, 2))) for i in (1, 2)]
        runs = [run for jobs in shards for job in jobs for run in compare.share(job, "digits")]
        whole = paper.jobs(name, tiny, Namespace(**args, shard=(1, 1)))
        assert sorted(runs) == sorted(run for job in whole for run in compare.plan(job, "digits"))


@pytest.mark.slow
def test_images_of_other_networks_are_made_once_for_an_eps(tiny, tmp_path, monkeypatch):
    made, attacked = [], []
    monkeypatch.setitem(paper.SCALES, "digits", tiny._replace(images=1000))

    def make(words):
        assert int(words[words.index("--images") + 1]) == 360  # there are no more
        made.append(words)
        open(words[-1], "w").close()

    def attack(words):
        attacked.append(words[0])
        with open(words[-1], "w") as file:
            json.dump({}, file)

    monkeypatch.setattr(paper.transfer_set, "main", make)
    monkeypatch.setattr(paper.evaluate, "main", attack)
    monkeypatch.setattr(paper, "show", lambda *_: None)
    for _ in range(2):
        paper_at(tmp_path, "figure2")
    assert len(made) == 1 and len(attacked) == 2 == len(set(attacked))


@pytest.mark.parametrize(
    "words, message",
    [
        (["table5"], "invalid choice: 'table5'"),
        (["table4", "--scale", "photos"], "cifar10-jpeg-10000.npz"),
        (["table4", "--shard", "3/2"], "--shard"),
    ],
)
def test_what_it_cannot_do_is_one_line(words, message, tmp_path, refused):
    flags = ["--out", tmp_path / "runs", "--results", tmp_path / "results", "--device", "cpu"]
    assert message in refused(paper, *words, *flags)
