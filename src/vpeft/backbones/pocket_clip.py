"""`pocket_clip`: `pocket_vit` beside a small text transformer, both into one space of 128 channels.

It lets everything that compares images with words run without a network. Importing this module registers it with timm.
pretraining/pocket_clip.py made the weights; `src/vpeft/assets/pocket_clip.md`, beside them, says what they have seen.
"""

from __future__ import annotations

import math
from importlib.resources import files
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from .pocket_vit import ARCHITECTURE, SHOWN
from .pocket_words import END, LENGTH, VOCABULARY

__all__ = ["SHARED", "PocketClip", "PocketText", "pocket_clip"]

SHARED = 128  # channels of the space of images and texts
WIDTH, DEPTH, HEADS = 128, 4, 4  # of the text transformer: 0.9 M parameters
WEIGHTS = "pocket_clip.safetensors"


class PocketText(nn.Module):
    """Token numbers (B, L) -> features (B, 128): blocks without a mask, read at the end token.

    Args:
        vocabulary, length: of the tokenizer.
        width, depth, heads: of the transformer.
        shared: channels of the features.
    """

    def __init__(
        self,
        vocabulary: int = len(VOCABULARY),
        length: int = LENGTH,
        width: int = WIDTH,
        depth: int = DEPTH,
        heads: int = HEADS,
        shared: int = SHARED,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.pos_embed = nn.Parameter(torch.randn(1, length, width) * 0.01)
        self.pos_drop = nn.Identity()
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.projection = nn.Linear(width, shared, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, text: Tensor) -> Tensor:
        x: Tensor = self.pos_drop(self.token_embedding(text) + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        ends = (text == END).int().argmax(dim=1)
        out: Tensor = self.projection(self.norm(x)[torch.arange(len(x), device=x.device), ends])
        return out


class PocketClip(nn.Module):
    """Images (B, 3, 64, 64) and token numbers (T, L) -> their features, each of length 1, and the scale.

    Features are (B, 128) and (T, 128); the similarity of an image and a text is scale * cosine.
    """

    def __init__(self) -> None:
        super().__init__()
        shape: dict[str, Any] = {**ARCHITECTURE, "num_classes": 0}
        self.visual = VisionTransformer(**shape)
        self.text = PocketText()
        self.image_projection = nn.Linear(ARCHITECTURE["embed_dim"], SHARED, bias=False)
        nn.init.normal_(self.image_projection.weight, std=ARCHITECTURE["embed_dim"] ** -0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = functional.normalize(self.image_projection(self.visual(images)), dim=-1)
        read = functional.normalize(self.text(text), dim=-1)
        return seen, read, self.logit_scale.exp()


default_cfgs = generate_default_cfgs({"pocket_clip.vpeft": dict(SHOWN)})


@register_model
def pocket_clip(pretrained: bool = False, **options: Any) -> PocketClip:
    """The model, in evaluation mode; `pretrained` reads the shipped weights.

    Raises:
        FileNotFoundError: pre-trained weights are wanted, and this installation lacks them.
    """
    model = PocketClip()
    model.pretrained_cfg = default_cfgs["pocket_clip"].default.to_dict()
    if pretrained:
        path = files("vpeft") / "assets" / WEIGHTS
        if not path.is_file():
            raise FileNotFoundError(
                f"this installation of vpeft lacks its file assets/{WEIGHTS}. Install vpeft again, or give weights that"
                " pretraining/pocket_clip.py made (--weights)."
            )
        model.load_state_dict({key: value.float() for key, value in load_file(str(path)).items()})
    return model.eval()
