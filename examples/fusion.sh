#!/usr/bin/env bash
set -euo pipefail

# [alone]
for task in orientation handwriting; do
  vpeft train --data pocket/$task --data.per-class 10 --backbone pocket_vit --method lora --epochs 1 --out runs/$task
done
vpeft train --data pocket/glyphs --data.per-class 2 --backbone pocket_vit --method ssf --epochs 1 --out runs/glyphs
# [/alone]

# [fuse]
vpeft fuse runs/{orientation,handwriting,glyphs}/adapter.safetensors --how smile --out runs/fused.safetensors
# [/fuse]

# [use]
vpeft evaluate runs/fused.safetensors --data pocket/handwriting --task handwriting
vpeft inspect runs/fused.safetensors
# [/use]

# [images]
vpeft fuse runs/{orientation,handwriting}/adapter.safetensors --how "adamerging(steps=2)" \
  --data orientation=pocket/orientation --data handwriting=pocket/handwriting --out runs/learnt.safetensors
# [/images]

# [one]
vpeft fuse runs/{orientation,handwriting}/adapter.safetensors --how "task_arithmetic(scale=0.5)" --one-head \
  --out runs/one.safetensors
# [/one]
