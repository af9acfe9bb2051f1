#!/usr/bin/env bash
set -euo pipefail

# [compare]
vpeft multitask --data pocket-dense/scenes --tasks "semantic,depth(head=linear_map)" \
  --method "lora(rank=8)" --single linear_probe --epochs 1 --out runs/mt
# [/compare]

# [train]
vpeft train --task "multi_task(tasks=[semantic, saliency])" --data pocket-dense/scenes \
  --backbone pocket_vit --method linear_probe --epochs 1 --out runs/two
# [/train]
