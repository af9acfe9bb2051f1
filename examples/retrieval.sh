#!/usr/bin/env bash
set -euo pipefail

# [train]
# Digits stand in for your own folder with one sub-folder for each class.
vpeft data export digits photos --per-class 12
vpeft train --data photos --data.test-fraction 0.5 --backbone pocket_vit --method lora --epochs 2 --batch 16 \
  --task 'retrieval(loss=proxy_anchor, dimensions=64, sampler="m_per_class(m=4)")' --out runs/numbers
# [/train]

# [use]
vpeft evaluate runs/numbers/adapter.safetensors --data photos
query=$(ls photos/test/7/*.png | head -n 1)
vpeft predict runs/numbers/adapter.safetensors "$query" --gallery photos/test --top 5 --draw runs/nearest
# [/use]

# [vptsp_g]
vpeft train --data photos --data.test-fraction 0.5 --backbone pocket_vit --epochs 1 --batch 16 \
  --method 'vptsp_g(tokens=10, class_tokens=3, dimensions=64)' --task 'retrieval(loss=none, dimensions=64)' \
  --out runs/proxies
# [/vptsp_g]
