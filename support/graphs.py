"""A training step as one CUDA graph: the GPU replays what Python would launch kernel by kernel.

A step of the paper's size is some ten thousand kernels, each shorter than the time it takes to
launch it from Python. Captured once, they are launched by one call. Shapes and everything that
Python decides stay as they were in the captured step: hence `loss.compilable`, False for a loss
that decides something new from step to step.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Step = Callable[[Tensor, Tensor], Tensor]  # x [B, C, H, W], y [B] -> loss; fills every .grad


def replayed(step: Step, model: nn.Module) -> Step:
    """`step`, captured at its first call. The gradients must be None before each call."""
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
