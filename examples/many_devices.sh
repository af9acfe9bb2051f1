#!/usr/bin/env bash
set -euo pipefail

vpeft data export digits photos --per-class 30

# [train]
torchrun --nproc-per-node 2 -m vpeft train --data photos --backbone pocket_vit --method lora --epochs 2 --out runs/two
# [/train]

# [again]
# A finished or interrupted run goes on with another number of processes: here one.
vpeft train --data photos --backbone pocket_vit --method lora --epochs 3 --out runs/two
# [/again]

# [shard]
torchrun --nproc-per-node 2 -m vpeft train --data photos --backbone pocket_vit --method bitfit --epochs 1 --shard \
  --out runs/divided
vpeft evaluate runs/divided/adapter.safetensors --data photos
# [/shard]
