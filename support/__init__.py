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


def _is_script() -> bool:
    """Whether this process runs a file of this project; not one of a .venv in its folder."""
    main, root = getattr(sys.modules["__main__"], "__file__", None), Path(__file__).parent.parent
    if main is None:  # `python -m` has not found its file yet
        return sys.argv[0] == "-m"
    return root in (folder := Path(main).resolve().parent, folder.parent)


if _is_script():
    sys.excepthook = _excepthook
    _set(_end_at_once)
