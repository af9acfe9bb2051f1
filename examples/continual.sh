#!/usr/bin/env bash
set -euo pipefail

# [data]
# Drawn letters and digits stand in for your own folders with one sub-folder for each class.
vpeft data export pocket/glyphs letters --per-class 8
vpeft data export pocket/handwriting figures --per-class 8
# [/data]

# [stream]
vpeft continual --data letters/train --data.val-fraction 0 --data.test-fraction 0.25 \
  --first 6 --increment 5 --method "simple_cil" --out runs/cl
# [/stream]

# [others]
vpeft continual --data letters/train --data.val-fraction 0 --data.test-fraction 0.25 \
  --first 6 --increment 5 --method "l2p" --epochs 1 --out runs/l2p
# [/others]

# [extend]
vpeft extend runs/cl/adapter.safetensors --data figures/train --old letters/train --out runs/more
vpeft predict runs/more/adapter.safetensors figures/train/3
# [/extend]
