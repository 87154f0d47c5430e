"""Several processes train one model: torchrun's ranks. Without torchrun there is one, rank 0 of 1.

    torchrun --nproc-per-node 4 -- train_collab.py --eps 0.03 --n 3

Every rank holds the whole model and the whole data set, attacks and learns its part of each batch
and averages its gradients with the others'. All ranks draw the same random numbers on the CPU, and
so the same order of images (and, with --random-start, the same starts in their parts). Rank 0 alone
prints, evaluates and writes. Where a rank dies, torchrun ends the others.
"""

import atexit
import ctypes
import os
import signal
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if _joined() else 0


def count() -> int:
    return dist.get_world_size() if _joined() else 1


def world_size() -> int:
    """How many processes were started, as the environment says; a cluster may leave it empty."""
    size = os.environ.get("WORLD_SIZE", "")
    return max(1, int(size)) if size.isdecimal() else 1


def speaks() -> bool:
    """Whether this process prints errors: of those that torchrun has started, the first."""
    return world_size() == 1 or "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


def start(device_name: str | None) -> None:
    """Joins the other processes of this torchrun, if there are any; silences all but rank 0.

    Raises ValueError where the ranks cannot have a GPU each.
    """
    if world_size() == 1 or _joined():
        return
    if device_name not in (None, "cpu", "cuda"):
        raise ValueError(f"--device is {device_name}: under torchrun it must be cuda or cpu")
    if "LOCAL_RANK" not in os.environ:
        raise ValueError("WORLD_SIZE is set, but not by torchrun: unset it, or start by torchrun")
    cuda = torch.cuda.is_available() and device_name != "cpu"
    if cuda:
        ranks, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if ranks > gpus:
            raise ValueError(f"{ranks} ranks for {gpus} GPUs: start fewer")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if sys.platform == "linux":  # PR_SET_PDEATHSIG: where torchrun is killed, its ranks end too
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    atexit.register(dist.destroy_process_group)
    if rank():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it has nothing to save
        sys.stdout = open(os.devnull, "w")


def agree(settings: dict) -> None:
    """Raises ValueError, in every rank, where the ranks were not given the same settings."""
    if count() == 1:
        return
    of_all = [None] * count()
    dist.all_gather_object(of_all, settings)
    different = [name for name in settings if any(s[name] != settings[name] for s in of_all)]
    if different:
        raise ValueError(f"the ranks were started with different settings: {', '.join(different)}")


def part() -> slice:
    """This rank's part of a batch."""
    return slice(rank(), None, count())


def from_rank_0(value: object) -> object:
    """Rank 0's value, in every rank."""
    values = [value]
    if count() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def average(tensors: list[Tensor]) -> None:
    """Puts the mean over the ranks in the place of each tensor, in one exchange."""
    if count() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    means = (flat / count()).split([tensor.numel() for tensor in tensors])
    for tensor, mean in zip(tensors, means):
        tensor.copy_(mean.view_as(tensor))


def average_gradients(model: nn.Module) -> None:
    average([p.grad for p in model.parameters() if p.grad is not None])


def average_statistics(model: nn.Module) -> None:
    """Batch norm's running means and variances, which each rank has of its own part."""
    average([buffer for buffer in model.buffers() if buffer.is_floating_point()])
