"""Times one training step of each stage against the plain way of writing it, and against rivals.

    python -m experiments.bench_step

Batch 128, images of 3 x 32 x 32, three ResNet20s, PGD-10, clean + adversarial loss, SGD step. The
plain way is written out below: float32, contiguous tensors, and in every step of the attack a
loss.backward() that fills the gradients of the weights as well. The two alternate in one process;
the last two lines hold the medians in seconds. In units of one expert's forward pass (a backward
pass for input or weights alone counts 1, for both 2), a stage-1 step costs 126 plainly and 96 here;
a stage-2 step 108 plainly and 78 here, 68 on a CPU, where only the answering expert is attacked.

With --ablate the ways down from the one to the other are timed one after the other.

Above them, for each method of baselines/: its step as a ratio to SoE's, the mean of both stages
where there are two, in the same run, beside the ratio of the hours in the paper's Table 1.
"""

import argparse
import math
import platform
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infer
import train_submodel
from baselines import adp, dverge, gal, more, plain
from experiments.compare import passes_of_a_batch
from support import options
from train_collab import stage2_loss
from train_submodel import TrainingLoss, stage1_loss

SETTINGS = Namespace(
    **{name: default for name, (default, *_) in options.OPTIONS.items()}, method="soe"
)
SETTINGS.alpha, SETTINGS.image_shape, SETTINGS.num_classes = SETTINGS.eps / 3, [3, 32, 32], 10
SETTINGS.steps_per_epoch = 1
RIVALS = {  # name: module, its stages' losses, hours in Table 1 over SoE's
    "plain": (plain, [plain.plain_loss], None),
    "adp": (adp, [adp.adp_loss], 6.58 / 7.38),
    "gal": (gal, [gal.gal_loss], 6.6 / 7.38),
    "more": (more, [more.more_loss], 7.02 / 7.38),
    "dverge": (dverge, [plain.plain_loss, dverge.dverge_loss], 11.67 / 7.38),
}


def plain_pgd(predict: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The attack as one would first write it: [B, C, H, W] -> [B, C, H, W]."""
    x_adv = x.clone()
    for _ in range(SETTINGS.steps):
        x_adv.requires_grad_(True)
        F.cross_entropy(predict(x_adv), y).backward()
        with torch.no_grad():
            x_adv = x_adv + SETTINGS.alpha * x_adv.grad.sign()
            x_adv = torch.clamp(x_adv, x - SETTINGS.eps, x + SETTINGS.eps).clamp(0, 1)
    return x_adv


def plain_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The mean of train_submodel.sample_loss over a batch, expert by expert."""
    losses, bces = [], []
    for expert in model.experts:
        logits, e = expert(x)
        loss = F.cross_entropy(logits, y, reduction="none")
        losses.append(loss)
        target = torch.exp(-loss).detach()
        bces.append(F.binary_cross_entropy_with_logits(e, target, reduction="none"))
    best = -SETTINGS.sigma * torch.logsumexp(-torch.stack(losses) / SETTINGS.sigma, 0)
    return (best + SETTINGS.lambda_ * torch.stack(bces).mean(0)).mean()


def plain_collaboration(model: nn.Module, x: Tensor) -> Tensor:
    outputs = [expert(x) for expert in model.experts]
    logits, e = torch.stack([o[0] for o in outputs]), torch.stack([o[1] for o in outputs])
    return logits[e.argmax(0), torch.arange(len(x), device=x.device)]


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, stage: int) -> Callable:
    def step(x: Tensor, y: Tensor) -> None:
        model.eval()
        if stage == 1:
            x_adv = torch.cat(
                [plain_pgd(lambda z, e=expert: e(z)[0], x, y) for expert in model.experts]
            )
        else:
            x_adv = plain_pgd(lambda z: plain_collaboration(model, z), x, y)
        model.train()
        optimizer.zero_grad()
        (SETTINGS.n * plain_loss(model, x, y)).backward()
        (SETTINGS.n * plain_loss(model, x_adv, y.repeat(len(x_adv) // len(x)))).backward()
        optimizer.step()

    return step


def our_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: TrainingLoss, settings: Namespace
) -> Callable:
    """What train_submodel.train's loop does with a batch."""
    forward_and_backward = train_submodel.forward_and_backward(model, loss, settings)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        forward_and_backward(x, y)
        optimizer.step()

    return step


def ablation(x: Tensor, y: Tensor, repeats: int) -> None:
    """Prints the seconds of a step of each stage, one way down after the other."""
    device = x.device
    ways = {"input gradients alone": ("float32", False, False)}
    ways["+ channels-last"] = ("float32", True, False)
    ways["+ bfloat16"] = (SETTINGS.precision, True, False)
    ways["+ compiled, or gathered on a CPU"] = (SETTINGS.precision, True, True)
    print(f"{'':34}{'stage 1':>9}{'stage 2':>9}")
    for name, (precision, channels_last, last) in ways.items():
        medians = []
        for make in (stage1_loss, stage2_loss):
            model = infer.build(vars(SETTINGS)).to(device)
            if channels_last:
                model.to(memory_format=torch.channels_last)
                x = x.contiguous(memory_format=torch.channels_last)
            if not last:
                model.forward = lambda z, m=model: m.combine(*m.all_experts(z))
            fast = SETTINGS.compile if last else False
            settings = Namespace(**vars(SETTINGS) | {"precision": precision, "compile": fast})
            optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
            step = our_step(model, optimizer, make(model, settings), settings)
            seconds(step, x, y)  # warms up
            medians.append(statistics.median(seconds(step, x, y) for _ in range(repeats)))
        print(f"{name:34}" + "".join(f"{median:9.2f}" for median in medians), flush=True)


def rival_steps(device: torch.device) -> dict[tuple[str, int], Callable]:
    """{(name, stage): a step of a method of baselines/}."""
    steps = {}
    for name, (module, losses, _) in RIVALS.items():
        own = {k: v for k, v in module.PARSER.defaults.items() if v is not None}
        settings = Namespace(**vars(SETTINGS) | own | {"method": name})
        for stage, make in enumerate(losses, 1):
            model = infer.build(vars(settings)).to(device, memory_format=torch.channels_last)
            optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
            steps[name, stage] = our_step(model, optimizer, make(model, settings), settings)
    return steps


def seconds(step: Callable, x: Tensor, y: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(x, y)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measured_limits(device: torch.device, precision: str) -> tuple[float, float]:
    """What this device reaches at best: multiply-adds a second, and bytes moved a second."""
    size, dtype = (8192 if device.type == "cuda" else 2048), getattr(torch, precision)
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.zeros(2**27, device=device)  # 512 MiB, read and written
    multiplying = min(seconds(lambda *_: a @ a, a, a) for _ in range(6))
    moving = min(seconds(lambda *_: b.add_(1), b, b) for _ in range(6))
    return size**3 / multiplying, 2 * 4 * 2**27 / moving


def units(stage: int, M: int, S: int, gathered: bool = False) -> int:
    """The cost of a step for each image of the batch, in one expert's forward passes."""
    if stage == 1:
        return 2 * M * S + 3 * (M + M**2)
    attack = M * S + 2 * S if gathered and M > 1 else 2 * M * S
    return attack + 6 * M


def limit_seconds(stage: int, multiply_adds: float, bytes_moved: float) -> float:
    """The time that a dense step would take, were all of it multiplying, or moving its maps.

    A unit of an image costs 41 million multiply-adds, and a pass of forward and backward moves some
    3 MB in bfloat16 with element-wise work fused, twice as much in float32.
    """
    M, S, images = SETTINGS.n, SETTINGS.steps, SETTINGS.batch_size
    per_pass = 3e6 if SETTINGS.precision == "bfloat16" else 6e6
    multiplying = images * units(stage, M, S) * 41e6 / multiply_adds
    moving = images * passes_of_a_batch("soe", M, S)[stage] * per_pass / bytes_moved
    return max(multiplying, moving)


def peak_gib(device: torch.device) -> float:
    """Peak memory so far, in GiB: the GPU's, or this process's on a CPU; nan on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    if sys.platform == "win32":
        return math.nan
    import resource

    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(__doc__, prog="-m experiments.bench_step")
    parser.add_argument("--ablate", action="store_true", help="time each way down by itself")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each (default: 5)")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the first that is there)")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], help="of our steps")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="ours (default: on a GPU)"
    )
    args = parser.parse_args(argv)
    try:
        device = options.pick_device(args.device)
        if args.repeats < 1:
            raise ValueError(f"--repeats is {args.repeats}: it must be at least 1")
    except ValueError as error:
        parser.error(error)
    precision = SETTINGS.precision = args.precision or options.best_precision(device)
    SETTINGS.compile = args.compile if args.compile is not None else device.type == "cuda"
    print(
        f"{options.device_name(device)}, {precision}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
    torch.manual_seed(0)
    x = torch.rand(SETTINGS.batch_size, *SETTINGS.image_shape, device=device)
    y = torch.randint(SETTINGS.num_classes, (SETTINGS.batch_size,), device=device)
    if args.ablate:
        ablation(x, y, args.repeats)
        return 0
    steps, x_last = {}, x.contiguous(memory_format=torch.channels_last)
    for stage in (1, 2):
        for way in ("plain", "ours"):
            model = infer.build(vars(SETTINGS)).to(device)
            optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
            if way == "ours":
                model.to(memory_format=torch.channels_last)
                loss = (stage1_loss if stage == 1 else stage2_loss)(model, SETTINGS)
                steps[stage, way] = our_step(model, optimizer, loss, SETTINGS)
            else:
                steps[stage, way] = plain_step(model, optimizer, stage)
    times = {key: [] for key in steps}
    for way in ("ours", "plain"):
        for stage in (1, 2):
            seconds(steps[stage, way], x if way == "plain" else x_last, y)  # warms up
        who = "ours" if way == "ours" else "both ways"
        print(f"peak memory, {who}: {peak_gib(device):.2f} GiB")
    rivals = rival_steps(device)
    times |= {key: [] for key in rivals}
    for step in rivals.values():
        seconds(step, x_last, y)  # warms up
    for _ in range(args.repeats):
        for key, step in (steps | rivals).items():
            times[key].append(seconds(step, x if key[1] == "plain" else x_last, y))
    soe = statistics.mean(statistics.median(times[stage, "ours"]) for stage in (1, 2))
    print(f"{'':10}{'seconds':>9}{'to SoE':>9}{'Table 1':>9}")
    print(f"{'SoE':10}{soe:9.2f}{1:9.2f}{1:9.2f}")
    for name, (_, losses, in_paper) in RIVALS.items():
        stages = range(1, len(losses) + 1)
        mine = statistics.mean(statistics.median(times[name, stage]) for stage in stages)
        print(f"{name:10}{mine:9.2f}{mine / soe:9.2f}" + (f"{in_paper:9.2f}" if in_paper else ""))
    limits = measured_limits(device, precision)
    print(f"{'':8}{'images/s':>10}{'of the limit':>14}")
    for stage in (1, 2):
        ours = statistics.median(times[stage, "ours"])
        of_limit = limit_seconds(stage, *limits) / ours
        print(f"stage{stage:<3}{SETTINGS.batch_size / ours:10.0f}{of_limit:14.1%}")
    for stage in (1, 2):
        plain, ours = (statistics.median(times[stage, way]) for way in ("plain", "ours"))
        print(f"stage{stage} plain {plain:.2f} ours {ours:.2f} ratio {plain / ours:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
