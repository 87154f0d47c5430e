"""A faster training step: bfloat16, compiled networks, one CUDA graph; on a CPU a faster attack.

On a GPU the experts are compiled and a whole step is captured as one CUDA graph. Where either
fails (no C compiler, say), steps run the plain way, and one line says so. On a CPU the attack sees
networks whose batch norms are folded into their convolutions.
"""

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models import Collaboration, ask_experts
from support import ranks
from support.options import RunSettings

Step = Callable[[Tensor, Tensor], Tensor]  # x [B, C, H, W], y [B] -> loss; fills every .grad

# What is switched on: two of them on a CPU, the others on a GPU, "heads" with --compile anywhere.
# `python -m experiments.bench_step --ablate` times each.
SWITCHES = {
    "heads": True,  # compiles normalisation and heads with the backbone: fewer, longer kernels
    "benchmark": True,  # cuDNN tries its convolutions and keeps the fastest
    "combo_kernels": True,  # puts independent element-wise work into one kernel
    "max_autotune": False,  # times kernels that fuse convolutions; off until a GPU has timed it
    "streams": True,  # the experts side by side, each on a stream of its own
    "fold": True,  # batch norm within the convolutions that are attacked
    "gather": True,  # under attack the answering expert alone runs with gradients
}


def autocast(device: torch.device, settings: RunSettings) -> torch.autocast:
    """Convolutions in settings.precision; the losses are float32, as their logits are."""
    # No cache of bfloat16 weights: in some versions one filled without gradients cuts them off.
    low = settings.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=low, cache_enabled=False)


def accelerate(
    step: Step,
    model: nn.Module,
    settings: RunSettings,
    compilable: bool = True,
    draw: Callable[[RunSettings], Any] = lambda settings: None,
) -> Step:
    """`step` itself, or the same with compiled networks, on a GPU as one CUDA graph.

    `compilable` is False for a loss that torch.compile cannot take. `draw` is called before each
    step and returns whatever the loss draws anew at times; a change of that captures a new graph.
    The step fills every .grad, which must be None before.
    """
    # float32 is meant, and so are the streams
    for true_and_meant in ("TensorFloat32 tensor cores", "The AccumulateGrad node's stream"):
        warnings.filterwarnings("ignore", true_and_meant)
    release(model)
    device, drawn = next(model.parameters()).device, {}
    compile_ = settings.compile
    if compile_ is None:  # on a GPU, where torch.compile has what it needs
        compile_ = device.type == "cuda" and find_spec("triton") is not None
    fast = compiled(step, model) if compile_ and compilable else step
    if device.type == "cuda" and settings.graph is not False:
        fast = replayed(fast, model, drawn)
    working = or_plainly(fast, step, model)

    def drawing(x: Tensor, y: Tensor) -> Tensor:
        drawn["now"] = draw(settings)
        return working(x, y)

    return drawing


def release(model: nn.Module) -> None:
    """Gives back the GPU memory of an earlier graph, in which the gradients lie."""
    model.zero_grad()
    torch.cuda.empty_cache()


def or_plainly(fast: Step, plain: Step, model: nn.Module) -> Step:
    """`fast`, or `plain` where the first call of `fast` fails, with one line that says so."""
    if fast is plain:
        return plain
    chosen = None

    def step(x: Tensor, y: Tensor) -> Tensor:
        nonlocal chosen
        if chosen is not None:
            return chosen(x, y)
        restore = restorer(model)
        try:
            loss = fast(x, y)
            chosen = fast
            return loss
        except RuntimeError as error:
            restore()
            chosen = plain
            if ranks.rank() == 0:
                why = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
                print(f"Steps are slower: no compiling, no CUDA graph ({why}).", file=sys.stderr)
        return plain(x, y)

    return step


def restorer(model: nn.Module) -> Callable[[], None]:
    """A function that restores batch norm's statistics and random numbers, and clears gradients."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    on_gpu = next(model.parameters()).is_cuda
    cpu, gpu = torch.get_rng_state(), torch.cuda.get_rng_state() if on_gpu else None

    def restore() -> None:
        for buffer, before in zip(model.buffers(), buffers):
            buffer.copy_(before)
        model.zero_grad()
        torch.set_rng_state(cpu)
        if on_gpu:
            torch.cuda.set_rng_state(gpu)

    return restore


# ----------------------------------------------------------------------------- compiled networks


def compiled(step: Step, model: nn.Module, **changes: Any) -> Step:
    """The same step with compiled experts. Outside of it, in evaluation say, they are not compiled.
    `changes` replace arguments of torch.compile."""
    # A mixture has a gate between features and answer: its features alone are compiled.
    whole = SWITCHES["heads"] and not hasattr(model, "gate")
    method = "forward" if whole else "features"
    on_gpu = next(model.parameters()).is_cuda
    names = [name for name in ("combo_kernels", "max_autotune") if SWITCHES[name] and on_gpu]
    options_ = dict.fromkeys(names, True) or None
    arguments = {"dynamic": False, "options": options_} | changes
    fast = [torch.compile(getattr(expert, method), **arguments) for expert in model.experts]

    def compiled_step(x: Tensor, y: Tensor) -> Tensor:
        # 64 and not 8: several depths in one process, each in train and eval mode
        with torch._dynamo.config.patch(recompile_limit=64):
            for expert, forward in zip(model.experts, fast):
                setattr(expert, method, forward)
            try:
                return step(x, y)
            finally:
                for expert in model.experts:
                    delattr(expert, method)

    return compiled_step


# --------------------------------------------------------------------------------- one CUDA graph


def replayed(step: Step, model: nn.Module, drawn: dict) -> Step:
    """`step` as one CUDA graph, captured at its first call and whenever `drawn` has changed.

    A step of the paper's size is thousands of kernels, most of them shorter than the time it takes
    to launch one from Python. Captured once, they are launched by one call. Shapes and everything
    that Python decides stay as they were in the captured step.
    """
    parameters, kept = list(model.parameters()), {}
    beside = experts_on_streams(model) if SWITCHES["streams"] else nullcontext

    def capture(x: Tensor, y: Tensor) -> None:
        kept["x"], kept["y"] = x.clone(memory_format=torch.preserve_format), y.clone()
        restore, graph = restorer(model), torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # cuDNN chooses its kernels, and memory is laid out
            for _ in range(3):
                model.zero_grad()
                step(kept["x"], kept["y"])
        torch.cuda.current_stream().wait_stream(side)
        restore()  # the statistics and random numbers of the trial steps do not count
        with torch.cuda.graph(graph):
            kept["loss"] = step(kept["x"], kept["y"])
        kept.update(graph=graph, gradients=[p.grad for p in parameters], drawn=dict(drawn))

    def replay(x: Tensor, y: Tensor) -> Tensor:
        if kept.get("drawn") != drawn:
            kept.clear()
            release(model)
            before = torch.backends.cudnn.benchmark
            torch.backends.cudnn.benchmark = SWITCHES["benchmark"]
            try:
                with beside():
                    capture(x, y)  # it records, and computes nothing
            finally:
                torch.backends.cudnn.benchmark = before
        kept["x"].copy_(x)
        kept["y"].copy_(y)
        kept["graph"].replay()
        for p, gradient in zip(parameters, kept["gradients"]):
            p.grad = gradient
        return kept["loss"]

    return replay


def experts_on_streams(model: nn.Module) -> Callable:
    """A context in which model.experts.side_by_side() yields each expert on its own CUDA stream.

    Each stream waits for the work before the loop, and the work after the loop waits for all
    streams. What takes from several experts, a sum above all, must stand after the loop."""
    streams = [torch.cuda.Stream() for _ in model.experts]  # the same in trial steps and capture

    def side_by_side() -> Iterator[nn.Module]:
        main = torch.cuda.current_stream()
        try:
            for expert, stream in zip(model.experts, streams):
                stream.wait_stream(main)
                with torch.cuda.stream(stream):
                    yield expert
        finally:
            for stream in streams:
                main.wait_stream(stream)

    @contextmanager
    def beside() -> Iterator[None]:
        model.experts.side_by_side = side_by_side
        try:
            yield
        finally:
            del model.experts.side_by_side

    return beside


# ------------------------------------------------------------------------- the attack, on a CPU


def for_attack(model: nn.Module) -> nn.Module:
    """What attacks see: `model`, or on a CPU in eval mode a copy that computes the same faster. The
    copy has the weights of now, so that each attack needs a new one."""
    on_cpu = all(weight.is_cpu for weight in model.parameters())
    compiled = any("forward" in vars(expert) for expert in model.experts)
    if not on_cpu or compiled or any(module.training for module in model.modules()):
        return model
    twin = folded(model) if SWITCHES["fold"] else copy.copy(model)
    methods = ("forward", "combine", "all_experts")
    algorithm1 = all(getattr(type(model), m, 0) is getattr(Collaboration, m) for m in methods)
    if SWITCHES["gather"] and algorithm1 and len(model.experts) > 1:
        twin.forward = partial(gathered_forward, twin)
    return twin


@torch.inference_mode(False)
@torch.no_grad()
def folded(module: nn.Module) -> nn.Module:
    """A copy in which each convolution holds the batch norm behind it: in eval mode that is an
    affine map of each channel. All other tensors are shared."""
    twin = copy.copy(module)
    twin._modules = {name: folded(part) for name, part in module._modules.items()}
    if isinstance(module, nn.Sequential):
        for (first, conv), (second, norm) in pairwise(module._modules.items()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                of_norm = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *of_norm)
                twin._modules[first]._parameters = {"weight": weight, "bias": bias}
                twin._modules[second] = nn.Identity()
    return twin


def gathered_forward(model: nn.Module, x: Tensor) -> Tensor:
    """Collaboration.forward, where one expert answers alone: [B, C, H, W] -> [B, K].

    A first pass without gradients shows who answers; in eval mode an image's logits do not depend
    on its batch. Where a changed `combine` gives another answer than that expert's, all experts run
    as usual. Gathering does not pay for images under 32 x 32, whose cost is per operation.
    """
    if not x.requires_grad or x.shape[2] * x.shape[3] < 32 * 32:
        return model.combine(*model.all_experts(x))
    all_logits, score = ask_experts(model, x, len(x))  # [M, B, K], [M, B]
    answering = score.argmax(0)  # [B]
    answered = all_logits[answering, torch.arange(len(x))]  # [B, K]
    if not torch.equal(model.combine(all_logits, score), answered):
        return model.combine(*model.all_experts(x))
    groups = [(answering == j).nonzero().squeeze(1) for j in range(len(model.experts))]
    pairs = zip(model.experts, groups)
    logits = torch.cat([expert.logits(x[group]) for expert, group in pairs if len(group)])
    return logits[torch.cat(groups).argsort()]
