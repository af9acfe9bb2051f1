#!/usr/bin/env bash
set -euo pipefail

# [space]
vpeft search lora --space "lr=log(1e-4, 1e-1)" --space "rank=int(1, 8)" --by optuna --trials 4 \
    --data pocket/count --backbone pocket_vit --epochs 2 --out runs/rates
# [/space]
# [again]
vpeft train runs/rates/recipe.toml --seed 1
# [/again]
# [search]
vpeft search noah --data pocket/count --backbone pocket_vit --budget 20000 --out runs/noah \
    --epochs 1 --supernet-epochs 1 --population 3 --parents 2 --rounds 1 --crossovers 2 --mutations 1
# [/search]
# [use]
vpeft data export pocket/count count --per-class 1
vpeft predict runs/noah/found/adapter.safetensors count/train
# [/use]
