#!/usr/bin/env bash
set -euo pipefail

# [run]
# A flag goes before what the file says, and the file before the default.
vpeft train recipe.toml --epochs 2 --adaptformer.scale 0.2
# [/run]
