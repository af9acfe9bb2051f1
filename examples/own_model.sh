#!/usr/bin/env bash
set -euo pipefail

# [run]
vpeft train --data digits --backbone py:own_model.py:MyNet --anatomy own_model.toml --method lora --epochs 1 --out runs/own
vpeft evaluate runs/own/adapter.safetensors --backbone py:own_model.py:MyNet --data digits
vpeft explain lora --backbone ghostnet_100 --anatomy generic --lora.targets all
# [/run]
