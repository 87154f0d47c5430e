"""Everything that was measured with the method: evaluation, comparison, transfer attacks, time."""

from collections.abc import Callable
from pathlib import Path

import torch

from support import options


def machine(device: torch.device) -> dict:
    """What every record says of where it was measured."""
    name, threads = options.device_name(device), torch.get_num_threads()
    return {"device": name, "threads": threads, "versions": options.versions()}


def train_or_resume(
    main: Callable[[list[str]], None],
    folder: Path,
    data_name: str,
    device: str | None,
    flags: list[str],
) -> None:
    """Trains what a training script's main(flags) trains, in `folder`; resumes what was interrupted
    there; does nothing where it has finished. Raises SystemExit where the script ends with one."""
    if (folder / "metrics.json").exists():
        return
    flags = [*flags, "--out", str(folder)]
    if (folder / "model.pt").exists():
        flags = ["--resume", str(folder)]
    main([*flags, "--data", data_name, *(["--device", device] if device else [])])
