"""What every script shares and no equation needs: options, files, pictures."""

import os
import sys

if "IPython" not in sys.modules:  # Jupyter names a backend for `!` commands, too: Figure needs none
    os.environ.pop("MPLBACKEND", None)
