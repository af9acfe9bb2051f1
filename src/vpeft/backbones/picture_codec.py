"""Pictures as rows of token numbers and back: the frozen tokenizers of autoregressive vision models.

`pocket_vq` is small, is made by pretraining/pocket_vq.py and ships with vpeft. `hf:FOLDER` is a `JanusVQVAE` that
transformers' `save_pretrained` wrote.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from ..errors import VpeftError, need_extra
from .names import TRANSFORMERS

__all__ = ["JanusCodec", "NoCodec", "PictureCodec", "PocketVq", "picture_codec"]

POCKET = "pocket_vq"
SHAPE = "shape"  # the key in the metadata of a file of `PocketVq`
# Pictures that are encoded at a time.
ROWS = 256


class NoCodec(VpeftError):
    """No tokenizer of pictures has this name, or its file cannot be used."""


class PictureCodec(nn.Module):
    """Pictures (B, 3, S, S) in [0, 1] as rows of N token numbers, and back.

    Attributes:
        side: S, in pixels.
        count: N, the tokens of a picture, row by row.
        codes: how many different tokens there are.
    """

    side: int
    count: int
    codes: int

    @abstractmethod
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] -> token numbers (B, N), int64."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Token numbers (B, N) -> pictures (B, 3, S, S) in [0, 1]."""

    @torch.inference_mode()
    def encoded(self, pictures: Tensor) -> Tensor:
        """As `encode`, for any number of pictures, a part at a time."""
        parts = [self.encode(pictures[first : first + ROWS]) for first in range(0, len(pictures), ROWS)]
        return torch.cat(parts) if parts else torch.zeros(0, self.count, dtype=torch.int64)

    @torch.inference_mode()
    def decoded(self, tokens: Tensor) -> Tensor:
        """As `decode`, for any number of pictures, a part at a time."""
        parts = [self.decode(tokens[first : first + ROWS]) for first in range(0, len(tokens), ROWS)]
        return torch.cat(parts) if parts else torch.zeros(0, 3, self.side, self.side)

    def digest(self) -> str:
        """sha256 over the names and values of all weights."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.detach().float().cpu().numpy().tobytes())
        return found.hexdigest()


class _Residual(nn.Module):
    """x + conv(SiLU(conv(SiLU(norm(x)))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(functional.silu(self.norm(x)))
        out: Tensor = x + self.conv2(functional.silu(inner))
        return out


class PocketVq(PictureCodec):
    """A small VQ model: patches -> residual convolutions -> the nearest code by cosine -> convolutions -> patches.

    Codes and what they stand for have length 1, as in ViT-VQGAN (arXiv 2110.04627).

    Args:
        side: pixels of a side.
        patch: pixels of a side that one token stands for.
        codes: number of codes.
        dim: channels of a code.
        width: channels of the convolutions.
        depth: residual blocks of the encoder, and of the decoder.
    """

    def __init__(
        self, side: int = 32, patch: int = 4, codes: int = 512, dim: int = 8, width: int = 64, depth: int = 3
    ) -> None:
        super().__init__()
        if side % patch:
            raise NoCodec(f"{side} pixels do not divide into patches of {patch}.")
        self.shape = {"side": side, "patch": patch, "codes": codes, "dim": dim, "width": width, "depth": depth}
        self.side, self.codes, self.grid = side, codes, side // patch
        self.count = self.grid**2
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.encoder = nn.Sequential(*(_Residual(width) for _ in range(depth)), nn.Conv2d(width, dim, 1))
        self.codebook = nn.Parameter(functional.normalize(torch.randn(codes, dim), dim=1))
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, width, 3, padding=1),
            *(_Residual(width) for _ in range(depth)),
            nn.Conv2d(width, 3 * patch * patch, 3, padding=1),
            nn.PixelShuffle(patch),
        )

    def latents(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) -> vectors of length 1, (B, N, dim)."""
        found = self.encoder(self.patches(2 * pictures - 1))
        return functional.normalize(found.flatten(2).transpose(1, 2), dim=-1)

    def nearest(self, latents: Tensor) -> Tensor:
        """Vectors (..., dim) -> the numbers (...) of the codes of the largest cosine."""
        return (latents @ functional.normalize(self.codebook, dim=1).T).argmax(dim=-1)

    def vectors(self, tokens: Tensor) -> Tensor:
        """Token numbers (...) -> codes of length 1 (..., dim)."""
        return functional.normalize(self.codebook, dim=1)[tokens]

    def painted(self, vectors: Tensor) -> Tensor:
        """Vectors (B, N, dim) -> pictures (B, 3, S, S), about in [0, 1]."""
        grid = vectors.transpose(1, 2).reshape(len(vectors), -1, self.grid, self.grid)
        out: Tensor = (self.decoder(grid) + 1) / 2
        return out

    def encode(self, pictures: Tensor) -> Tensor:
        return self.nearest(self.latents(pictures))

    def decode(self, tokens: Tensor) -> Tensor:
        return self.painted(self.vectors(tokens)).clamp(0, 1)

    @classmethod
    def read(cls, path: Path) -> PocketVq:
        """The model of a safetensors file whose metadata state its `shape`.

        Raises:
            NoCodec: the file is damaged or of something else.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                shape: dict[str, int] = json.loads((file.metadata() or {})[SHAPE])
                tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - no mapping
            if len(tensors["codebook"]) != int(shape["codes"]):
                raise ValueError("its codebook has another size than it states")
            with torch.device("meta"):
                made = cls(**{name: int(value) for name, value in shape.items()})
            made.load_state_dict(tensors, assign=True)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, NoCodec) as error:
            said = str(error).strip().partition("\n")[0]
            raise NoCodec(f"{path} is no file of a VQ model that pretraining/pocket_vq.py made: {said}.") from None
        return made


class JanusCodec(PictureCodec):
    """transformers' `JanusVQVAE`; pictures have S = patches a side x the factor by which it reduces."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        config: Any = model.config
        self.side = int(config.num_patches) * 2 ** (len(config.channel_multiplier) - 1)
        self.count, self.codes = int(config.num_patches) ** 2, int(config.num_embeddings)

    def encode(self, pictures: Tensor) -> Tensor:
        found: Any = cast(Any, self.model).encode(2 * pictures - 1)
        tokens: Tensor = found.image_tokens
        return tokens.reshape(len(pictures), self.count)

    def decode(self, tokens: Tensor) -> Tensor:
        painted: Tensor = cast(Any, self.model).decode(tokens)
        return ((painted + 1) / 2).clamp(0, 1)

    @classmethod
    def read(cls, folder: str) -> JanusCodec:
        """The model that `save_pretrained` wrote; nothing is fetched.

        Raises:
            NoCodec: the folder holds no such model.
        """
        transformers: Any = need_extra("transformers", "hf")
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            config = getattr(config, "vq_config", config)
            stated = {"config": config, "local_files_only": True, "trust_remote_code": False}
            made = transformers.JanusVQVAE.from_pretrained(folder, **stated)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            said = str(error).strip().partition("\n")[0]
            raise NoCodec(f"{folder} holds no JanusVQVAE of transformers: {said}") from None
        return cls(made)


@lru_cache(maxsize=4)
def picture_codec(name: str) -> PictureCodec:
    """The frozen tokenizer of this name, in evaluation mode on the processor; the same object at each call.

    Args:
        name: `pocket_vq`, the path of a .safetensors file of such a model, or `hf:FOLDER` with a JanusVQVAE.

    Raises:
        NoCodec: there is none.
    """
    if name.startswith(TRANSFORMERS):
        made: PictureCodec = JanusCodec.read(name.removeprefix(TRANSFORMERS))
    else:
        path = Path(str(files("vpeft") / "assets" / f"{POCKET}.safetensors")) if name == POCKET else Path(name)
        if not path.is_file():
            raise NoCodec(
                f"There is no tokenizer of pictures {name!r}. Known are {POCKET}, the path of a .safetensors file that"
                f" pretraining/pocket_vq.py made, and {TRANSFORMERS}FOLDER with a JanusVQVAE of transformers."
            )
        made = PocketVq.read(path)
    return made.eval().requires_grad_(False)
