#!/usr/bin/env bash
set -euo pipefail

vpeft data export digits photos --per-class 20
vpeft train --data photos --backbone pocket_vit --method lora --task same_or_different --epochs 2 --out runs/pairs
first=$(ls photos/test/3/*.png | head -n 1) second=$(ls photos/test/4/*.png | head -n 1)
vpeft predict runs/pairs/adapter.safetensors "$first" "$second"
vpeft evaluate runs/pairs/adapter.safetensors --data photos
