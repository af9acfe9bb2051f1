#!/usr/bin/env bash
set -euo pipefail

# [data]
# A folder with one sub-folder of images per label. Here handwritten digits stand in for your own photographs.
vpeft data export digits photos --per-class 30
vpeft data check photos
# [/data]

# [train]
vpeft train --data photos --backbone pocket_vit --method lora --lora.rank 8 --epochs 3 --out runs/a
# [/train]

# [use]
vpeft predict runs/a/adapter.safetensors photos/test/3 --top 3
vpeft evaluate runs/a/adapter.safetensors --data photos
# [/use]
