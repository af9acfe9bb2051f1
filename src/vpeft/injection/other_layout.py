"""An adapter file on the same weights in another library's layout: one fused qkv in one, three projections in another.

Places have the same names everywhere, but a library that stores q, k and v as one linear has a place `attn.qkv` for it,
and one that stores three has not. Tensors by output rows (a scale, a shift, a bias, the B of a LoRA) are cut or joined
there; a tensor that all rows share (the A of a LoRA) goes to all three, and comes back only from three equal ones.
Whether the result is the same function is not decided here: `load` compares outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

FUSED = ".attn.qkv."
LETTERS = ("q", "k", "v")


def relaid(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` under the names that `own` has, where only the layout of q, k and v differs; others stay."""
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key in own or FUSED not in key:
            out[key] = value
            continue
        names = _three(key)
        if not all(name in own for name in names):
            out[key] = value
            continue
        wanted = [own[name] for name in names]
        if all(part.shape == value.shape for part in wanted):
            out |= {name: value.clone() for name in names}
        elif value.dim() and sum(len(part) for part in wanted) == len(value):
            out |= dict(zip(names, torch.split(value, [len(part) for part in wanted]), strict=True))
        else:
            out[key] = value
    for key, part in own.items():
        names = _three(key)
        if FUSED not in key or key in out or not all(name in out for name in names):
            continue
        pieces = [out[name] for name in names]
        if all(piece.shape == part.shape and piece.equal(pieces[0]) for piece in pieces):
            joined = pieces[0]
        elif sum(len(piece) for piece in pieces) == len(part):
            joined = torch.cat(pieces)
        else:
            continue
        out = {name: value for name, value in out.items() if name not in names} | {key: joined}
    return out


def _three(key: str) -> list[str]:
    return [key.replace(FUSED, f".attn.{letter}.") for letter in LETTERS]
