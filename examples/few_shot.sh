#!/usr/bin/env bash
set -euo pipefail

# [episodes]
vpeft fewshot --data digits --way 5 --shot 1 --method dra --steps 10 --episodes 3 --out runs/fewshot
# [/episodes]

# [probe]
# Nothing is tuned: the nearest mean of the frozen model's features.
vpeft fewshot --data digits --way 5 --shot 5 --method linear_probe --steps 0 --episodes 3
# [/probe]
