#!/usr/bin/env bash
set -euo pipefail

# [install]
python3 -m venv .venv
. .venv/bin/activate
pip install ".[bench]"
# [/install]

# [check]
vpeft doctor
# [/check]
