"""Times one training step of each stage against the plain way of writing it, and against rivals.

    python -m experiments.bench_step

Batch 128, images of 3 x 32 x 32, three ResNet20s, PGD-10, clean + adversarial loss, SGD step. The
plain way is written out below: float32, contiguous tensors, and in every step of the attack a
loss.backward() that fills the gradients of the weights as well. The two alternate in one process;
the last two lines hold the medians in seconds. In units of one expert's forward pass (a backward
pass for input or weights alone counts 1, for both 2), a stage-1 step costs 126 plainly and 96 here;
a stage-2 step 108 plainly and 78 here, 68 on a CPU, where only the answering expert is attacked.

Above them, for each method of baselines/: its step as a ratio to SoE's, the mean of both stages
where there are two, in the same run, beside the ratio of the hours in the paper's Table 1.
"""

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
from baselines import adp, dverge, gal, more, plain
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
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: TrainingLoss, precision: str
) -> Callable:
    """The body of train_submodel.train's loop."""
    device = next(model.parameters()).device
    low = precision == "bfloat16"

    def step(x: Tensor, y: Tensor) -> None:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=low, cache_enabled=False):
            batch_loss = loss(x, y)
        optimizer.zero_grad()
        batch_loss.backward()
        optimizer.step()

    return step


def rival_steps(device: torch.device, precision: str) -> dict[tuple[str, int], Callable]:
    """{(name, stage): a step of a method of baselines/}."""
    steps = {}
    for name, (module, losses, _) in RIVALS.items():
        own = {k: v for k, v in module.PARSER.defaults.items() if v is not None}
        settings = Namespace(**vars(SETTINGS) | own | {"method": name})
        for stage, make in enumerate(losses, 1):
            model = infer.build(vars(settings)).to(device, memory_format=torch.channels_last)
            optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
            its_precision = settings.precision or precision
            steps[name, stage] = our_step(model, optimizer, make(model, settings), its_precision)
    return steps


def seconds(step: Callable, x: Tensor, y: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(x, y)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of the GPU's memory"
    if sys.platform == "win32":
        return "not measured on Windows"
    import resource

    unit = 2**30 if sys.platform == "darwin" else 2**20
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.2f} GiB of RAM"


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(__doc__, prog="-m experiments.bench_step")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each (default: 5)")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the first that is there)")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], help="of our steps")
    args = parser.parse_args(argv)
    try:
        device = options.pick_device(args.device)
        if args.repeats < 1:
            raise ValueError(f"--repeats is {args.repeats}: it must be at least 1")
    except ValueError as error:
        parser.error(error)
    precision = args.precision or options.best_precision(device)
    print(
        f"{options.device_name(device)}, {precision}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
    torch.manual_seed(0)
    x = torch.rand(SETTINGS.batch_size, *SETTINGS.image_shape, device=device)
    y = torch.randint(SETTINGS.num_classes, (SETTINGS.batch_size,), device=device)
    steps = {}
    for stage in (1, 2):
        for way in ("plain", "ours"):
            model = infer.build(vars(SETTINGS)).to(device)
            optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
            if way == "ours":
                model.to(memory_format=torch.channels_last)
                loss = (stage1_loss if stage == 1 else stage2_loss)(model, SETTINGS)
                steps[stage, way] = our_step(model, optimizer, loss, precision)
            else:
                steps[stage, way] = plain_step(model, optimizer, stage)
    times = {key: [] for key in steps}
    for way in ("ours", "plain"):
        for stage in (1, 2):
            seconds(steps[stage, way], x, y)  # warms up
        print(f"peak memory, {'ours' if way == 'ours' else 'both ways'}: {peak_memory(device)}")
    rivals = rival_steps(device, precision)
    times |= {key: [] for key in rivals}
    for step in rivals.values():
        seconds(step, x, y)  # warms up
    for _ in range(args.repeats):
        for key, step in (steps | rivals).items():
            times[key].append(seconds(step, x, y))
    soe = statistics.mean(statistics.median(times[stage, "ours"]) for stage in (1, 2))
    print(f"{'':10}{'seconds':>9}{'to SoE':>9}{'Table 1':>9}")
    print(f"{'SoE':10}{soe:9.2f}{1:9.2f}{1:9.2f}")
    for name, (_, losses, in_paper) in RIVALS.items():
        stages = range(1, len(losses) + 1)
        mine = statistics.mean(statistics.median(times[name, stage]) for stage in stages)
        print(f"{name:10}{mine:9.2f}{mine / soe:9.2f}" + (f"{in_paper:9.2f}" if in_paper else ""))
    for stage in (1, 2):
        plain, ours = (statistics.median(times[stage, way]) for way in ("plain", "ours"))
        print(f"stage{stage} plain {plain:.2f} ours {ours:.2f} ratio {plain / ours:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
