"""The methods that SoE is compared with: each file is one loss(model, x, y, settings)."""

import sys
from pathlib import Path

if __name__ == "__init__":  # `python baselines/adp.py` sees this file, but not the project
    name = Path(sys.argv[0]).stem
    print(f"{name}.py: error: start it as python -m baselines.{name}", file=sys.stderr)
    sys.exit(2)
