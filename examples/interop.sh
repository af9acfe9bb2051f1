#!/usr/bin/env bash
set -euo pipefail

# [train]
vpeft data export digits photos --per-class 10
vpeft train --data photos --backbone pocket_vit --method "lora(rank=4)" --epochs 1 --out runs/a --track tensorboard
# [/train]

# [peft]
vpeft export runs/a/adapter.safetensors exported/peft --to peft
vpeft import exported/peft --backbone pocket_vit --out imported.safetensors --labels 0,1,2,3,4,5,6,7,8,9
# [/peft]

# [backbone]
vpeft export runs/a/adapter.safetensors exported/timm --to backbone
# [/backbone]

# [onnx]
vpeft export runs/a/adapter.safetensors exported/a.onnx --to onnx
vpeft export runs/a/adapter.safetensors exported/any.onnx --to onnx --onnx-weights inputs
# [/onnx]

# [file]
vpeft verify runs/a/adapter.safetensors
vpeft inspect runs/a/adapter.safetensors imported.safetensors --top 4
vpeft diff runs/a/adapter.safetensors imported.safetensors
# [/file]
