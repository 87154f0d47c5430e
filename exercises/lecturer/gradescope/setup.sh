#!/usr/bin/env bash
# Gradescope runs this once, while it builds the container: choose one with 4 GB. The archive that
# is uploaded holds this file, run_autograder, and the project in the folder `project`.
set -euo pipefail
apt-get update && apt-get install -y python3 python3-pip python3-venv
python3 -m venv /opt/soe # where every user can read it
/opt/soe/bin/pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
/opt/soe/bin/pip install -r /autograder/source/project/requirements.txt
