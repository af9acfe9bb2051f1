#!/usr/bin/env bash
set -euo pipefail

# [data]
# Drawn pictures stand in for your own. A folder in the format of COCO, Pascal VOC or YOLO is read as it is.
vpeft data export pocket-dense/scenes things
vpeft data check things
# [/data]

# [detection]
vpeft train --task detection \
  --head "faster_rcnn(channels=64, hidden=256, anchor_scale=3, proposals=100, rois=32, detections=20)" \
  --data things --data.image-size 128 --backbone pocket_vit --method "lora(rank=8)" \
  --lr 2e-3 --batch 8 --epochs 1 --out runs/det
# [/detection]

# [use]
# Pictures with boxes and names; all objects as COCO writes them; average precision on the test images.
vpeft predict runs/det/adapter.safetensors "things/images/test/*0.png" --draw drawn
vpeft predict runs/det/adapter.safetensors "things/images/test/*0.png" --format coco > found.json
vpeft evaluate runs/det/adapter.safetensors --data things
# [/use]

# [instance]
vpeft train --task instance \
  --head "mask_rcnn(channels=64, hidden=256, mask_channels=32, anchor_scale=3, rois=32, detections=20)" \
  --data things --data.image-size 128 --backbone pocket_vit --method adaptformer \
  --lr 2e-3 --batch 8 --epochs 1 --out runs/inst
# [/instance]

# [maps]
# Pictures in images/ and, under the same names, class numbers or colours in masks/, or depths in depth/.
vpeft train --task semantic --data pocket-dense/land --data.image-size 128 --backbone pocket_vit \
  --method "lora(rank=8)" --lr 2e-3 --batch 8 --epochs 1 --out runs/seg
vpeft train --task depth --data pocket-dense/scenes --data.image-size 128 --backbone pocket_vit \
  --method "lora(rank=8)" --lr 2e-3 --batch 8 --epochs 1 --out runs/depth
# [/maps]
