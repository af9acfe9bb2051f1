"""GIST: one more token is classified too, and its prediction and the class token's teach each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import Layout, MissingPlace
from ..layers.bottleneck import Bottleneck
from ..layers.class_labels import NeedsClassLabels
from ..layers.prompt import PromptTokens
from ..method import Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel

OUTLET = ("outlet",)


@register("gist", category="unified", family="unified", paper="2312.07255", year=2024, venue="ACM MM")
class GIST(Method):
    """A token g (D) joins the sequence behind the class token; the same head reads it behind the final norm.

    loss + l1 loss(z_g) + l2 (KL(p_c || p_g) + KL(p_g || p_c)), z_c and z_g (classes,) the head's outputs for the pooled
    feature and for g, p = softmax(z / T), both with gradient. g starts uniform in (-1/2, 1/2), without position
    embedding. Predictions are those of the class token; g stays in the sequence.

    It stands beside any other method: `tune(model, LoRA(), GIST(bottleneck=0))`. By default it brings the authors'
    own: x + Attn(LN(x)) + A(x), then x + MLP(LN(x)) + A(x), A(x) = s (W_up GELU(W_down x + b) + b'), one A for both
    branches of a block, outside drop path; weights N(0, 0.02), truncated, as timm's initialiser redraws them, b and b'
    zero, so step 0 is not the frozen model. Without class token the pooled feature stands for it. The KL is for
    outputs that are logits of classes.
    """

    bottleneck: int = Field(default=4, ge=0)
    """rows of W_down; 0 for the token alone, beside another method"""
    scale: float = 0.1
    """s"""
    weight: float = Field(default=0.5, ge=0.0)
    """l1"""
    interaction: float = Field(default=0.75, ge=0.0)
    """l2"""
    temperature: float = Field(default=3.0, gt=0.0)
    """T"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """on g"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        trunk = backbone.trunk
        for block in backbone.blocks:
            windows = block.has("attn.core") and block.attn.core.per_window
            if windows or block.layout is not Layout.TOKENS or block.width != trunk.width_in:
                raise MissingPlace(
                    f"GIST's token travels through all blocks in one sequence, and {block.name} of"
                    f" {backbone.facts.architecture} attends within windows, has a map, or has another width."
                )
        widths = {backbone.facts.width, *([backbone.norm.width] if backbone.has_norm else [])}
        if widths != {trunk.width}:
            raise MissingPlace(
                f"GIST's token is classified by the head of the pooled feature, which has {backbone.facts.width}"
                f" channels on {backbone.facts.architecture}, and the token has {trunk.width}."
            )
        inserted = trunk.insert_tokens(PromptTokens(1, trunk.width_in, 0.5, self.dropout))
        yield inserted
        for block in backbone.blocks if self.bottleneck else []:
            layer = Bottleneck(block.dim, self.bottleneck, scale=self.scale, activation="gelu", start="trunc_normal")
            yield block.attn_branch.parallel(layer)
            yield block.mlp_branch.parallel(layer)
        norm = backbone.norm.exit if backbone.has_norm else None
        yield backbone.outlet.tap(GistFeature(None if norm is None else norm.module), reads=(inserted,))

    def extra_loss(self, tuned: TunedModel, outputs: Any, loss: Callable[[Any], Tensor]) -> Tensor | None:
        layers = [edit.layer for edit in tuned.adapter().edits if isinstance(edit.layer, GistFeature)]
        feature = layers[0].take()
        if feature is None:
            return None
        head = tuned.head or tuned.description.classifier
        if not isinstance(outputs, Tensor) or outputs.dim() != 2 or tuple(getattr(head, "reads", OUTLET)) != OUTLET:
            raise NeedsClassLabels(
                "GIST compares two predictions of the classes of an image, (B, K), by a head on its pooled feature, and"
                f" {type(head).__name__} gives something else. Use it with classification, or take another method."
            )
        said = head(feature)
        ours, other = ((z.float() / self.temperature).log_softmax(dim=-1) for z in (outputs, said))
        both = sum(
            (F.kl_div(a, b, reduction="batchmean", log_target=True) for a, b in ((other, ours), (ours, other))),
            start=torch.zeros((), device=outputs.device),
        )
        return self.weight * loss(said) + self.interaction * both


class GistFeature(nn.Module):
    """(pooled feature, g (B, 1, D) at the end of the trunk) -> g behind the final norm, kept for the loss, (B, D).

    The norm is the backbone's live module, held so that it is no part of the adapter.
    """

    def __init__(self, norm: nn.Module | None) -> None:
        super().__init__()
        self.norm = (norm,)
        self.feature: Tensor | None = None

    def forward(self, pooled: Tensor, token: Tensor) -> Tensor:
        found = token[:, 0] if self.norm[0] is None else self.norm[0].forward(token)[:, 0]
        if torch.is_grad_enabled() and not torch.compiler.is_exporting():
            self.feature = found
        return found

    def take(self) -> Tensor | None:
        """The feature of the last pass, once."""
        found, self.feature = self.feature, None
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "feature": None}
