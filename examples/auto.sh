#!/usr/bin/env bash
set -euo pipefail

# [photos]
vpeft data export digits photos --per-class 30
# [/photos]

# [run]
vpeft auto --data photos --backbone pocket_vit --budget 20s --memory 4GB --epochs 3 --out runs/auto
# [/run]

# [again]
vpeft train runs/auto/recipe.toml
# [/again]
cat runs/auto/table.csv
