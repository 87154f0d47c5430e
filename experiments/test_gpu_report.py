"""The report for a GPU, at toy size on a CPU: every section runs, and nothing is done twice."""

import json
import shutil
import sys
from support import speed

import pytest
import torch

from experiments import gpu_report
from experiments.fixtures import interrupt


def sections(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All three parts, but for the tests that need a GPU."""
    out = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gpu_report.PARTS[1], "tests", lambda report: {"status": 0})
        for part in ("1", "2", "3"):
            flags = ["--out", str(out), "--data", "digits", "--device", "cpu", "--dry-run"]
            gpu_report.main(["--part", part, *flags])
    return out


def test_every_section_runs_and_writes_its_line(folder):
    for part, of_part in gpu_report.PARTS.items():
        lines = sections(folder / f"part{part}.jsonl")
        assert [line["section"] for line in lines] == [n for n in of_part if n != "benchmark"]
        assert all("found" in line for line in lines)


def test_what_is_done_is_not_done_again(folder, monkeypatch):
    before = (folder / "part1.jsonl").read_text()
    flags = ["--part", "1", "--out", str(folder), "--device", "cpu", "--dry-run"]
    for name in gpu_report.PARTS[1]:
        monkeypatch.setitem(gpu_report.PARTS[1], name, lambda report: 1 / 0)
    gpu_report.main(flags)
    assert (folder / "part1.jsonl").read_text() == before


def test_a_section_that_fails_does_not_stop_the_next_and_is_tried_again(tmp_path, monkeypatch):
    flags = ["--part", "2", "--out", str(tmp_path), "--device", "cpu", "--dry-run"]
    of_part = {"breaks": lambda report: 1 / 0, "exits": sys.exit, "holds": lambda report: {"it": 1}}
    monkeypatch.setitem(gpu_report.PARTS, 2, of_part)
    for times in (1, 2):
        with pytest.raises(SystemExit) as stop:
            gpu_report.main(flags)
        lines = sections(tmp_path / "part2.jsonl")
        assert stop.value.code == 1 and len(lines) == 1 + 2 * times
    assert "ZeroDivisionError" in lines[0]["error"] and "SystemExit" in lines[1]["error"]
    assert lines[2]["found"] == {"it": 1}
    assert [line["section"] for line in lines[3:]] == ["breaks", "exits"]


def test_a_run_that_cannot_start_is_no_result(folder, tmp_path):
    """Nor is one that part 3 finds unfinished: both are tried again."""
    shutil.copy(folder / "part1.jsonl", tmp_path)
    flags = ["--out", str(tmp_path), "--device", "cpu", "--dry-run", "--data", "none.npz"]
    for part in ("2", "3"):
        with pytest.raises(SystemExit) as stop:
            gpu_report.main(["--part", part, *flags])
        lines = sections(tmp_path / f"part{part}.jsonl")
        assert stop.value.code == 1 and all("error" in line for line in lines)
        assert "none.npz" in lines[0]["said"]


def test_a_run_stopped_at_the_limit_is_what_part_3_resumes(folder, tmp_path, monkeypatch):
    shutil.copy(folder / "part1.jsonl", tmp_path)
    flags = ["--out", str(tmp_path), "--device", "cpu", "--dry-run", "--data", "digits"]
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", interrupt)
        gpu_report.main(["--part", "2", *flags])
    assert sections(tmp_path / "part2.jsonl")[0]["found"]["status"] == 130
    gpu_report.main(["--part", "3", *flags])
    assert "metrics" in sections(tmp_path / "part3.jsonl")[0]["found"]


def test_a_way_that_fell_back_is_not_right(folder, tmp_path, monkeypatch):
    """It would be the plain step against the plain step."""
    name, our_step = "switches as they are", gpu_report.bench_step.our_step

    def falls_back(*args, **how):
        print(f"{speed.FELL_BACK} compiled (no compiler); it is taken plainly", file=sys.stderr)
        return our_step(*args, **how)

    for where, step in (("plain", our_step), ("fallen", falls_back)):
        monkeypatch.setattr(gpu_report.bench_step, "our_step", step)
        monkeypatch.setitem(gpu_report.PARTS, 1, {name: gpu_report.PARTS[1][name]})
        out = tmp_path / where
        gpu_report.main(["--part", "1", "--out", str(out), "--device", "cpu", "--dry-run"])
        (line,) = sections(out / "part1.jsonl")
        assert gpu_report.right(line["found"]) == (where == "plain")
        assert (speed.FELL_BACK in line["said"]) == (where == "fallen")


def test_no_section_begins_after_the_limit(tmp_path, capsys):
    flags = ["--part", "1", "--out", str(tmp_path), "--device", "cpu", "--dry-run"]
    with pytest.raises(SystemExit) as stop:
        gpu_report.main([*flags, "--limit", "1e-9"])
    assert stop.value.code == 1 and not (tmp_path / "part1.jsonl").exists()
    assert "machine: no time left" in capsys.readouterr().out


def a_report(tmp_path, *found):
    """A report whose part 1 has found (name, error of the gradients, seconds, switches)."""
    with open(tmp_path / "part1.jsonl", "w") as file:
        for name, distance, seconds, switches in found:
            of_stage = {f"stage {s}": {"later": seconds} for s in (1, 2)}
            content = {"switches": switches, "distance": {"stage 1": distance}, **of_stage}
            content["fell back"] = False
            print(json.dumps({"section": name, "found": content}), file=file)
    report = gpu_report.Report.__new__(gpu_report.Report)
    report.out = tmp_path
    return report


def test_the_run_takes_the_fastest_switches_of_the_right_ones(tmp_path):
    found = [("switches as they are", 0.01, 0.04, {"streams": False})]
    wrong = ("switches with streams turned", 0.5, 0.01, {"streams": True})
    assert gpu_report.best(a_report(tmp_path, *found, wrong))["switches"] == {"streams": False}
    right = ("switches with streams turned", 0.01, 0.02, {"streams": True})
    chosen = gpu_report.best(a_report(tmp_path, *found, right))
    assert chosen["switches"] == {"streams": True}
    assert chosen["minutes"] == pytest.approx(0.02 * 390 * 100 / 60)
    with pytest.raises(ValueError, match="no section"):
        gpu_report.best(a_report(tmp_path, wrong))


def test_the_distance_of_gradients_is_relative():
    theirs = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    ours = [torch.tensor([3.0, 0.3]), torch.tensor([4.4])]
    assert gpu_report.distance(ours, theirs) == pytest.approx(0.1)
    assert gpu_report.distance(theirs, theirs) == 0


def test_without_a_gpu_it_says_what_can_be_done(tmp_path, refused):
    flags = ["--part", "1", "--out", tmp_path / "new", "--device", "cpu"]
    assert "--dry-run" in refused(gpu_report, *flags) and not (tmp_path / "new").exists()
