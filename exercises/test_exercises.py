"""Statements about the exercises that must hold, so that a student can trust what a check says."""

import ast
import json
import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import attacks
import train_submodel
from exercises import (
    FILES,
    ROOT,
    ask,
    check,
    child,
    definitions,
    find,
    handout,
    load,
    points,
    reference,
    source_of,
    start,
)

HOSTILE = {
    "an endless loop": "while True:\n    pass\n",
    "an exit": "import sys\nsys.exit(0)\n",
    "a hard exit": "import os\nos._exit(0)\n",
    "a forged results.json": "open('results.json', 'w').write('{\"score\": 99}')\n",
    "a child process": "import subprocess, sys\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n",
    "patched comparisons": "import numpy as np, torch\n"
    "np.allclose = torch.allclose = lambda *a, **k: True\n",
    "endless output": "while True:\n    print('yes ' * 1000)\n",
    "no Python": "def ball(:\n",
    "binary": "\0\1\2",
}


def solution(number):
    """A student's file with the project's own bodies."""
    module, parts = load(number), []
    for name, (node, _) in definitions(number).items():
        path = source_of(module.REBUILD[name][0])[0] if name in module.REBUILD else FILES[number]
        source = ast.get_source_segment(path.read_text(), node)
        lines = source.replace("(self, ", "(").split("\n")
        parts.append("\n".join([lines[0], *(line[node.col_offset :] for line in lines[1:])]))
    imports = f"from exercises.{FILES[number].stem} import *\nimport math\nfrom torch import nn"
    helpers = "from attacks import ball, cross_entropy, expert_losses, margin_loss\n"
    helpers += "from baselines.plain import weights"
    return "\n\n\n".join([f"{imports}\n{helpers}", module.IMPORTS, *parts]) + "\n"


def checked(tmp_path, number, content):
    """Points, after a check of this file."""
    (tmp_path / f"ex{number:02}.py").write_text(content)
    return sum(earned for _, earned, _ in check.check(number, tmp_path))


# ----------------------------------------------------------------------------- right and wrong ones


@pytest.mark.slow
@pytest.mark.parametrize("number", FILES)
def test_the_project_s_own_functions_get_all_points(number, tmp_path, capsys):
    assert checked(tmp_path, number, solution(number)) == points(load(number))
    out = capsys.readouterr().out
    assert "with:" not in out and "mistake" not in out
    assert (tmp_path / f"ex{number:02}.png").exists() == hasattr(load(number), "draw")


@pytest.mark.parametrize("number", FILES)
def test_every_mistake_loses_points_and_is_called_by_its_name(number):
    module, known = load(number), check.expected(number)
    assert len(module.MISTAKES) >= 4
    untouched = module.variant(frozenset())
    quick = list(known[next(iter(module.MISTAKES))])
    tolerance = getattr(module, "TOLERANCE", 1e-6)
    right = ask(number, SimpleNamespace(**untouched), quick)
    assert all(check.same(right[p], known[""][p], tolerance) for p in quick)
    for name in module.MISTAKES:
        mine = known[""] | known[name]
        judged = check.judge(number, mine)
        assert check.mistakes(number, mine, judged) == [name]
        assert sum(earned for _, earned, _ in judged) < points(module)
    assert check.mistakes(number, known[""], check.judge(number, known[""])) == []


def by_shift(losses, sigma):
    low = losses.min(0).values
    return low - sigma * torch.log(torch.exp((low - losses) / sigma).sum(0))


def pgd_by_mean(model, x, y, eps, alpha, steps):
    z = x.clone()
    for _ in range(steps):
        z = z.detach().requires_grad_()
        grad = torch.autograd.grad(F.cross_entropy(model(z), y), z)[0]
        z = (x + (z.detach() + alpha * grad.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    return z


OTHERS = {  # right answers that are written otherwise
    1: [
        {"ball": lambda x, eps: lambda z: (x + (z - x).clamp(-eps, eps)).clamp(0, 1)},
        {"ball": lambda x, eps: lambda z: z.clamp(0, 1).clamp(x - eps, x + eps).clamp(0, 1)},
    ],
    2: [
        {"pgd": pgd_by_mean},
        {"l2_step": lambda z, g, a: z + a * F.normalize(g.flatten(1)).view_as(g)},
    ],
    3: [
        {"cw_loss": lambda z, y, kappa=0.1: attacks.margin_loss(z, y).minimum(torch.tensor(kappa))},
        {
            "margin_loss": lambda z, y: (
                (z - 1e9 * F.one_hot(y, z.shape[1])).max(1).values
                - (z * F.one_hot(y, z.shape[1])).sum(1)
            )
        },
    ],
    4: [
        {"best_expert_loss": by_shift},
        {"best_expert_loss": lambda l, s: -s * (-l / s).T.logsumexp(1)},
    ],
    5: [
        {
            "confidence_loss": lambda s, p: (
                -(p.detach() * F.logsigmoid(s) + (1 - p.detach()) * F.logsigmoid(-s)).mean(0)
            )
        },
        {"g_logit": lambda e: F.log_softmax(e, 1)[:, 1] - F.log_softmax(e, 1)[:, 0]},
    ],
    6: [
        {"combine": lambda z, s: z[s.argmax(0), torch.arange(z.shape[1])]},
        {"vote": lambda z: torch.logsumexp(z - z.logsumexp(-1, True), 0) - math.log(len(z))},
    ],
    7: [
        {"stage1_loss": lambda model, x, y, s: train_submodel.stage1_loss(model.train(), x, y, s)},
        {
            "attack_by_eps": lambda model, x, y, eps, steps: torch.cat(
                [
                    attacks.pgd(model, a[None], b[None], e.item(), e.item() / 3, steps)
                    if e > 0
                    else a[None]
                    for a, b, e in zip(x, y, eps)
                ]
            )
        },
    ],
    8: [
        {"vote_loss": lambda f, g, y: F.mse_loss(f.sum(1) / 2, y)},
        {
            "trap_loss": lambda f, g, y: (
                torch.minimum((f[:, 0] - y) ** 2, (f[:, 1] - y) ** 2).mean()
                + F.cross_entropy(g, ((f[:, 1] - y) ** 2 < (f[:, 0] - y) ** 2).long())
            )
        },
    ],
    9: [
        {
            "soft_routing_loss": lambda out, y, T: attacks.margin_loss(
                torch.logsumexp(out[0].log_softmax(-1) + (out[1] / T).log_softmax(0)[..., None], 0),
                y,
            )
        },
        {
            "misroute_loss": lambda out, y, j, scale: (
                torch.stack(
                    [attacks.margin_loss(out[0][j], y)]
                    + [scale * (out[1][j] - s) for i, s in enumerate(out[1]) if i != j]
                )
                .min(0)
                .values
            )
        },
    ],
    10: [
        {
            "passes": lambda m, M, S: (
                M * S + {"soe-stage1": M + M * M, "soe": M * (3 + M) / 2}.get(m, 2 * M)
            )
        },
        {
            "together_loss": lambda model, x, y, s: sum(
                F.cross_entropy(e.logits(b), y)
                for b in load(10).clean_and_attacked(model, x, y, s)
                for e in model.experts
            )
        },
    ],
    11: [
        {"verdict": lambda d, e: int(np.sign(d)) * (abs(d) > 1.96 * e)},
        {"verdict": lambda d, e: (d - 1.96 * e > 0) - (d + 1.96 * e < 0)},
    ],
}


@pytest.mark.parametrize("number", FILES)
def test_other_right_answers_get_all_points_too(number):
    module, right = load(number), check.expected(number)[""]
    quick = [p for p in module.PROBES if p not in getattr(module, "SLOW", ())]
    assert len(OTHERS[number]) >= 2
    for other in OTHERS[number]:
        own = SimpleNamespace(**vars(reference(number)) | other)
        mine = right | ask(number, own, quick)
        assert [why for _, _, why in check.judge(number, mine) if why] == []


@pytest.mark.parametrize("number", FILES)
def test_a_starter_an_empty_and_a_missing_file_get_nothing(number):
    definitions_ = {}
    exec(compile(start.starter(number), "starter", "exec"), definitions_)
    assert definitions_.keys() >= definitions(number).keys()
    for own in (SimpleNamespace(**definitions_), SimpleNamespace()):
        assert sum(earned for _, earned, _ in check.judge(number, ask(number, own))) == 0


def test_a_missing_file_gets_nothing_and_says_how_to_begin(tmp_path, capsys):
    assert sum(earned for _, earned, _ in check.check(1, tmp_path)) == 0
    assert "python -m exercises.start 1" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_files_get_nothing_and_leave_a_valid_results_json(how, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 6)
    (tmp_path / "ex01.py").write_text(HOSTILE[how])
    check.main(["1", "--work", str(tmp_path), "--json", str(tmp_path / "results.json")])
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["score"] == 0 == sum(test["score"] for test in found["tests"])


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_what_a_student_s_file_starts_ends_with_it(tmp_path):
    forever = (
        f"import time\nwhile True:\n    open(r'{tmp_path}/alive', 'w').close()\n    time.sleep(.1)"
    )
    (tmp_path / "ex01.py").write_text(
        f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', '''{forever}'''])\n"
        "time.sleep(2)\n"
    )
    check.student_answers(1, tmp_path / "ex01.py", 15)
    assert (tmp_path / "alive").exists()
    (tmp_path / "alive").unlink()
    time.sleep(0.5)
    assert not (tmp_path / "alive").exists()


# ------------------------------------------------------------------------------ what a student sees


@pytest.mark.slow
def test_a_student_sees_the_own_line_the_print_and_the_counterexample(tmp_path, capsys):
    content = solution(3).replace(
        "clamp(max=kappa)",
        "clamp(max=kappa) + 1 + print('seen') if logits.shape[0] > 0 else 1/0",
        1,
    )
    assert checked(tmp_path, 3, content) < points(load(3))
    out = capsys.readouterr().out
    assert (
        "TypeError" in out
        and "line " in out
        and "in cw_loss" in out
        and "printed:\n           seen\n" in out
    )
    assert "exercises/child.py" not in out and "site-packages" not in out


@pytest.mark.slow
def test_answers_of_another_shape_are_not_drawn_and_no_crash(tmp_path):
    turned = solution(4).replace("-losses / sigma, 0)", "-losses / sigma, 0).T")
    assert checked(tmp_path, 4, turned) == 9
    assert (tmp_path / "ex04.png").exists()


@pytest.mark.slow
def test_an_unknown_mistake_is_kept(tmp_path, capsys):
    assert 0 < checked(tmp_path, 4, solution(4).replace("-sigma *", "-2.5 *")) < 10
    (kept,) = (tmp_path / "unexplained").iterdir()
    out = capsys.readouterr().out
    assert "Nobody has made this mistake before" in out and "is outside [" in out
    assert kept.name.startswith("ex04-")


@pytest.mark.slow
def test_a_known_mistake_is_named_while_the_rest_is_not_written(tmp_path, capsys):
    checked(tmp_path, 4, "import torch\ndef best_expert_loss(l, s):\n    return l.min(0).values\n"
            "def expert_weights(l, s):\n    raise NotImplementedError\n"
            "def cases_of_equality(M):\n    raise NotImplementedError\n")  # fmt: skip
    assert "with: the hard minimum" in capsys.readouterr().out


def test_a_starter_is_never_written_over_a_student_s_file(tmp_path, refused):
    start.main(["4", "--work", str(tmp_path)])
    (tmp_path / "ex04.py").write_text("mine")
    assert "there already" in refused(start, "4", "--work", tmp_path)
    assert (tmp_path / "ex04.py").read_text() == "mine"


@pytest.mark.parametrize("script", [start, check])
def test_what_is_no_exercise_is_one_line(script, tmp_path, refused):
    for number in ("0", "99", "four"):
        assert "no exercise" in refused(script, number, "--work", tmp_path)


@pytest.mark.slow
def test_only_the_exercise_s_own_functions_are_the_student_s(tmp_path):
    """A wrong best_expert_loss beside a right stage1_loss spoils nothing."""
    content = solution(7) + "\n\ndef sample_loss(*args):\n    return 1 / 0\n"
    content = content.replace("sample_loss(model", "train_submodel.sample_loss(model")
    assert checked(tmp_path, 7, "import train_submodel\n" + content) == points(load(7))


# -------------------------------------------------------------------------------------- the handout


@pytest.fixture(scope="module")
def handouts(tmp_path_factory):
    folders = {}
    for unit in (1, 6):
        folders[unit] = tmp_path_factory.mktemp("handout") / "copy"
        handout.main(["--unit", str(unit), "--out", str(folders[unit])])
    return folders


@pytest.mark.parametrize("unit", [1, 6])
def test_a_handout_holds_no_solution_of_its_unit_or_a_later_one(unit, handouts):
    texts = {path: path.read_text() for path in handouts[unit].rglob("*.py")}
    assert not [path for path in texts if path.name.startswith("test_") or "lecturer" in str(path)]
    assert not [n for n in (".git", "exercises/capstone.py") if (handouts[unit] / n).exists()]
    page = (handouts[unit] / "exercises" / "README.md").read_text()
    assert "The exercises" in page and "capstone" not in page and "lecturer" not in page
    for number in FILES:
        module = load(number)
        cut = [(name, FILES[number], None) for name in (*module.TWIST, "variant", "more")]
        if number >= unit:
            cut += [(name, *source_of(place)) for name, (place, _) in module.REBUILD.items()]
            cut += [(name, *source_of(place)) for place, name in getattr(module, "CUT", ())]
        for name, path, of_class in cut:
            node = find(path, name, of_class)
            last = ast.get_source_segment(path.read_text(), node.body[-1])
            if len(last) > 30:
                assert not [where for where, text in texts.items() if last in text], name
            left = find(handouts[unit] / path.relative_to(ROOT), name, of_class)
            assert ast.unparse(left.body[-1]).startswith("raise NotImplementedError")


def test_earlier_solutions_are_in_a_handout(handouts):
    def body(root, name):
        return ast.unparse(find(root / "attacks.py", name))

    for name in ("ball", "pgd", "cw_loss"):
        assert body(handouts[6], name) == body(ROOT, name) != body(handouts[1], name)


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1, 6])
def test_a_unit_passes_alone_in_its_handout(unit, handouts, tmp_path):
    content = solution(unit).replace(f"from exercises.{FILES[unit].stem} import *", "")
    (tmp_path / f"ex{unit:02}.py").write_text(content)
    words = [sys.executable, "-m", "exercises.check", str(unit), "--work", str(tmp_path)]
    done = subprocess.run(words, cwd=handouts[unit], capture_output=True, text=True)
    total = points(load(unit))
    assert f"{total} of {total} points" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_what_a_later_unit_lacks_in_an_earlier_one_s_handout_is_said(handouts, tmp_path):
    (tmp_path / "ex07.py").write_text(
        solution(7).replace("from exercises.ex07_stage1 import *", "")
    )
    words = [sys.executable, "-m", "exercises.check", "7", "--work", str(tmp_path)]
    done = subprocess.run(words, cwd=handouts[1], capture_output=True, text=True)
    assert "needs pgd, which exercise 2 asks for" in done.stdout, done.stdout + done.stderr
    assert "use the handout of unit 7" in " ".join(done.stdout.split())


def test_a_handout_makes_no_handout_and_overwrites_nothing(handouts, tmp_path, refused):
    assert "is there already" in refused(handout, "--unit", "4", "--out", tmp_path)


def test_the_child_cuts_a_traceback_to_the_student_s_lines(tmp_path):
    path = tmp_path / "ex01.py"
    path.write_text("import torch\n\n\ndef ball(x, eps):\n    return torch.zeros(2, 3) @ x\n")
    out = tmp_path / "answers.npz"
    stdout, stderr = child.sys.stdout, child.sys.stderr
    try:
        child.main(1, str(path), str(out))
    finally:
        child.sys.stdout, child.sys.stderr = stdout, stderr
    told = str(check.read_answers(out)[next(iter(load(1).PROBES))])
    assert told.startswith("line 5, in ball: return torch.zeros(2, 3) @ x\nRuntimeError")


def test_the_table_of_the_readme_is_that_of_the_exercises():
    text = (ROOT / "exercises" / "README.md").read_text().split("## The exercises")[1]
    for number in FILES:
        assert (
            f"| {load(number).MINUTES} | {points(load(number))} |"
            in text.split(f"\n| {number} |")[1]
        )
    assert sum(points(load(number)) for number in FILES) == 100
    questions = (ROOT / "exercises" / "lecturer" / "README.md").read_text()
    for number in FILES:
        assert "In words" in load(number).__doc__ and f"\n{number}. **" in questions


@pytest.mark.slow
def test_what_the_readme_shows_is_what_a_check_says(tmp_path, capsys):
    content = "def best_expert_loss(losses, sigma):\n    return losses.min(0).values\n"
    for name in ("expert_weights(losses, sigma)", "cases_of_equality(M)"):
        content += f"def {name}:\n    raise NotImplementedError\n"
    assert checked(tmp_path, 4, content) == 3
    said = capsys.readouterr().out.replace(str(tmp_path), "work").strip()
    assert said in (ROOT / "exercises" / "README.md").read_text()
