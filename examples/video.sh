#!/usr/bin/env bash
set -euo pipefail

# [data]
# Drawn clips stand in for your own: 12 kinds of motion, such as left and right, or appears and vanishes.
vpeft data export pocket-video/motion clips --per-class 10
vpeft data check clips
# [/data]

# [train]
vpeft train --data clips --clip.frames 4 --clip.stride 4 --backbone pocket_vit --method "lora(rank=8)" \
  --lr 2e-3 --batch 16 --epochs 1 --out runs/motion
# [/train]

# [use]
# The best three answers for each video, the mean of 4 parts in time x 3 crops, and a picture of the frames seen.
vpeft predict runs/motion/adapter.safetensors "clips/test/nearer/*0.mp4" --top 3 --clip.views 4x3 --draw seen
vpeft evaluate runs/motion/adapter.safetensors --data clips
# [/use]

# [lists]
# Lists as the benchmarks have them: a path and a label, or a path, a part of the video, and a label.
printf '%s\n' clips/test/left/*1.mp4 | sed 's/$/ left/' > some.txt
printf '%s\n' clips/test/right/*1.mp4 | sed 's/$/ 4 12 right/' >> some.txt
vpeft evaluate runs/motion/adapter.safetensors --data some.txt
# [/lists]
