"""Self-prompt tuning: VPT whose prompts start as tokens of the training images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Place, Span
from ..errors import VpeftError
from ..layers.prompt import PromptTokens, xavier_bound
from ..layers.sampled_tokens import SampledTokens
from ..layers.watched_place import watch_tokens
from ..method import Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel

Sampling = Literal["random", "mean_pooling", "max_pooling"]


@register("self_prompt_tuning", category="addition", family="prompt", paper="2402.02382", year=2024, venue="ICML")
class SelfPromptTuning(Method):
    """VPT, deep or shallow, whose n prompts start as tokens that the frozen model has of the training images.

    x_{i+1} = Block_i([cls; P_i; patches]) without the prompts' outputs, P_i (n, D); shallow: P_0 travels through all.
    `prepare` draws P_0 from the outputs of the patch projection, before positions, and P_i from what enters block i,
    without prefix tokens: n at random of all tokens of all images, each layer by itself, none twice.

    With pooling the tokens of an image are first averaged, or their maximum is taken, over n - 1 windows of
    floor(N / (n - 1)) tokens and over the N mod window last ones (over all where none are left, as the code does).
    Departures: each image is looked at once (the code draws them with replacement), and with the transforms of the
    run. Where there is no patch projection, or one of another width, P_0 comes from what enters the first block.
    Before `prepare`, and where the images have fewer tokens than n, prompts have VPT's start.
    """

    tokens: int = Field(default=20, gt=0)
    """n; the authors take 20 deep and 100 shallow"""
    deep: bool = True
    """prompts of its own for each block; False: once, as in VPT-Shallow"""
    sampling: Sampling = "random"
    """tokens as they are, or pooled over windows first; shallow prompts are never pooled in the code, here they can"""
    pooled: bool = True
    """whether a mean over the tokens, where the backbone pools by one, includes the prompts"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        spans: list[Span] = list(backbone.blocks) if self.deep else [backbone.trunk]
        bound = xavier_bound(backbone, spans[0].width_in)
        for span in spans:
            layer = PromptTokens(self.tokens, span.width_in, bound)
            yield span.insert_tokens(layer, lifetime="pooled" if self.pooled else "span")

    @torch.no_grad()
    def prepare(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        layers = [(edit.place, edit.layer) for edit in tuned.adapter().edits if isinstance(edit.layer, PromptTokens)]
        drawn = [SampledTokens(self.tokens, self.sampling) for _ in layers]
        modes = {module: module.training for module in tuned.modules()}
        tuned.eval()
        pairs = zip(layers, drawn, strict=True)
        handles = [watch_tokens(self._source(tuned.description, span), one.add) for (span, _), one in pairs]
        try:
            with tuned.disable():
                for images, *_ in batches:
                    tuned.features(images)
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes.items():
                module.training = mode
        for (_, layer), one in zip(layers, drawn, strict=True):
            if one.kept is None:
                raise VpeftError("Self-prompt tuning draws prompts from images, but `prepare` was given none.")
            layer.tokens[: len(one.kept)] = one.kept

    def _source(self, backbone: Backbone, span: Place) -> Place:
        """Whose tokens the prompts of a span come from."""
        if span.depth > 0 or backbone.inputs.layout == "tokens" or backbone.patch.width != span.width_in:
            return span.input
        return backbone.patch
