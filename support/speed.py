"""A faster training step: bfloat16, compiled networks, one CUDA graph, a gathered forward."""

from argparse import Namespace
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models import Collaboration, ask_experts
from support import options

Step = Callable[[Tensor, Tensor], Tensor]  # x [B, C, H, W], y [B] -> loss; fills every .grad


def autocast(device: torch.device, settings: Namespace) -> torch.autocast:
    """Convolutions in settings.precision; the losses are float32, as their logits are."""
    # No cache of bfloat16 weights: in some versions one filled without gradients cuts them off.
    low = settings.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=low, cache_enabled=False)


def accelerate(step: Step, model: nn.Module, settings: Namespace, compilable: bool = True) -> Step:
    """`step` itself, or the same with compiled networks, on a GPU as one CUDA graph.

    That happens where settings.compile says so (None: on a GPU), but not for a loss that Python
    decides anew from step to step, or that is differentiated twice: it is not `compilable`. The
    step fills every .grad, which must be None before.
    """
    device = next(model.parameters()).device
    fast = options.compile_pays(device) if settings.compile is None else settings.compile
    if not (fast and compilable):
        return step
    for expert in model.experts:
        expert.backbone.compile(dynamic=False)
    torch._dynamo.config.recompile_limit = 64  # several depths, each in train and eval mode
    torch.compiler.set_stance("force_eager")  # outside of the step, evaluation above all

    def compiled_step(x: Tensor, y: Tensor) -> Tensor:
        with torch.compiler.set_stance("default"):
            return step(x, y)

    return replayed(compiled_step, model) if device.type == "cuda" else compiled_step


def replayed(step: Step, model: nn.Module) -> Step:
    """`step` as one CUDA graph, captured at its first call. The gradients must be None before each.

    A step of the paper's size is some ten thousand kernels, each shorter than the time it takes to
    launch it from Python. Captured once, they are launched by one call. Shapes and everything that
    Python decides stay as they were in the captured step.
    """
    parameters = list(model.parameters())
    graph, kept = torch.cuda.CUDAGraph(), {}

    def capture(x: Tensor, y: Tensor) -> None:
        kept["x"], kept["y"] = x.clone(memory_format=torch.preserve_format), y.clone()
        statistics = [buffer.clone() for buffer in model.buffers()]
        rng = torch.cuda.get_rng_state()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # cuDNN chooses its kernels, and memory is laid out
            for _ in range(3):
                for p in parameters:
                    p.grad = None
                step(kept["x"], kept["y"])
        torch.cuda.current_stream().wait_stream(side)
        for p in parameters:
            p.grad = None
        # The statistics and random numbers of the trial steps do not count.
        for buffer, before in zip(model.buffers(), statistics):
            buffer.copy_(before)
        torch.cuda.set_rng_state(rng)
        with torch.cuda.graph(graph):
            kept["loss"] = step(kept["x"], kept["y"])
        kept["grads"] = [p.grad for p in parameters]

    def replay(x: Tensor, y: Tensor) -> Tensor:
        if not kept:
            capture(x, y)  # it records, and computes nothing
        kept["x"].copy_(x)
        kept["y"].copy_(y)
        graph.replay()
        for p, grad in zip(parameters, kept["grads"]):
            p.grad = grad
        return kept["loss"]

    return replay


def gather(model: nn.Module) -> None:
    """Lets a collaboration under attack on a CPU run the answering expert alone with gradients.

    Who answers is seen first, without gradients; in eval mode an image's logits do not depend on
    the batch it is in. Images under 32 x 32 are too small for that to pay: their cost is per
    operation, not per pixel. `model.forward` does both.
    """
    if not isinstance(model, Collaboration) or len(model.experts) == 1:
        return
    dense = model.forward

    def forward(x: Tensor) -> Tensor:
        pays = x.is_cpu and x.shape[2] * x.shape[3] >= 32 * 32
        if not pays or model.training or not x.requires_grad:
            return dense(x)
        answering = ask_experts(model, x, len(x))[1].argmax(0)  # [B]
        groups = [(answering == j).nonzero().squeeze(1) for j in range(len(model.experts))]
        pairs = zip(model.experts, groups)
        logits = torch.cat([expert.logits(x[group]) for expert, group in pairs if len(group)])
        return logits[torch.cat(groups).argsort()]

    model.forward = forward
