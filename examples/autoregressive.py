"""Autoregressive vision: a Llama over tokens of pictures, and LoRA that teaches it a further visual task."""

# [host]
from pathlib import Path

import torch

import vpeft
from vpeft.backbones.picture_codec import picture_codec
from vpeft.backbones.pocket_sequence import new_llama, save_llama

codec = picture_codec("pocket_vq")
print(codec.side, codec.count, codec.codes)  # 32 pixels a side, 64 tokens, 512 different ones

torch.manual_seed(0)
base = save_llama(new_llama(codec.codes, width=64, depth=2), Path("base"))
# [/host]

# [adapt]
recipe = vpeft.Recipe.from_mapping(
    {
        "backbone": f"host::hf:{base}",
        "method": "lora(rank=8)",
        "task": {
            "name": "visual_sequences",
            "visual_tasks": ["depth"],
            "pairs": 2,
            "learn": "answers",
            "limits": {"depth": 40},  # pairs to learn from
        },
        "data": {"source": "pocket-dense/scenes"},
        "optimisation": {"epochs": 1, "batch": 40, "lr": 4e-3},
        "out": "runs/depth",
    }
)
outcome = vpeft.run_recipe(recipe, show=False)
assert outcome.test is not None
print(outcome.test.values)  # perplexity of all tokens and of the answers, and depth/psnr of the generated pictures
# [/adapt]

# [generate]
tuned, task = outcome.tuned.eval(), outcome.task
prompt = torch.tensor([task.prompts["depth"]])  # one pair of examples, 128 tokens
pictures = codec.encoded(torch.rand(1, 3, 32, 32))
tokens = tuned.generate(torch.cat([prompt, pictures], dim=1), max_new_tokens=64, do_sample=False)
answer = codec.decoded(tokens[:, -64:])  # (1, 3, 32, 32), from 0 to 1
# [/generate]
assert answer.shape == (1, 3, 32, 32)
