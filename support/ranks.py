"""Several processes train one model: torchrun's ranks. Without torchrun there is one, rank 0 of 1.

    torchrun --nproc-per-node 4 -- train_collab.py --eps 0.03 --n 3

Every rank holds the whole model and the whole data set, attacks and learns its share of each batch
and averages its gradients with the others'. All draw the same random numbers on the CPU, and so the
same order of images (and, with --random-start, the same starts in their shares). Rank 0 alone
prints and writes.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

last_words = "nothing was trained yet"  # what to do once a rank has died


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if _joined() else 0


def count() -> int:
    return dist.get_world_size() if _joined() else 1


def start(device_name: str | None) -> None:
    """Joins the other processes of this torchrun, if there are any; all but rank 0 fall silent.

    Raises ValueError where the ranks cannot have a GPU each.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _joined():
        return
    if device_name not in (None, "cpu", "cuda"):
        raise ValueError(f"--device is {device_name}: under torchrun it must be cuda or cpu")
    cuda = torch.cuda.is_available() and device_name != "cpu"
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if cuda and here > torch.cuda.device_count():
        raise ValueError(f"{here} ranks for {torch.cuda.device_count()} GPUs: start fewer")
    if hasattr(signal, "pthread_sigmask"):  # torchrun ends the others so where one has died
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_the_end, daemon=True).start()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    atexit.register(dist.destroy_process_group)
    if rank():
        sys.stdout = open(os.devnull, "w")


def _await_the_end() -> None:
    signal.sigwait({signal.SIGTERM})
    die("torchrun stops the others")


def die(reason: object) -> None:
    """Ends this process at once; of all ranks the first to notice says why and how to go on."""
    try:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        tally = dist.TCPStore(*address, timeout=timedelta(seconds=10))  # torchrun itself keeps it
        if tally.add("a rank has died", 1) == 1:
            reason = " ".join(str(reason).splitlines()[:1])
            sys.stderr.write(f"error: a rank has died ({reason}); {last_words}\n")
            sys.stderr.flush()
    finally:  # also where torchrun is gone: nothing may hang
        os._exit(1)


@contextmanager
def dying_together():
    """Within it, an error of one rank among several ends it with one line, not with a traceback."""
    try:
        yield
    except RuntimeError as error:
        if count() == 1:
            raise
        die(error)


def share(x: Tensor) -> Tensor:
    """This rank's part of x [B, ...]: [B / count, ...]."""
    return x[rank() :: count()]


def from_rank_0(function: Callable[[], Any]) -> Any:
    """What function() returns in rank 0, in every rank; what it raises there is raised in all."""
    if count() == 1:
        return function()
    outcome = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except (ValueError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def average(tensors: list[Tensor]) -> None:
    """Puts the mean over the ranks in the place of each tensor, in one exchange."""
    if count() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / count()).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts):
        tensor.copy_(part.view_as(tensor))


def average_gradients(model: nn.Module) -> None:
    average([p.grad for p in model.parameters() if p.grad is not None])


def average_statistics(model: nn.Module) -> None:
    """Batch norm's running means and variances, which each rank has of its own share."""
    average([buffer for buffer in model.buffers() if buffer.is_floating_point()])


def split(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """function(x, y), each rank doing its part of the images: x [N, C, H, W] -> [N, C, H, W]."""
    if count() == 1:
        return function(x, y)
    size = -(-len(x) // count())  # the last rank's part is filled up with images of the first
    mine = torch.arange(rank() * size, (rank() + 1) * size, device=x.device) % len(x)
    made = function(x[mine], y[mine]).contiguous()
    parts = [torch.empty_like(made) for _ in range(count())]
    dist.all_gather(parts, made)
    return torch.cat(parts)[: len(x)]
