#!/usr/bin/env bash
set -euo pipefail

# [bench]
vpeft bench --suite digits --tier smoke --methods linear_probe,"lora(rank=4)" --out ledger
vpeft report ledger --html page.html
# [/bench]
