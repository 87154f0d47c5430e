"""What every script shares and no equation needs: options, files, pictures.

A script imports this first. From then on Ctrl-C, or SIGTERM, ends it with one line and status 130:
at once while it is still importing, later in order (see runs.py), and a second one does not disturb
that. Where another program, a notebook say, imports this, nothing changes.
"""

import atexit
import os
import signal
import sys
from pathlib import Path


def _end_at_once(*_) -> None:
    _set(signal.SIG_IGN)
    os.write(2, b"stopped\n")
    os._exit(130)


def _end_in_order(*_) -> None:
    _set(signal.SIG_IGN)
    raise KeyboardInterrupt


def _set(handler) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as in a shell's background
            signal.signal(number, handler)


def end_in_order() -> None:
    """Called when all is imported: from now on Ctrl-C raises KeyboardInterrupt, once."""
    if sys.excepthook is _excepthook:
        _set(_end_in_order)
        atexit.register(_set, signal.SIG_IGN)  # all is done


def _excepthook(kind, error, traceback) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.stdout.flush()
        _end_at_once()
    sys.__excepthook__(kind, error, traceback)


_main = getattr(sys.modules["__main__"], "__file__", None)  # none yet where it is `python -m`
if sys.argv[0] == "-m" or _main and Path(__file__).parent.parent in Path(_main).resolve().parents:
    sys.excepthook = _excepthook
    _set(_end_at_once)
