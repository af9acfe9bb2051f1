#!/usr/bin/env bash
set -euo pipefail
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT

# [first]
vpeft data export digits photos --per-class 10
vpeft train --data photos --backbone pocket_vit --method "lora(rank=4)" --epochs 1 --out fleet/digits
vpeft serve fleet --port 8765 &
curl --silent --fail --retry 300 --retry-delay 1 --retry-all-errors --output /dev/null http://127.0.0.1:8765/health
curl --fail --data-binary "@$(find photos/test/7 -name '*.png' -print -quit)" "http://127.0.0.1:8765/predict?adapter=digits&top=2"
# [/first]

# [more]
picture=$(find photos/test/3 -name '*.png' -print -quit)
curl --fail -F "image=@$picture" -F "adapter=digits" http://127.0.0.1:8765/predict
curl --fail --data-binary "@$picture" --output feature.json "http://127.0.0.1:8765/embed?adapter=digits"
curl --fail --data-binary "@$picture" --output map.json "http://127.0.0.1:8765/explain?adapter=digits"
curl --fail http://127.0.0.1:8765/adapters
# [/more]

# [add]
vpeft train --data photos --backbone pocket_vit --method ssf --epochs 1 --out runs/ssf
cp runs/ssf/adapter.safetensors fleet/scaled.safetensors
curl --fail --data-binary "@$picture" "http://127.0.0.1:8765/predict?adapter=scaled&top=1"
rm fleet/scaled.safetensors
# [/add]

# [explain]
vpeft inspect fleet/digits/adapter.safetensors --html digits.html --data photos --images 32
# [/explain]

# [end]
kill %1
wait %1
# [/end]
