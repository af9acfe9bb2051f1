#!/usr/bin/env bash
set -euo pipefail

# [start]
pip install "vpeft[ray]"                # on every machine, with the same versions
ray start --head                        # on one of them; it prints its address
ray start --address 192.0.2.1:6379      # on each of the others
# [/start]
# [bench]
vpeft bench --suite digits --tier full --methods linear_probe,lora,ssf --out ledger \
    --executor ray --address auto
# [/bench]
# [gpus]
vpeft bench --suite pocket --methods linear_probe,lora,ssf --out ledger \
    --executor ray --address auto --run-cpus 2 --run-gpus 0.25
# [/gpus]
# [alone]
vpeft bench --suite digits --tier smoke --methods linear_probe,ssf --out ledger --executor ray
# [/alone]
