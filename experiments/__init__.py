"""Everything that was measured with the method: evaluation, comparison, transfer attacks, time."""

from collections.abc import Callable
from pathlib import Path


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
