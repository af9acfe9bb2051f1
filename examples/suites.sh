#!/usr/bin/env bash
set -euo pipefail

# [list]
vpeft data suites
vpeft data suites vtab1k
# [/list]

# [folders]
vpeft data export digits sets/digits --per-class 4
vpeft bench --suite folder --root sets --methods linear_probe,ssf --epochs 1 --out runs/folders
# [/folders]

# A stand-in for the archive of VTAB-1k: the same images as one of its tasks.
mkdir -p vtab-1k/kitti
cp -r sets/digits vtab-1k/kitti/images
for split in train:train800 val:val200 test:test; do
  (cd vtab-1k/kitti && find "images/${split%:*}" -name '*.png' | sort | awk '{print $0, NR % 4}' > "${split#*:}.txt")
done
tar -cf vtab-1k.tar vtab-1k

# [archive]
vpeft data vtab1k vtab --from archive --source vtab-1k.tar --tasks kitti || echo "not proved"
# [/archive]

# [bench]
vpeft bench --suite vtab1k --root vtab --tier smoke --tasks kitti --methods linear_probe --out runs/vtab
# [/bench]
