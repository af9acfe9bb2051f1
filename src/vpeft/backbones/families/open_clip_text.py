"""open_clip's text tower: tokens in, (B, L) whole numbers, and one feature for each text out.

What that means for the facts of a `Backbone`: `image_size` is (1, L), a row of L tokens; no place has a grid, `pixels`
offers nothing and there is no `patch`; the start token is the one prefix token, so that prompts stand between it and
the text, and the causal mask hides them from it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vpeft.backbones import outline

from ...errors import VpeftError
from ..backbone import Backbone, Facts
from ..builders import Where, norm
from ..describe import family
from ..inputs import MadeUpTexts
from ..places import Place, Site
from ..points import Layout, Point
from ..texts import OpenClipTokenizer, TextPooling, TextSpec, text_places
from ..tokens import TokenCarrier
from .open_clip_vision import clip_block, embedding_of, no_classifier

# The byte-pair vocabulary of CLIP, whose tokenizer open_clip ships; its last token ends a text.
CLIP_VOCABULARY = 49408


class NoTextTower(VpeftError):
    """The model has no text tower that could be adapted."""


class ClipText(nn.Module):
    """The text tower of a CLIP that keeps its parts beside the image tower: the same live modules and parameters.

    texts (B, L) -> features (B, E), as `model.encode_text(texts)` gives them. `encode_text` sees every adapter on these
    modules too, except an unfrozen `positional_embedding` or `text_projection`, which belong to this tower.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.token_embedding, self.positional_embedding = clip.token_embedding, clip.positional_embedding
        self.transformer, self.ln_final = clip.transformer, clip.ln_final
        self.text_projection = clip.text_projection
        self.register_buffer("attn_mask", clip.attn_mask, persistent=False)
        self.context_length, self.vocab_size = int(clip.context_length), int(clip.vocab_size)
        self.pool_type, self.eos_id = str(clip.text_pool_type), int(getattr(clip, "text_eos_id", 0))
        self.cls_emb, self.output_tokens = None, False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass."""
        self.transformer.grad_checkpointing = enable

    def forward(self, text: Tensor) -> Tensor:
        kind = self.transformer.get_cast_dtype()
        x = self.token_embedding(text).to(kind) + self.positional_embedding.to(kind)
        x = self.ln_final(self.transformer(x, attn_mask=self.attn_mask))
        x = _at_end(x, text, self.pool_type, self.eos_id)
        if self.text_projection is None:
            return x
        projected: Tensor = (
            self.text_projection(x) if isinstance(self.text_projection, nn.Linear) else x @ self.text_projection
        )
        return projected


def _at_end(x: Tensor, text: Tensor, how: str, end: int) -> Tensor:
    """(B, L, D) -> (B, D): the first or last token, or the one that ends the text."""
    rows = torch.arange(len(x), device=x.device)
    if how == "argmax":  # the end token has the highest number
        return x[rows, text.argmax(dim=-1)]
    if how == "eos":
        return x[rows, (text == end).int().argmax(dim=-1)]
    if how in ("first", "last"):
        return x[:, 0 if how == "first" else -1]
    raise NoTextTower(f"This text tower pools by {how!r}; known are argmax, eos, first and last.")


def text_tower(model: nn.Module) -> nn.Module:
    """The text tower of an open_clip model, as a module that `describe` knows.

    Raises:
        NoTextTower: the model has none.
    """
    own = getattr(model, "text", None)
    if isinstance(own, nn.Module):
        return own
    if all(hasattr(model, name) for name in ("token_embedding", "transformer", "ln_final", "text_projection")):
        return ClipText(model)
    raise NoTextTower(f"{type(model).__name__} has no text tower; pass a CLIP of open_clip.")


@family("open_clip_text", "open_clip.transformer.TextTransformer", "vpeft.backbones.families.open_clip_text.ClipText")
def describe_open_clip_text(model: nn.Module) -> Backbone:
    """open_clip's text tower: tokens in, causal attention, pooled where the text ends."""
    text: Any = model
    return described_text(text, text.cls_emb, str(text.pool_type), int(text.eos_id) if text.pool_type == "eos" else 0)


def described_text(
    model: nn.Module,
    cls_emb: nn.Parameter | None,
    pool_type: str,
    eos_id: int,
    pooled: Callable[[nn.Module, Tensor], Tensor] = embedding_of,
    unused: Iterable[nn.Parameter] = (),
) -> Backbone:
    """A text tower whose parts are attributes of `model`: the tower, or a whole CLIP that keeps them beside the images.

    Args:
        model: has `token_embedding`, `positional_embedding`, `transformer`, `ln_final` and `text_projection`.
        cls_emb: the class token behind the text, where there is one.
        pool_type: which token gives the feature: "argmax", "eos", "first" or "last".
        eos_id: the token that ends a text, where it pools by "eos".
        pooled: model and texts (B, L) -> features (B, E).
        unused: parameters of `model` that are none of this tower's.
    """
    text: Any = model
    width, length = int(text.ln_final.weight.shape[0]), int(text.context_length)
    carrier = TokenCarrier(1)
    blocks = [
        clip_block(index, block, Where(index, Layout.TOKENS, None, 1), carrier, True)
        for index, block in enumerate(text.transformer.resblocks)
    ]
    depth = len(blocks)
    trunk, stage = outline.tower(blocks, Where(0, Layout.TOKENS, None, 1))
    own = {"pos_embed": (model, "positional_embedding")}
    if cls_emb is not None:
        own["cls_token"] = (model, "cls_emb")
    pooling = TextPooling(pooled)
    others: list[Place] = [
        *text_places(pooling.anchor, text.token_embedding, width, 1, length),
        outline.embedding(Point(text.transformer, "input"), Where(-1, Layout.TOKENS, None, 1), width, own=own),
    ]
    last = text.text_projection
    out = width if last is None else int(last.out_features if isinstance(last, nn.Linear) else last.shape[1])
    vocabulary = int(text.vocab_size)
    end = eos_id if pool_type == "eos" else vocabulary - 1
    return Backbone(
        module=model,
        facts=Facts(
            family="open_clip_text",
            library="open_clip",
            architecture="open_clip.TextTransformer",
            image_size=(1, length),
            depth=depth,
            width=out,
            prefix_tokens=1,
            pooling="end of text",
        ),
        pixels=Site(
            name="pixels",
            width=1,
            enter=None,
            exit=None,
            verbs=frozenset(),
            layout=Layout.VECTOR,
            depth=-1,
        ),
        trunk=trunk,
        stages=[stage],
        norm=norm(
            "norm",
            text.ln_final,
            Where(depth, Layout.TOKENS if cls_emb is None else Layout.VECTOR, None, 1),
            width,
        ),
        others=others,
        pooled=pooling,
        classifier=no_classifier,
        end=Point(text.transformer, "output"),
        unused=unused,
        inputs=TextSpec(
            (1, length),
            1,
            layout="tokens",
            names=("text",),
            make=MadeUpTexts(vocabulary, length, end),
            end=end if pool_type in ("argmax", "eos") else None,
            pad=int(getattr(text, "pad_id", 0)),
            vocabulary=vocabulary,
            embedding=text.token_embedding,
            tokenizer=OpenClipTokenizer(length) if vocabulary == CLIP_VOCABULARY and pool_type == "argmax" else None,
        ),
    )
