#!/usr/bin/env bash
set -euo pipefail

# [base]
vpeft meta --source pocket/glyphs,pocket/count,pocket/coast --steps 3 --batch 8 --lr 1e-4 --out base.safetensors
# [/base]

# [use]
vpeft train --data pocket/orientation --data.per-class 4 --backbone pocket_vit --weights base.safetensors \
  --method "lora(rank=4)" --epochs 1 --out runs/from_base
# [/use]
