#!/usr/bin/env bash
set -euo pipefail
# A captioner that was hardly trained, and a few drawn pictures, stand in for a checkpoint folder and your own data.
ROOT="${VPEFT_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}"
python "$ROOT/pretraining/pocket_captioner.py" --work captioner --scale tiny
python - <<'PYTHON'
import json
from pathlib import Path

import numpy as np
from PIL import Image

from vpeft.data.pocket_questions import draw_questioned

folder = Path("pictures")
folder.mkdir(exist_ok=True)
images, _, asked = draw_questioned(12, np.random.default_rng(0))
lines = []
for number, image in enumerate(images):
    Image.fromarray(image).save(folder / f"{number}.png")
    split = ("train", "train", "val", "test")[number % 4]
    lines += [
        json.dumps({"image": f"{number}.png", "question": one.asked, "answer": one.answer, "split": split})
        for one in asked[number]
    ]
(folder / "questions.jsonl").write_text("\n".join(lines))
PYTHON

# [train]
vpeft train --host hf:captioner/model --task "vqa(longest=3)" --data pictures/questions.jsonl \
  --method "vision:lora(rank=2)+language:prefix_tuning(length=4)" --train projector --epochs 1 --out runs/questions
vpeft evaluate runs/questions/adapter.safetensors --data pictures/questions.jsonl
vpeft predict runs/questions/adapter.safetensors pictures/0.png --question "how many rings?"
# [/train]

# [rank]
vpeft inspect runs/questions/adapter.safetensors --rank --data pictures/questions.jsonl --images 6
# [/rank]
