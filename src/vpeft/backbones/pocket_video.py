"""`pocket_video`: the small transformer for clips that pretraining/pocket_video.py makes from `pocket_vit`.

Clips (B, 3, 16, 64, 64) are cut into tubelets of 2 x 16 x 16, so that 8 x 4 x 4 tokens and no class token pass the
blocks of a `pocket_vit` with attention over space and time together. The feature is the mean of the tokens behind the
final norm. Importing this module registers the model with timm; its weights are those of
`src/vpeft/assets/pocket_video.safetensors`, where that file is there.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .pocket_vit import ARCHITECTURE, SHOWN

__all__ = ["FRAMES", "TUBELET", "PocketVideo", "pocket_video"]

FRAMES = 16  # of the clips that the weights have seen
TUBELET = 2  # frames of a token
WEIGHTS = "pocket_video.safetensors"


class PocketVideo(nn.Module):
    """Blocks of a vision transformer over the tubelets of a clip; see the module.

    Args:
        img_size, patch_size, embed_dim, depth, num_heads: as timm's VisionTransformer.
        frames: of the clips for which positions are kept; 2 for each step of time.
        num_classes: of a last layer; 0 for none.
    """

    def __init__(
        self,
        img_size: int = 64,
        patch_size: int = 16,
        embed_dim: int = 160,
        depth: int = 6,
        num_heads: int = 5,
        frames: int = FRAMES,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.side, self.frames, self.num_features = img_size, frames, embed_dim
        kernel = (TUBELET, patch_size, patch_size)
        self.patch_embed = nn.Conv3d(3, embed_dim, kernel, stride=kernel)
        self.grid = (img_size // patch_size, img_size // patch_size)
        self.pos_embed = nn.Parameter(torch.randn(1, self.grid[0] * self.grid[1], embed_dim) * 0.02)
        self.time_embed = nn.Parameter(torch.randn(1, frames // TUBELET, embed_dim) * 0.02)
        self.pos_drop = nn.Identity()
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()

    def embed(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) -> the tokens that enter the blocks, (B, T / 2 * 16, D), step of time by step."""
        tokens = self.patch_embed(clips).flatten(3).permute(0, 2, 3, 1)  # (B, T', N, D)
        placed: Tensor = tokens + self.pos_embed[:, None] + self.time_embed[:, :, None]
        out: Tensor = self.pos_drop(placed.flatten(1, 2))
        return out

    def forward_features(self, clips: Tensor) -> Tensor:
        """The tokens behind the final norm, (B, T / 2 * 16, D)."""
        x = self.embed(clips)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out

    def forward(self, clips: Tensor) -> Tensor:
        out: Tensor = self.head(self.forward_features(clips).mean(dim=1))
        return out


default_cfgs = generate_default_cfgs({"pocket_video.vpeft": dict(SHOWN)})


@register_model
def pocket_video(pretrained: bool = False, num_classes: int = 0, **options: Any) -> PocketVideo:
    """The model for clips (B, 3, 16, 64, 64) -> features (B, 160), or logits when `num_classes` is given.

    Raises:
        FileNotFoundError: pre-trained weights are wanted, and this version of vpeft ships none.
    """
    known = {key: value for key, value in options.items() if key in (*ARCHITECTURE, "frames")}
    model = PocketVideo(**{**ARCHITECTURE, **known}, num_classes=num_classes)
    model.pretrained_cfg = default_cfgs["pocket_video"].default.to_dict()
    if pretrained:
        path = files("vpeft") / "assets" / WEIGHTS
        if not path.is_file():
            raise FileNotFoundError(
                f"this version of vpeft ships no {WEIGHTS}; pretraining/pocket_video.py makes it, for --weights."
            )
        model.load_state_dict(
            {key: value.float() for key, value in load_file(str(path)).items()}, strict=not num_classes
        )
    return model.eval()
