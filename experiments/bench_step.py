"""Times one training step of each method, and of the plain way of writing SoE's.

    python -m experiments.bench_step             # every method's step beside SoE's
    python -m experiments.bench_step --ablate    # SoE's speed-ups, added one at a time

Batch 128, images of 3 x 32 x 32, three ResNet20s, PGD-10, clean and attacked images, SGD. The plain
way is written out below: float32, contiguous tensors, and a loss.backward() in every step of the
attack, which fills the gradients of the weights as well. All steps take turns in one process, and
the table holds their medians.

A unit is one expert's forward pass; a backward pass for the input costs one unit, and one for the
weights another. A step of stage 1 costs 126 units plainly and 96 here; one of stage 2 costs 108
plainly and 78 here, or 68 on a CPU, where the attack differentiates the answering expert alone.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.methods import METHODS, Method
from baselines.models import build
from experiments import machine, results
from support import files, options, speed
from train_submodel import Settings, TrainingLoss, sample_loss

Step = Callable[[Tensor, Tensor], object]  # x [B, C, H, W], y [B]: one step of training
Steps = dict[tuple[str, int], Step]  # {(name, stage): step}
Times = dict[tuple[str, int], float]  # {(name, stage): seconds of a step}
RIVALS = ("plain", "adp", "gal", "more", "dverge")


def settings_of(method: Method, **changed) -> Settings:
    """The defaults of a training script, at the paper's size."""
    settings = method.settings()
    size = {"image_shape": [3, 32, 32], "num_classes": 10, "steps_per_epoch": 1}
    vars(settings).update(size, model=method.model, alpha=settings.eps / 3)
    vars(settings).update(changed)
    return settings


def random_batch(settings: Settings, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W], channels last as in training, and labels [B]."""
    torch.manual_seed(0)
    x = torch.rand(settings.batch_size, *settings.image_shape, device=device)
    y = torch.randint(settings.num_classes, (settings.batch_size,), device=device)
    return x.contiguous(memory_format=torch.channels_last), y


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


def plain_step(stage: int, s: Settings, device: torch.device) -> Step:
    """SoE's step of a stage, of a model of its own."""
    model = build(vars(s)).to(device)
    targets = [expert.logits for expert in model.experts] if stage == 1 else [model]
    optimizer = sgd(model)

    def step(x: Tensor, y: Tensor) -> None:
        x = x.contiguous()
        model.eval()
        x_adv = torch.cat([plain_pgd(target, x, y, s) for target in targets])
        model.train()
        optimizer.zero_grad()
        (s.n * sample_loss(model, x, y, s).mean()).backward()
        (s.n * sample_loss(model, x_adv, y.repeat(len(targets)), s).mean()).backward()
        optimizer.step()

    return step


# ----------------------------------------------------------------------------------------- our way


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of every step here."""
    return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)


def our_step(
    loss: TrainingLoss, model: nn.Module, settings: Settings, compilable: bool = True
) -> Step:
    """What train_submodel.train's loop does with a batch."""
    device, optimizer = next(model.parameters()).device, sgd(model)

    def forward_and_backward(x: Tensor, y: Tensor) -> Tensor:
        with speed.autocast(device, settings):
            batch_loss = loss(model, x, y, settings)
        batch_loss.backward()
        return batch_loss.detach()

    fast = speed.accelerate(forward_and_backward, model, settings, compilable)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        batch_loss = fast(x, y)
        optimizer.step()
        return batch_loss

    return step


# ------------------------------------------------------------------------------------------- times


def seconds(step: Step, x: Tensor, y: Tensor) -> float:
    begun = time.perf_counter()
    step(x, y)
    if not x.is_cpu:
        torch.accelerator.synchronize()
    return time.perf_counter() - begun


def medians(steps: Steps, x: Tensor, y: Tensor, repeats: int) -> Times:
    """All take turns `repeats` times, after a turn to warm up."""
    turns = [{k: seconds(step, x, y) for k, step in steps.items()} for _ in range(1 + repeats)]
    return {key: statistics.median(turn[key] for turn in turns[1:]) for key in steps}


def plain_steps(name: str, s: Settings, device: torch.device) -> Steps:
    """SoE's steps, written plainly."""
    return {(name, stage): plain_step(stage, s, device) for stage in (1, 2)}


def our_steps(name: str, method: Method, settings: Settings, device: torch.device) -> Steps:
    """A method's steps, each of a model of its own."""
    steps = {}
    for stage, loss in enumerate(method.losses, 1):
        model = build(vars(settings)).to(device, memory_format=torch.channels_last)
        steps[name, stage] = our_step(loss, model, settings, stage not in method.not_compiled)
    return steps


def times_of_methods(s: Settings, x: Tensor, y: Tensor, repeats: int) -> Times:
    """SoE at these settings, our way and the plain way, and its rivals."""
    METHODS["dverge"].losses[1].layer = s.depth // 2  # its cost is the mean of all layers'
    steps = our_steps("soe", METHODS["soe"], s, x.device) | plain_steps("plain way", s, x.device)
    for name in RIVALS:
        settings = settings_of(METHODS[name], compile=s.compile)
        settings.precision = settings.precision or s.precision  # GAL has float32
        steps |= our_steps(name, METHODS[name], settings, x.device)
    return medians(steps, x, y, repeats)


def speed_ups(device: torch.device) -> dict[str, tuple[str, ...]]:
    """{name: what is on from there on}: of speed.SWITCHES, and the settings graph and compile."""
    if device.type != "cuda":
        return {"+ batch norm folded": ("fold",), "+ the answering expert alone": ("gather",)}
    return {
        "+ one CUDA graph, cuDNN's benchmark": ("graph", "benchmark"),
        "+ compiled": ("compile", "heads"),
        "+ a stream for each expert": ("streams",),
        "+ combo kernels": ("combo_kernels",),
        "+ max_autotune, which training leaves out": ("max_autotune",),
    }


def ablation(s: Settings, x: Tensor, y: Tensor, repeats: int) -> Times:
    """SoE's step the plain way, then our way with one of `speed_ups` more each time."""
    times, switched_on = medians(plain_steps("the plain way", s, x.device), x, y, repeats), set()
    first = f"input gradients alone, channels-last, {s.precision}"
    for name, switches in ({first: ()} | speed_ups(x.device)).items():
        switched_on.update(switches)
        s.compile, s.graph = "compile" in switched_on, "graph" in switched_on
        with mock.patch.dict(speed.SWITCHES, {key: key in switched_on for key in speed.SWITCHES}):
            times |= medians(our_steps(name, METHODS["soe"], s, x.device), x, y, repeats)
    return times


# ----------------------------------------------------------------------------------- the command


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.bench_step")
    add = parser.add_argument
    add("--ablate", action="store_true", help="add SoE's speed-ups one at a time")
    add("--repeats", type=options.count, default=5, help="timed steps of each")
    options.add_device(parser)
    add("--out", metavar="FILE", help="also write the times to this .json file")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        device = options.pick_device(args.device)
        if args.out:
            files.check_new(Path(args.out), ".json", "--out")
        precision = options.best_precision(device)
        s = settings_of(METHODS["soe"], precision=precision, compile=device.type == "cuda")
        content = {"command": vars(args), **machine(device), "settings": dict(vars(s))}
        print(f"{content['device']}, {precision}, torch {torch.__version__}\n")
        x, y = random_batch(s, device)
        times = (ablation if args.ablate else times_of_methods)(s, x, y, args.repeats)
        seconds_of = {name: {} for name, _ in times}
        for (name, stage), median in times.items():
            seconds_of[name][stage] = median
        if args.ablate:
            content["ways"] = {name: [*stages.values()] for name, stages in seconds_of.items()}
        else:
            content["seconds"] = seconds_of
        table = results.ways if args.ablate else results.steps
        print(table(pd.DataFrame({"record": [content]})))
        if args.out:
            files.write(Path(args.out), json.dumps(content).encode())


if __name__ == "__main__":
    main()
