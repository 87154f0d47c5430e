"""Statements about the exercises that must hold, so that a student can trust what a check says."""

import ast
import csv
import functools
import json
import math
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import attacks
import exercises.answers as answers
import exercises.check as check
import exercises.handout as handout
import exercises.sandbox as sandbox
import exercises.start as start
import infer
import train_submodel
from exercises import FILES, ROOT, cuts, definition, find, is_twist, load, points, tasks, title


def solution(number):
    """A student's file with the project's own bodies, and what they call of what is cut."""
    parts = [start.starter(number)[0].split("\n\n\n")[0], "import attacks, math, sys"]
    parts += ["from attacks import *\nfrom attacks import Iterator\nfrom itertools import chain"]
    parts += ["from functools import partial"]
    parts += ["assert __name__ in sys.modules  # where a dataclass looks"]
    parts += [ast.unparse(find(*cut)) for cut in cuts(number) if len(cut) == 2 and number != 2]
    parts += [ast.unparse(definition(number, name)) for name in tasks(number)]
    if number == 8:
        parts.append(f"def sigma_of():\n    return {answers.reference(8)['sigma_of']()}")
    if number == 9:
        parts.append(ast.unparse(find(ROOT / "attacks.py", "adaptive")))
        parts = [part.replace("attacks.adaptive", "adaptive") for part in parts]
    if number == 11:
        parts.append(ast.unparse(find(FILES[11], "worst")))
    if number == 12:
        parts.append(f"def verdict():\n    return {answers.reference(12)['verdict']()}")
    return "\n\n".join(parts) + "\n"


@functools.cache
def code(folder):
    return "\n".join(ast.unparse(ast.parse(path.read_text())) for path in folder.rglob("*.py"))


def holds(folder, number, name):
    """Does any file hold the end of a right function, if that could not be anybody's?"""
    last = ast.unparse(definition(number, name).body[-1])
    return len(last) > 30 and last in code(folder)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """tree(number): what a student's process sees."""
    made = {}

    def of(number):
        if number not in made:
            made[number] = handout.for_child(tmp_path_factory.mktemp("tree") / "copy", number)
        return made[number]

    return of


@pytest.fixture
def checked(tmp_path, tree):
    """checked(number, content): the points of a file."""

    def of(number, content):
        (tmp_path / f"ex{number:02}.py").write_text(content)
        return check.earned_in(check.check(number, tmp_path, tree(number)))

    return of


def asked(number, name, function):
    """What the right functions answer, but this one in the place of one of them."""
    own = answers.reference(number) | {name: function}
    return answers.expected(number)[""] | answers.ask(number, own, name)


# ----------------------------------------------------------------------------- right and wrong ones


@pytest.mark.slow
@pytest.mark.parametrize("number", FILES)
def test_the_project_s_own_functions_get_all_points(number, checked, tmp_path, capsys):
    assert checked(number, solution(number)) == points(number)
    assert "what comes out" not in capsys.readouterr().out
    assert (tmp_path / f"ex{number:02}.png").exists() == hasattr(load(number), "draw")


@pytest.mark.parametrize("number", FILES)
def test_every_mistake_loses_points_and_is_called_by_its_name_alone(number):
    known = answers.expected(number)
    assert not any(isinstance(answer, str) for answer in known[""].values())
    for mistake in known.keys() - {""}:
        mine = known[""] | known[mistake]
        assert check.mistakes(number, mine) == [mistake]
        assert check.earned_in(check.judge(number, mine)) < points(number)
    assert check.mistakes(number, known[""]) == []
    assert check.earned_in(check.judge(number, known[""])) == points(number)


def pgd_by_mean(model, x, y, eps, alpha, steps, loss=attacks.cross_entropy):
    z = x.clone()
    for _ in range(steps):
        z = z.detach().requires_grad_()
        grad = torch.autograd.grad(loss(model(z), y).mean(), z)[0]
        z = (x + (z.detach() + alpha * grad.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    return z


def by_shift(losses, sigma):
    low = losses.min(0).values
    return low - sigma * torch.log(torch.exp((low - losses) / sigma).sum(0))


def one_hot_margin(z, y):
    true = F.one_hot(y, z.shape[1])
    return z.masked_fill(true.bool(), -torch.inf).max(1).values - (z * true).sum(1)


def worst_difference(ours, theirs):
    d = np.prod([*ours.values()], axis=0) - np.prod([*theirs.values()], axis=0)
    square = np.var(d.mean(0), ddof=1) / len(d[0])
    square += np.var(d.mean(1), ddof=1) / len(d) if len(d) > 1 else 0
    return 100 * d.mean(), 100 * math.sqrt(square)


OTHERS = [  # right answers that are written otherwise
    (1, "ball", lambda x, eps: lambda z: (x + (z - x).clamp(-eps, eps)).clamp(0, 1)),
    (2, "pgd", pgd_by_mean),
    (2, "l2_step", lambda z, g, a: z + a * F.normalize(g.flatten(1)).view_as(g)),
    (3, "margin_loss", one_hot_margin),
    (4, "best_expert_loss", by_shift),
    (5, "confidence_loss", lambda s, p: -(
        p.detach() * F.logsigmoid(s) + (1 - p.detach()) * F.logsigmoid(-s)).mean(0)),
    (5, "counterexample", lambda: (torch.tensor([[0.2, 0.3, 0.4], [0.3, 0.4, 0.5]]),
        torch.tensor([[0.6, 0.7, 0.8], [0.1, 0.2, 0.9]]))),
    (6, "combine", lambda z, s: z[s.argmax(0), torch.arange(z.shape[1])]),
    (6, "vote", lambda z: torch.logsumexp(z - z.logsumexp(-1, True), 0) - math.log(len(z))),
    (7, "stage1_loss", lambda m, x, y, s: train_submodel.stage1_loss(m.train(), x, y, s)),
    (8, "vote_loss", lambda f, g, y: F.mse_loss(f.sum(1) / 2, y)),
    (9, "prediction", lambda: 30.0),
    (10, "passes", lambda m, M, S: M * S + {"soe-stage1": M + M * M, "soe": M * (3 + M) / 2}.get(
        m, 2 * M)),
    (11, "verdict", lambda d, e: int(np.sign(d)) * (abs(d) > 1.96 * e)),
    (11, "difference", worst_difference),
]  # fmt: skip


@pytest.mark.parametrize("number, name, other", OTHERS)
def test_other_right_answers_get_all_points_too(number, name, other):
    assert not any(why for *_, why in check.judge(number, asked(number, name, other)))


@pytest.mark.parametrize("number, name, wrong", [
    (1, "ball", lambda x, eps: lambda z: z.clamp(x - eps / 2, x + eps / 2)),
    (2, "pgd", lambda m, x, y, e, *a, **k: pgd_by_mean(m, x, y, e / 2, *a, **k)),
    (2, "pgd", lambda m, x, y, eps, a, s, **k: x),
    (3, "margin_loss", lambda z, y: -one_hot_margin(z, y) / 2),
    (4, "best_expert_loss", lambda l, s: -2.5 * torch.logsumexp(-l, 0)),
    (11, "difference", lambda a, b: (0.0, 1.0)),
])  # fmt: skip
def test_two_mistakes_at_once_and_unknown_ones_have_no_name(number, name, wrong):
    mine = asked(number, name, wrong)
    assert check.earned_in(check.judge(number, mine)) < points(number)
    assert check.mistakes(number, mine) == []


@pytest.mark.parametrize("number", FILES)
def test_a_starter_an_empty_and_a_missing_file_get_nothing(number):
    written = {}
    exec(compile(start.starter(number)[0], "starter", "exec"), written)
    assert written.keys() >= tasks(number).keys()
    for own in (written, {}):
        assert check.earned_in(check.judge(number, answers.ask(number, own))) == 0


@pytest.mark.parametrize("number", FILES)
def test_a_twist_s_signature_and_order_are_those_of_its_answer(number):
    for name, (place, _) in tasks(number).items():
        if is_twist(place):
            given = ast.parse(f"def {name}{place}: pass").body[0].args
            answer = find(FILES[number], name).args
            assert [a.arg for a in given.args] == [a.arg for a in answer.args]


@pytest.mark.slow
def test_another_key_changes_the_numbers_and_the_answers_stay_right():
    code = "from exercises import answers, check\n"
    code += "for n in (1, 4, 7, 11):\n    known = answers.expected(n)\n"
    code += "    assert all(not why for *_, why in check.judge(n, known['']))\n"
    code += "    assert all(check.mistakes(n, known[''] | known[m]) == [m] for m in known if m)\n"
    code += "print(answers.expected(4)['']['sigma 1']['the value'][5])"
    said = set()
    for key in ("", "2027", "2028"):
        environment = os.environ | {"EXERCISES_VARIANT": key, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        said.add(done.stdout)
    assert len(said) == 3


# ------------------------------------------------------------------------------ who must not cheat

HOSTILE = [
    "import sys\nsys.exit(0)",
    "import os\nos._exit(0)",
    "while True: pass",
    "while True: print('yes ' * 1000)",
    "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'[{\"probe\": 1}\\n' * 10**6)\n"
    "    except OSError: pass\nraise SystemExit",
    "import numpy as np, torch\nnp.allclose = torch.allclose = lambda *a, **k: True",
    "from exercises.answers import reference\nglobals().update(reference(1))",
    "from attacks import ball\nfrom exercises.ex01_ball import l2_ball",
    "def ball(:",
    "\0\1\2",
]


@pytest.mark.slow
@pytest.mark.parametrize("content", HOSTILE)
def test_hostile_files_get_nothing_and_leave_valid_results(content, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "SECONDS", 8)
    (tmp_path / "ex01.py").write_text(content + "\n")
    out = tmp_path / "results.json"
    assert check.main(["1", "--work", str(tmp_path), "--json", str(out)]) == 1
    assert json.loads(out.read_text())["score"] == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_what_a_student_s_file_starts_ends_with_it(tmp_path, tree):
    forever = f"import time\nwhile True: open(r'{tmp_path}/alive', 'w'); time.sleep(.1)"
    content = "import subprocess, sys, time\n"
    content += f"subprocess.Popen([sys.executable, '-c', {forever!r}])\n"
    answers.student_answers(1, (content + "time.sleep(2)\n").encode(), tree(1), graded=False)
    assert (tmp_path / "alive").exists()
    (tmp_path / "alive").unlink()
    time.sleep(0.5)
    assert not (tmp_path / "alive").exists()


@pytest.mark.parametrize("number", FILES)
def test_a_student_s_process_sees_no_solution_of_its_exercise(number, tree):
    names = {path.name for path in tree(number).rglob("*.py")}
    assert not {"check.py", "handout.py", "capstone.py", "test_exercises.py"} & names
    assert not [name for name in tasks(number) if holds(tree(number), number, name)]


@pytest.mark.slow
def test_in_a_graded_run_nothing_of_a_student_s_outlives_it_or_reaches_the_judge(tmp_path):
    try:
        sandbox.check_graded([], [])
    except ValueError as error:
        pytest.skip(str(error))
    content = f"""
import os, subprocess, sys
assert os.getuid() == {sandbox.UID} and not os.getgroups()
for path in ({str(tmp_path)!r}, os.getcwd()):
    assert not os.access(path, os.W_OK)
try:
    os.kill({os.getpid()}, 9)
    os.setuid(0)
except OSError:
    pass
os.mkfifo("/tmp/answers.npz")
os.makedirs("/tmp/deep/" + "d/" * 50)
daemon = "import os, time; os.setsid(); time.sleep(99)"
subprocess.Popen([sys.executable, "-c", daemon], start_new_session=True)
raise ValueError("so far")
"""
    with sandbox.folder() as folder:  # pytest's own are for nobody else
        place = handout.for_child(folder / "tree", 1)
        mine, _ = answers.student_answers(1, content.encode(), place, graded=True)
    assert all(text.endswith("ValueError: so far") for text in mine.values())
    assert not os.path.exists("/tmp/answers.npz") and not os.path.exists("/tmp/deep")
    running = subprocess.run(["ps", "-o", "pid=", "-u", str(sandbox.UID)], capture_output=True)
    assert not running.stdout.split()


@pytest.mark.parametrize("script", [start, check])
def test_what_is_no_exercise_is_one_line(script, tmp_path, refused):
    for number in ("0", "99", "four"):
        assert "no exercise" in refused(script, number, "--work", tmp_path)


def test_the_results_are_a_new_file_with_all_points_in_it(tmp_path, refused, capsys):
    words = ["5", "--work", str(tmp_path), "--json", str(tmp_path / "r.json")]
    assert check.main(words) == 1
    tests = json.loads((tmp_path / "r.json").read_text())["tests"]
    assert sum(test["max_score"] for test in tests) == points(5) and "person" in tests[-1]["output"]
    assert "is there already" in refused(check, *words)


@pytest.mark.slow
def test_the_exit_status_is_0_at_full_points_or_at_those_that_are_asked_for(tmp_path, capsys):
    (tmp_path / "ex01.py").write_text(solution(1))
    assert check.main(["1", "--work", str(tmp_path)]) == 0
    (tmp_path / "ex01.py").write_text(solution(1).replace("clamp(0, 1)", "clamp(0, 2)"))
    assert check.main(["1", "--work", str(tmp_path)]) == 1
    assert check.main(["1", "--work", str(tmp_path), "--fail-under", "3"]) == 0


@pytest.mark.slow
def test_a_folder_of_submissions_becomes_a_table_of_grades(tmp_path, capsys, refused):
    """The files themselves, or in a folder work, as start writes them."""
    for folder, content in (("ann/work", solution(1)), ("bob", HOSTILE[-2])):
        (tmp_path / "all" / folder).mkdir(parents=True)
        (tmp_path / "all" / folder / "ex01.py").write_text(content)
    (tmp_path / "all" / "ann/work/ex01.txt").write_text("# In words\nthree words here\n")
    words = ["1", "--submissions", str(tmp_path / "all"), "--csv", str(tmp_path / "grades.csv")]
    assert check.main(words) == 0
    with open(tmp_path / "grades.csv") as file:
        head, ann, bob = csv.reader(file)
    assert head == ["student", "points", "exercise 1", "words in 1"]
    assert ann == ["ann", "4", "4", "3"] and bob == ["bob", "0", "0", "0"]
    assert "is there already" in refused(check, *words)


# ------------------------------------------------------------------------------ what a student sees


@pytest.mark.slow
def test_a_student_sees_the_own_line_the_print_the_part_and_how_to_go_on(checked, capsys):
    content = solution(3).replace("clamp(max=kappa)", "clamp(max=kappa) + 1 + print('seen')", 1)
    assert checked(3, content) < points(3)
    out = capsys.readouterr().out
    assert "TypeError" in out and "in cw_loss" in out and "printed:\n           seen\n" in out
    assert "exercises/child.py" not in out and "site-packages" not in out
    checked(7, solution(7).replace("M * (clean + adv", "M * (clean * 1.001 + adv"))
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(r"the gradient for experts\.\d\.\S+ at \[", out)
    checked(3, solution(3).replace("return (wanted", "return (wanted.detach()"))
    assert "the gradient for logits" in capsys.readouterr().out
    checked(2, solution(2).replace("x_adv.requires_grad_()\n", "pass\n"))
    assert "requires_grad_(True) forgotten?" in " ".join(capsys.readouterr().out.split())


def test_a_starter_is_never_written_over_a_student_s_file(tmp_path, refused):
    start.main(["4", "--work", str(tmp_path)])
    (tmp_path / "ex04.py").write_text("mine")
    assert "there already" in refused(start, "4", "--work", tmp_path)
    assert (tmp_path / "ex04.py").read_text() == "mine"
    assert check.words(tmp_path, 4) == 0


def test_what_exercise_9_says_of_its_model_is_measured():
    x, y = load(9).test_set()
    model, told = infer.load(ROOT / "exercises" / "model.pt"), load(9).__doc__
    torch.manual_seed(0)
    attack = attacks.attacks_at(0.1)
    images = {"clean": x, "under PGD, 20 steps": attack["pgd"](model, x, y)}
    images |= {"under Square, 1,000 queries": attack["square"](model, x, y)}
    for name, x_adv in images.items():
        stated = float(told.split(name)[1].split("%")[0])
        assert load(9).left({"your attack": {"": x_adv.numpy()}}) == pytest.approx(stated, abs=2)


# -------------------------------------------------------------------------------------- the handout


@pytest.fixture(scope="module")
def handouts(tmp_path_factory):
    folders = {}
    for unit in (1, 6):
        folders[unit] = tmp_path_factory.mktemp("handout") / "copy"
        handout.main(["--unit", str(unit), "--out", str(folders[unit])])
    return folders


@pytest.mark.parametrize("unit", [1, 6])
def test_a_handout_holds_no_solution_of_its_unit_or_a_later_one(unit, handouts, refused):
    assert "is there already" in refused(handout, "--unit", unit, "--out", handouts[unit])
    kept = {str(path.relative_to(handouts[unit])) for path in handouts[unit].rglob("*")}
    assert not [p for p in kept for word in ("test_", "lecturer", "capstone", ".git") if word in p]
    pages = [(handouts[unit] / name).read_text() for name in ("README.md", "exercises/README.md")]
    assert not any("capstone" in page or "lecturer/" in page for page in pages)
    method = (handouts[unit] / "METHOD.md").read_text()
    assert "gradient passes" not in method and "](experiments" not in method
    for number in FILES:
        for name, (place, _) in tasks(number).items():
            if number >= unit or is_twist(place):
                assert not holds(handouts[unit], number, name), name


def run_in(folder, *words):
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_one_handout_carries_the_course(handouts, tmp_path):
    folder, work = handouts[1], tmp_path / "work"
    train = "train_collab --depth 2 --epochs 2 --steps 2 --out".split()
    status, said = run_in(folder, *train, tmp_path / "run")
    assert said.strip().split("\n")[-1] == "exercise 7 is yours: python -m exercises.start 7"
    assert "Traceback" not in said
    work.mkdir()
    for number in range(1, 8):  # each with what those before it have left
        (work / f"ex{number:02}.py").write_text(solution(number))
        status, said = run_in(folder, "exercises.check", number, "--work", work)
        assert status == 0, said
    status, said = run_in(folder, *train, tmp_path / "again")
    assert status == 0 and "collaboration" in said, said


# ---------------------------------------------------------------------------------------- the pages


def test_the_table_of_the_readme_is_that_of_the_exercises():
    text = (ROOT / "exercises" / "README.md").read_text().split("## The exercises")[1]
    rubric = (ROOT / "exercises" / "lecturer" / "README.md").read_text()
    for number in FILES:
        minutes = load(number).__doc__.split("\n")[1].split(" ")[0]
        row = text.split(f"\n| {number} |")[1].split("\n")[0]
        assert f"| {minutes} | {points(number)} |" in row
        assert "\n\nIn words" in load(number).__doc__ and f"\n{number}. **" in rubric
        assert title(number).startswith(f"Exercise {number}: ")
    assert sum(points(number) for number in FILES) == 100


@pytest.mark.slow
def test_what_the_readme_shows_is_what_a_check_says(tmp_path, capsys, checked):
    content = "def best_expert_loss(losses, sigma):\n    return losses.min(0).values\n"
    for name in ("expert_weights(l, s)", "cases_of_equality(M)", "vote_cross_entropy(l)"):
        content += f"def {name}:\n    raise NotImplementedError('exercise 4: ..')\n"
    assert checked(4, content) == 1
    said = capsys.readouterr().out.replace(str(tmp_path), "work").strip()
    assert said in (ROOT / "exercises" / "README.md").read_text()


def test_the_lecturer_s_scripts_are_shell_and_start_graded_runs():
    folder = ROOT / "exercises" / "lecturer"
    for name in ("gradescope/setup.sh", "gradescope/run_autograder"):
        assert subprocess.run(["bash", "-n", folder / name]).returncode == 0
    for name in ("gradescope/run_autograder", "classroom.yml"):
        assert "-m exercises.check all --graded" in (folder / name).read_text()
