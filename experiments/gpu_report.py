"""Half an hour with a GPU, none of it wasted: is the fast path right there, and how fast is it?

    python -m experiments.gpu_report --part 1 --out gpu --limit 420    # each way to take a step
    python -m experiments.gpu_report --part 2 --out gpu --limit 600    # the paper's run
    python -m experiments.gpu_report --part 3 --out gpu --limit 480    # ... resumed, and evaluated

Each part is a list of sections. A section that ends writes one line of JSON to OUT/part1.jsonl and
so on, at once; one that fails writes its error, and the next begins. The same command does only
what is missing or failed, and begins no section after --limit seconds. Part 2 takes the switches
that part 1 found right and fastest, stops at the limit as after Ctrl-C, and trains fewer epochs
where part 1 foresees that all would take more than --minutes.

--data is what parts 2 and 3 train on. With --dry-run all of it is done at toy size, on any machine.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
from argparse import Namespace
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from unittest import mock
from support import files, options, speed

import torch
from torch import Tensor
from torch._dynamo.utils import counters

import train_collab
from experiments import bench_step, evaluate, train_or_resume

ROOT = Path(__file__).parent.parent
FULL = {}  # bench_step's defaults: the paper's setting
TOY = {"n": 2, "depth": 2, "image_shape": [3, 8, 8], "batch_size": 8, "steps": 1}
RUN = ["--eps=0.03", "--n=3"]
TOY_RUN = ["--eps=0.03", "--n=2", "--depth=2", "--steps=1", "--epochs=2"]


class Report:
    """One part's sections, and the file that they are written to, a line each."""

    def __init__(self, args: Namespace):
        self.args, self.device = args, options.pick_device(args.device)
        if not args.dry_run and self.device.type != "cuda":
            raise ValueError("this machine has no CUDA GPU: try --dry-run")
        self.out, self.begun = Path(args.out), time.monotonic()
        self.out.mkdir(parents=True, exist_ok=True)
        toy = TOY if args.dry_run else FULL
        how = {"precision": options.best_precision(self.device)}
        self.settings = bench_step.soe_settings(**toy, **how)
        shape = (self.settings.batch_size, *self.settings.image_shape)
        torch.manual_seed(0)
        x = torch.rand(shape, device=self.device)
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.y = torch.randint(10, (len(x),), device=self.device)

    def left(self) -> float:
        return self.args.limit - (time.monotonic() - self.begun)

    def found(self, part: int) -> dict[str, dict]:
        """{section: what it found} of a part, where it ended well."""
        path = self.out / f"part{part}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        read = map(json.loads, lines)
        return {line["section"]: line["found"] for line in read if "found" in line}

    def run(self, sections: dict[str, Callable[["Report"], dict]]) -> bool:
        """Does what is missing; True where nothing is then."""
        part, whole = self.args.part, True
        for name, section in sections.items():
            if name in self.found(part):
                continue
            if self.left() <= 0:
                print(f"{name}: no time left", flush=True)
                whole = False
                continue
            start, said, line = time.monotonic(), io.StringIO(), {"section": name}
            try:
                with contextlib.redirect_stderr(said):
                    line["found"] = section(self)
            except (Exception, SystemExit) as error:
                if isinstance(error, SystemExit) and error.code == 130:
                    raise
                line["error"] = "".join(traceback.format_exception(error))[-2000:]
                whole = False
            line |= {"seconds": round(time.monotonic() - start, 1)}
            line |= {"said": said.getvalue()[-1000:], "versions": options.versions()}
            line |= {"device": options.device_name(self.device), "limit": self.args.limit}
            with open(self.out / f"part{part}.jsonl", "a") as file:
                print(json.dumps(line), file=file, flush=True)
            what = "failed" if "error" in line else "done"
            print(f"{name}: {what} in {line['seconds']} s", flush=True)
        return whole


# ------------------------------------------------------------------ part 1: the ways to take a step


def machine(report: Report) -> dict:
    """What a slow or failing section may come from."""
    found = {"cudnn": torch.backends.cudnn.version(), "threads": torch.get_num_threads()}
    found |= {"gcc": shutil.which("gcc"), "processors": os.cpu_count()}
    if report.device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        capability = torch.cuda.get_device_capability()
        found |= {"free GiB": free / 2**30, "GiB": total / 2**30, "capability": capability}
    return found


def time_of_stages(report: Report, **how) -> dict:
    """Of each stage: seconds of the first step, which compiles and captures, and of a later one;
    graphs compiled in all; peak memory reserved."""
    settings, found = Namespace(**vars(report.settings) | how), {}
    if report.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    counters.clear()
    for stage, loss in bench_step.STAGES.items():
        step = bench_step.our_step(loss, bench_step.build(settings, report.device), settings)
        begun = time.perf_counter()
        step(report.x, report.y).item()
        first = time.perf_counter() - begun
        later = [bench_step.seconds(step, report.x, report.y) for _ in range(3)]
        found[f"stage {stage}"] = {"first": first, "later": statistics.median(later)}
        found[f"stage {stage}"]["graphs"] = counters["stats"]["unique_graphs"]
    return found | {"GiB": bench_step.peak_gib(report.device)}


def gradients(report: Report, stage: int, steps: int, **how) -> list[Tensor]:
    """The gradients after a step at a fixed x_adv, weights as they were, of the last of `steps`."""
    settings = Namespace(**vars(report.settings) | how)
    torch.manual_seed(1)
    model = bench_step.build(settings, report.device)
    x_adv = (report.x + 0.03 * torch.randn_like(report.x).sign()).clamp(0, 1)
    fixed = {"new": lambda model, x, y, settings: x_adv}
    with (
        mock.patch("train_submodel.training_attack", **fixed),
        mock.patch("train_collab.training_attack", **fixed),
        mock.patch.object(torch.optim.SGD, "step"),
    ):
        step = bench_step.our_step(bench_step.STAGES[stage], model, settings)
        for _ in range(steps):
            step(report.x, report.y)
    return [p.grad.clone() for p in model.parameters()]


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """|ours - theirs| / |theirs|, all gradients taken as one vector."""
    difference = sum((a - b).square().sum() for a, b in zip(ours, theirs))
    return float((difference / sum(b.square().sum() for b in theirs)).sqrt())


def switches(changed: dict, compile_: bool = True) -> Callable[[Report], dict]:
    """A section: the time with some of speed.SWITCHES turned, and the distance of its gradients
    from the plain step's, at most over a first and a twentieth step; rounding alone is some 1e-3
    in float32 and 1e-2 in bfloat16. And whether a step fell back to a slower way."""

    def section(report: Report) -> dict:
        plainly = {"compile": False, "graph": False}
        fast = {"compile": compile_ and not report.args.dry_run}
        found, said = {"switches": speed.SWITCHES | changed, "distance": {}}, io.StringIO()
        for stage in bench_step.STAGES:
            theirs = gradients(report, stage, 1, **plainly)
            with mock.patch.dict(speed.SWITCHES, changed), contextlib.redirect_stderr(said):
                ours = [gradients(report, stage, steps, **fast) for steps in (1, 20)]
            found["distance"][f"stage {stage}"] = max(distance(o, theirs) for o in ours)
        with mock.patch.dict(speed.SWITCHES, changed), contextlib.redirect_stderr(said):
            found |= time_of_stages(report, **fast)
        print(said.getvalue(), end="", file=sys.stderr)
        return found | {"fell back": speed.FELL_BACK in said.getvalue()}

    return section


def right(found: dict) -> bool:
    """Not NaN, close to the plain step, and not the plain step itself, where a way failed."""
    return not found["fell back"] and all(d < 0.03 for d in found["distance"].values())


def seconds_of_a_step(found: dict) -> float:
    return statistics.mean(found[f"stage {stage}"]["later"] for stage in bench_step.STAGES)


def best(report: Report) -> dict:
    """The right and fastest of the sections on switches: {"switches", "seconds", "minutes"}, the
    last of the paper's run, 100 epochs of 390 steps. Raises ValueError where none is right."""
    sections = [f for name, f in report.found(1).items() if name.startswith("switches")]
    if not (passed := [found for found in sections if right(found)]):
        raise ValueError("part 1 has no section on switches that is right")
    fastest = min(passed, key=seconds_of_a_step)
    seconds = seconds_of_a_step(fastest)
    return {"switches": fastest["switches"], "seconds": seconds, "minutes": seconds * 39_000 / 60}


def all_helpful(report: Report) -> dict:
    """All switches together that, turned alone, were right and faster than none turned."""
    found = {name: f for name, f in report.found(1).items() if name.startswith("switches")}
    base = seconds_of_a_step(found.pop("switches as they are"))
    helpful = [f["switches"] for f in found.values() if right(f) and seconds_of_a_step(f) < base]
    turned = {}
    for of_one in helpful:
        turned |= {name: on for name, on in of_one.items() if on != speed.SWITCHES[name]}
    return switches(turned)(report)


def profile(report: Report) -> dict:
    """The 25 kernels (on a CPU: operations) that take longest in one step of each stage."""
    found = {"columns": ["name", "calls", "microseconds"]}
    time_of = attrgetter(f"self_{'device' if report.device.type == 'cuda' else 'cpu'}_time_total")
    for stage, loss in bench_step.STAGES.items():
        model = bench_step.build(report.settings, report.device)
        step = bench_step.our_step(loss, model, report.settings)
        step(report.x, report.y)
        with torch.profiler.profile() as profiler:
            step(report.x, report.y).item()
        events = sorted(profiler.key_averages(), key=time_of, reverse=True)
        found[f"stage {stage}"] = [(e.key[:100], e.count, time_of(e)) for e in events[:25]]
    return found


def rivals(report: Report) -> dict:
    """Ten steps of each rival: are the losses finite, and how long does one take?"""
    found = {}
    for name, (module, model, losses, _) in bench_step.RIVALS.items():
        toy = TOY if report.args.dry_run else FULL
        settings = bench_step.settings_of(module.parser(), model, **toy)
        settings.precision = settings.precision or options.best_precision(report.device)
        for stage, (loss, compilable) in enumerate(losses, 1):
            loss = loss if stage == 1 or not report.args.dry_run else bench_step.dverge.DvergeLoss()
            net = bench_step.build(settings, report.device)
            step = bench_step.our_step(loss, net, settings, compilable=compilable)
            values = [float(step(report.x, report.y)) for _ in range(10)]
            seconds = bench_step.seconds(step, report.x, report.y)
            found[f"{name} {stage}"] = {"losses": values, "seconds": seconds}
    return found


def tests(report: Report) -> dict:
    """The tests that need a GPU."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    words += ["experiments/test_speed.py", "-k", "cuda_graph"]
    limit = max(1, min(240, report.left()))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {done.stdout[-1500:]}")
    return {"output": done.stdout[-3000:]}


# ----------------------------------------------------------------- parts 2 and 3: the paper's run


def trained(report: Report) -> dict:
    """The run at eps 0.03, n = 3, or as much of it as the limit allows; resumed where it is."""
    chosen, folder = best(report), report.out / "run"
    flags = TOY_RUN if report.args.dry_run else list(RUN)
    if not report.args.dry_run and chosen["minutes"] > report.args.minutes:
        flags.append(f"--epochs={int(100 * report.args.minutes / chosen['minutes'])}")
    stop = threading.Timer(max(1, report.left()), os.kill, (os.getpid(), signal.SIGINT))
    stop.start()
    status, begun, data_name = 0, time.monotonic(), report.args.data
    try:
        with mock.patch.dict(speed.SWITCHES, chosen["switches"]):
            train_or_resume(train_collab.main, folder, data_name, report.args.device, flags)
    except SystemExit as ended:
        status = ended.code
        if status != 130:  # as after Ctrl-C: the rest is for part 3
            raise
    finally:
        stop.cancel()
    found = chosen | {"flags": flags, "status": status, "wall": time.monotonic() - begun}
    if (folder / "model.pt").exists():
        found["history"] = files.load_checkpoint(folder)["history"]
    if (folder / "metrics.json").exists():
        found["metrics"] = json.loads((folder / "metrics.json").read_text())
    return found


def finished(report: Report) -> dict:
    """Part 3 resumes what part 2 was stopped in. Raises ValueError where that does not finish."""
    found = trained(report)
    if "metrics" not in found:
        raise ValueError(
            f"not finished: status {found['status']}, {len(found.get('history', []))} epochs"
        )
    return found


def evaluated(report: Report) -> dict:
    """The finished run under the attacks that decide, 5,000 queries of Square."""
    folder = report.out / "run"
    flags = ["--images", "20", "--steps", "2", "--queries", "5"] if report.args.dry_run else []
    evaluate.main([str(folder), "--queries", "5000", *flags, "--device", str(report.device)])
    return json.loads(max(folder.glob("attacks*.json"), key=os.path.getmtime).read_text())


def benchmark(report: Report) -> dict:
    """bench_step as it stands: the plain way, ours, the rivals."""
    path = report.out / "bench_step.json"
    path.unlink(missing_ok=True)
    with mock.patch.dict(speed.SWITCHES, best(report)["switches"]):
        bench_step.main(["--repeats", "3", "--device", str(report.device), "--out", str(path)])
    return json.loads(path.read_text())


SWITCHES = tuple(speed.SWITCHES.items())
PARTS = {
    1: {
        "machine": machine,
        "a graph without compile": switches({}, compile_=False),
        "switches as they are": switches({}),
        **{f"switches with {name} turned": switches({name: not on}) for name, on in SWITCHES},
        "switches that help, together": all_helpful,
        "profile": profile,
        "rivals": rivals,
        "tests": tests,
    },
    2: {"run": trained},
    3: {"run, resumed": finished, "evaluation": evaluated, "benchmark": benchmark},
}


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.gpu_report")
    add = parser.add_argument
    add("--part", type=int, choices=PARTS, required=True, help="which of the three")
    add("--out", required=True, metavar="DIR", help="the folder of all three parts")
    add("--limit", type=options.positive, default=600, help="seconds")
    what = "of the whole run at most; else fewer epochs"
    add("--minutes", type=options.positive, default=16, help=what)
    add("--data", default="cifar10", help="as in training")
    add("--dry-run", action="store_true", help="everything at toy size")
    options.add_device(parser)
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        report = Report(args)
        sections = dict(PARTS[args.part])
        if args.dry_run and args.part == 3:
            del sections["benchmark"]  # it has no toy size
        if not report.run(sections):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
