#!/usr/bin/env bash
set -euo pipefail

# [train]
# A new Llama, all of it trained on two visual tasks, of one of which there are fewer pairs. Without `limits` it learns
# from all images; a useful one needs many epochs.
vpeft train --data pocket-dense/scenes \
  --task "visual_sequences(visual_tasks=[mask, denoise], pairs=2, limits={mask=64, denoise=16}, balance=augment, \
    generate=false)" \
  --backbone host::py:vpeft.backbones.pocket_sequence:pocket_sequence --method full_finetuning --train lm_head \
  --lr 2e-3 --batch 64 --epochs 1 --out runs/base
# [/train]

# [complete]
# What the model makes of a picture after the examples of its training: a class map and a clean picture, in colours.
vpeft data export pocket-dense/scenes hall
vpeft predict runs/base/adapter.safetensors "hall/images/test/*00.png" --draw drawn \
  --backbone host::py:vpeft.backbones.pocket_sequence:pocket_sequence
# [/complete]
