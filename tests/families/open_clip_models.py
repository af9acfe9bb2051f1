"""open_clip's towers, tiny; no entry where open_clip is not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from torch import nn

from tests.models import roughen


def vision(**options: Any) -> nn.Module:
    """16 patches and a class token, width 32, two blocks, four heads, into a shared space of 24."""
    from open_clip.transformer import VisionTransformer

    return roughen(VisionTransformer(32, 8, width=32, layers=2, heads=4, mlp_ratio=2.0, output_dim=24, **options))


def pooled_by_attention() -> nn.Module:
    """CoCa's pooling: learnt queries attend to the tokens; LayerScale in the blocks."""
    return vision(attentional_pool=True, attn_pooler_queries=5, attn_pooler_heads=4, ls_init_value=0.5)


def text(**options: Any) -> nn.Module:
    """Eight tokens of a vocabulary of 40, width 32, two blocks, four heads, into a shared space of 24."""
    from open_clip.transformer import TextTransformer

    chosen = {"context_length": 8, "vocab_size": 40, "width": 32, "heads": 4, "layers": 2, "mlp_ratio": 2.0}
    return roughen(TextTransformer(**{**chosen, "output_dim": 24, **options}))


MODELS: dict[str, Callable[[], nn.Module]] = {}
if importlib.util.find_spec("open_clip") is not None:
    MODELS = {"open_clip_vision": vision, "open_clip_map": pooled_by_attention, "open_clip_text": text}
