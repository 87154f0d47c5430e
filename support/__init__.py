"""What every script shares and no equation needs: options, files, pictures.

A script imports this first. From then on Ctrl-C ends it in one line with status 130: at once while
it is still importing; once it has read its options in order (see runs.py), which more of them do
not disturb, and SIGTERM does the same. Notebooks, tests and programs elsewhere keep what they have.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from pathlib import Path


def _end_at_once() -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"stopped\n")
    os._exit(130)


def _while_importing(number, frame) -> None:
    at = frame
    while at is not None:
        if at.f_code.co_filename.startswith("<frozen importlib"):
            signal.signal(number, signal.SIG_IGN)
            _end_at_once()
        at = at.f_back
    signal.default_int_handler(number, frame)


def _in_order(*_) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


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


def end_in_order() -> None:
    """Called when a script reads its options."""
    ours = signal.getsignal(signal.SIGINT) is _while_importing
    if ours and threading.current_thread() is threading.main_thread():
        sys.excepthook = _excepthook
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _in_order)
            atexit.register(signal.signal, number, signal.SIG_IGN)  # all is done


if _is_script() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _while_importing)  # not in a shell's background, which ignores it
