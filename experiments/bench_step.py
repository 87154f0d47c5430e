"""Times one training step of each stage against the plain way of writing it, and against rivals.

    python -m experiments.bench_step

Batch 128, images of 3 x 32 x 32, three ResNet20s, PGD-10, clean + adversarial loss, SGD step. The
plain way is written out below: float32, contiguous tensors, and in every step of the attack a
loss.backward() that fills the gradients of the weights as well. The two alternate in one process;
the last two lines hold the medians. In units of one expert's forward pass (a backward
pass for input or weights alone counts 1, for both 2), a stage-1 step costs 126 plainly and 96 here;
a stage-2 step 108 plainly and 78 here, 68 on a CPU, where only the answering expert is attacked.

Above them, for each method of baselines/: its step as a ratio to SoE's, the mean of both stages
where there are two, in the same run, beside the ratio of the hours in the paper's Table 1.

With --ablate the speed-ups from the one to the other are added and timed one at a time. On a GPU a
time is the mean of up to 50 steps between two CUDA events.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.methods import METHODS, Method
from baselines.models import build
from experiments.compare import units_of_a_batch
from experiments.results import PAPER
from support import files, options, speed
from support.printing import duration
from train_submodel import Settings, TrainingLoss

Step = Callable[[Tensor, Tensor], object]  # x [B, C, H, W], y [B]: one step of training
STAGES = dict(enumerate(METHODS["soe"].losses, 1))
HOURS = PAPER["table 1"]
RIVALS = ("plain", "adp", "gal", "more", "dverge")


def settings_of(method: Method, **changed) -> Settings:
    """The defaults of a training script, at the paper's size."""
    settings = method.settings()
    size = {"image_shape": [3, 32, 32], "num_classes": 10, "steps_per_epoch": 1}
    vars(settings).update(size, model=method.model, alpha=settings.eps / 3)
    vars(settings).update({name: v for name, v in changed.items() if v is not None})
    return settings


def soe_settings(**changed) -> Settings:
    return settings_of(METHODS["soe"], **changed)


# ---------------------------------------------------------------------------------- the plain way


def plain_pgd(predict: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, s: Settings) -> Tensor:
    """The attack as one would first write it: [B, C, H, W] -> [B, C, H, W]."""
    x_adv = x.clone()
    for _ in range(s.steps):
        x_adv.requires_grad_(True)
        F.cross_entropy(predict(x_adv), y).backward()
        with torch.no_grad():
            x_adv = x_adv + s.alpha * x_adv.grad.sign()
            x_adv = torch.clamp(x_adv, x - s.eps, x + s.eps).clamp(0, 1)
    return x_adv


def plain_loss(model: nn.Module, x: Tensor, y: Tensor, s: Settings) -> Tensor:
    """The mean of train_submodel.sample_loss over a batch, expert by expert."""
    losses, bces = [], []
    for expert in model.experts:
        logits, g_logit = expert(x)
        loss = F.cross_entropy(logits, y, reduction="none")
        losses.append(loss)
        target = torch.exp(-loss).detach()
        bces.append(F.binary_cross_entropy_with_logits(g_logit, target, reduction="none"))
    best = -s.sigma * torch.logsumexp(-torch.stack(losses) / s.sigma, 0)
    return (best + s.lambda_ * torch.stack(bces).mean(0)).mean()


def plain_collaboration(model: nn.Module, x: Tensor) -> Tensor:
    logits, g_logit = map(torch.stack, zip(*(expert(x) for expert in model.experts)))
    return logits[g_logit.argmax(0), torch.arange(len(x), device=x.device)]


def plain_step(model: nn.Module, stage: int, s: Settings) -> Step:
    optimizer = sgd(model)

    def step(x: Tensor, y: Tensor) -> None:
        model.eval()
        if stage == 1:
            attacked = [plain_pgd(expert.logits, x, y, s) for expert in model.experts]
        else:
            attacked = [plain_pgd(lambda z: plain_collaboration(model, z), x, y, s)]
        model.train()
        optimizer.zero_grad()
        (s.n * plain_loss(model, x, y, s)).backward()
        (s.n * plain_loss(model, torch.cat(attacked), y.repeat(len(attacked)), s)).backward()
        optimizer.step()

    return step


# ----------------------------------------------------------------------------------------- our way


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)


def build_on(device: torch.device, settings: Settings) -> nn.Module:
    """The model as support/runs.py makes it."""
    return build(vars(settings)).to(device, memory_format=torch.channels_last)


def our_step(loss: TrainingLoss, model: nn.Module, settings: Settings, **how) -> Step:
    """What train_submodel.train's loop does with a batch."""
    device, optimizer = next(model.parameters()).device, sgd(model)

    def forward_and_backward(x: Tensor, y: Tensor) -> Tensor:
        with speed.autocast(device, settings):
            batch_loss = loss(model, x, y, settings)
        batch_loss.backward()
        return batch_loss.detach()

    fast = speed.accelerate(forward_and_backward, model, settings, **how)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        batch_loss = fast(x, y)
        optimizer.step()
        return batch_loss

    return step


def combine_by_indexing(logits: Tensor, score: Tensor) -> Tensor:
    """Collaboration.combine as one would first write it; its backward pass sorts."""
    answering = score.argmax(0)  # [B]
    return logits[answering, torch.arange(len(answering), device=answering.device)]


def ways_down(device: torch.device, settings: Settings) -> dict[str, dict]:
    """{name: what is changed from there on}: a setting, or one of speed.SWITCHES, or of our own."""
    ways = {"input gradients alone": {}, "+ channels-last": {"layout": torch.channels_last}}
    ways["+ bfloat16"] = {"precision": settings.precision}
    ways["+ the answer taken without indexing"] = {"indexing": False}
    if device.type == "cpu":
        ways["+ gathered"] = {"gather": True}
    else:
        ways["+ one CUDA graph"] = {"graph": True}
        ways["+ cuDNN's benchmark"] = {"benchmark": True}
    if settings.compile:
        ways["+ compiled"] = {"compile": True}
        ways["+ heads compiled as well"] = {"heads": True}
    if settings.compile and device.type != "cpu":
        ways["+ combo kernels"] = {"combo_kernels": True}
    if device.type != "cpu":
        ways["+ a stream for each expert"] = {"streams": True}
    return ways


def ablation(x: Tensor, y: Tensor, settings: Settings, repeats: int) -> dict[str, list[float]]:
    """Prints and returns the seconds of a step of each stage, one way down after the other."""
    found, ours = {}, {"layout": torch.contiguous_format, "indexing": True}
    off = {"precision": "float32", "compile": False, "graph": False}
    now, switches = Namespace(**vars(settings) | off), dict.fromkeys(speed.SWITCHES, False)
    print(f"{'':36}{'stage 1':>10}{'stage 2':>10}")
    for name, changed in ways_down(x.device, settings).items():
        for of in (ours, switches, vars(now)):
            of.update({key: value for key, value in changed.items() if key in of})
        found[name] = []
        with mock.patch.dict(speed.SWITCHES, switches):
            for loss in STAGES.values():
                model = build(vars(now)).to(x.device, memory_format=ours["layout"])
                if ours["indexing"]:
                    model.combine = combine_by_indexing
                step, z = our_step(loss, model, now), x.contiguous(memory_format=ours["layout"])
                seconds(step, z, y)  # warms up
                times = [seconds(step, z, y) for _ in range(repeats)]
                found[name].append(statistics.median(times))
        print(f"{name:36}" + "".join(f"{duration(t):>10}" for t in found[name]), flush=True)
    return found


# -------------------------------------------------------------------------------- time and memory


def seconds(step: Step, x: Tensor, y: Tensor) -> float:
    """Of one step; on a GPU the mean of 50, or of as many as a second holds, by CUDA events."""
    if not x.is_cuda:
        begun = time.perf_counter()
        step(x, y)
        return time.perf_counter() - begun

    def mean_of(steps: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(steps):
            step(x, y)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / steps

    return mean_of(max(1, min(50, int(1 / mean_of(1)))))


def measured_limits(device: torch.device, precision: str) -> tuple[float, float]:
    """What this device reaches at best: multiply-adds a second, and bytes moved a second."""
    size, dtype = (8192 if device.type == "cuda" else 2048), getattr(torch, precision)
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.zeros(2**27, device=device)  # 512 MiB, read and written
    multiplying = min(seconds(lambda *_: a @ a, a, a) for _ in range(6))
    moving = min(seconds(lambda *_: b.add_(1), b, b) for _ in range(6))
    return size**3 / multiplying, 2 * 4 * 2**27 / moving


def units(stage: int, M: int, S: int, gathered: bool = False) -> int:
    """The cost of a step for each image of the batch, in one expert's forward passes; gathered, an
    attack's step in stage 2 asks all experts, and one of them with gradients."""
    dense = units_of_a_batch("soe", M, S)[stage]
    return dense - M * S + 2 * S if gathered and stage == 2 and M > 1 else dense


def limit_seconds(stage: int, s: Settings, multiply_adds: float, bytes_moved: float) -> float:
    """The time that a dense step would take, were all of it multiplying, or moving its maps.

    A unit of an image costs 41 million multiply-adds, and moves some 1.5 MB in bfloat16 with
    element-wise work fused, twice as much in float32.
    """
    of_all = s.batch_size * units(stage, s.n, s.steps)
    moved = 1.5e6 if s.precision == "bfloat16" else 3e6
    return of_all * max(41e6 / multiply_adds, moved / bytes_moved)


def peak_gib(device: torch.device) -> float:
    """Peak memory so far, in GiB: the GPU's, or this process's on a CPU; nan on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved() / 2**30  # "allocated" leaves out graphs' pools
    if sys.platform == "win32":
        return math.nan
    import resource

    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.bench_step")
    add = parser.add_argument
    add("--ablate", action="store_true", help="add the speed-ups one at a time, and time each")
    add("--repeats", type=options.count, default=5, help="timed steps of each")
    options.add_device(parser)
    add("--precision", choices=("bfloat16", "float32"), help="of our steps")
    add("--compile", action=argparse.BooleanOptionalAction, help="ours (default: on a GPU)")
    add("--out", metavar="FILE", help="also write the figures to this .json file")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        run(args)


def run(args: Namespace) -> None:
    """What `main` does, once the arguments are parsed. Raises ValueError."""
    device = options.pick_device(args.device)
    if args.out:
        files.check_new(Path(args.out), ".json", "--out")
    precision = args.precision or options.best_precision(device)
    compile_ = device.type == "cuda" if args.compile is None else args.compile
    how = {"precision": precision, "compile": compile_}
    s = soe_settings(**how)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{options.device_name(device)}, {precision}, {versions}")
    torch.manual_seed(0)
    x = torch.rand(s.batch_size, *s.image_shape, device=device)
    y = torch.randint(s.num_classes, (s.batch_size,), device=device)
    if args.ablate:
        found = ablation(x, y, s, args.repeats)
        if args.out:
            content = about(args, device, s) | {"ways": found}
            files.write(Path(args.out), json.dumps(content).encode())
        return
    steps, times, x_last = {}, {}, x.contiguous(memory_format=torch.channels_last)

    def add(step: Step, *key) -> None:
        seconds(step, x if "plain way" in key else x_last, y)  # warms up
        steps[key], times[key] = step, []

    for stage, loss in STAGES.items():
        add(our_step(loss, build_on(device, s), s), "soe", stage)
    peak = {"ours": peak_gib(device)}
    print(f"peak memory, ours: {peak['ours']:.2f} GiB")
    for stage in STAGES:
        add(plain_step(build(vars(s)).to(device), stage, s), "plain way", stage)
    peak["both ways"] = peak_gib(device)
    print(f"peak memory, both ways: {peak['both ways']:.2f} GiB")
    METHODS["dverge"].losses[1].layer = 10  # the middle of ResNet20's, whose cost is their mean
    for name in RIVALS:
        rival = METHODS[name]
        theirs = settings_of(rival, compile=compile_)
        theirs.precision = theirs.precision or precision  # GAL has float32
        for stage, loss in enumerate(rival.losses, 1):
            compilable = stage not in rival.not_compiled
            step = our_step(loss, build_on(device, theirs), theirs, compilable=compilable)
            add(step, name, stage)
    for _ in range(args.repeats):
        for key, step in steps.items():
            times[key].append(seconds(step, x if "plain way" in key else x_last, y))
    medians = {key: statistics.median(values) for key, values in times.items()}

    def mean(method: str) -> float:
        return statistics.mean(t for (name, _), t in medians.items() if name == method)

    print(f"{'':10}{'step':>9}{'to SoE':>9}{'Table 1':>9}")
    in_papers = {m: HOURS[m] / HOURS["soe"] if m in HOURS else None for m in ("soe", *RIVALS)}
    for name, in_paper in in_papers.items():
        shown = f"{in_paper:9.2f}" if in_paper else ""
        print(f"{name:10}{duration(mean(name)):>9}{mean(name) / mean('soe'):9.2f}{shown}")
    limits = measured_limits(device, precision)
    print(f"{'':8}{'images/s':>10}{'of the limit':>14}")
    for stage in STAGES:
        ours = medians["soe", stage]
        of_limit = limit_seconds(stage, s, *limits) / ours
        print(f"stage{stage:<3}{s.batch_size / ours:10.0f}{of_limit:14.1%}")
    for stage in STAGES:
        plainly, ours = medians["plain way", stage], medians["soe", stage]
        times = f"plain {duration(plainly)} ours {duration(ours)}"
        print(f"stage{stage} {times} ratio {plainly / ours:.2f}")
    if args.out:
        seconds_of = {method: {} for method, _ in medians}
        for (method, stage), median in medians.items():
            seconds_of[method][stage] = median
        found = {"peak GiB": peak, "seconds": seconds_of, "table 1": in_papers}
        files.write(Path(args.out), json.dumps(about(args, device, s) | found).encode())


def about(args: Settings, device: torch.device, settings: Settings) -> dict:
    """What it takes to repeat a measurement."""
    return {
        "command": vars(args),
        "device": options.device_name(device),
        "threads": torch.get_num_threads(),
        "versions": options.versions(),
        "settings": vars(settings),
    }


if __name__ == "__main__":
    main()
