"""Adapt a model that no family knows: say what its parts are called.

Run: python examples/own_model.py
"""

import torch
from torch import nn

import vpeft


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_a, self.ln_b = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ff = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.to_qkv(self.ln_a(x)).chunk(3, dim=-1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.ff(self.ln_b(x))


class MyNet(nn.Module):
    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, width, 8, stride=8)
        self.layers = nn.Sequential(*(Layer(width) for _ in range(depth)))
        self.last_norm, self.classify = nn.LayerNorm(width), nn.Linear(width, 100)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.layers(self.cut(images).flatten(2).transpose(1, 2))
        return self.classify(self.last_norm(x).mean(dim=1))


# [anatomy]
anatomy = vpeft.Anatomy(
    blocks="layers",  # where the blocks are; the next seven names are of modules in a block
    norm1="ln_a",
    qkv="to_qkv",
    proj="out",
    norm2="ln_b",
    mlp="ff",
    fc1="ff.0",
    fc2="ff.2",
    patch="cut",  # and these are of the model
    norm="last_norm",
    classifier="classify",
    joins=True,  # the blocks take a sequence of any length, so prompts can join it
    image_size=(32, 32),
    stride=8,
)
described = vpeft.describe(MyNet(), anatomy)
lora, prompts = vpeft.methods.LoRA(rank=4), vpeft.methods.VPTDeep(tokens=2)
tuned = vpeft.tune(described, lora, prompts, num_classes=10)
# [/anatomy]

if __name__ == "__main__":
    print(tuned.plan(), tuned(torch.zeros(1, 3, 32, 32)).shape)
