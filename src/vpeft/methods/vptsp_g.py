"""VPTSP-G: shared prompts for embeddings, and prompts of each class that a recurrent network turns into proxies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.class_labels import class_labels
from ..layers.semantic_proxies import AskedClasses, SemanticProxies, SharedOrClassPrompts, proxy_anchor
from ..method import BadField, Method, register
from .bitfit import BitFit

if TYPE_CHECKING:
    from ..batch import Batch
    from ..injection.tuned_model import TunedModel


@register("vptsp_g", category="addition", family="prompt", paper="2402.02340", year=2024, venue="ICLR")
class VPTSPG(Method):
    """Prompts in the first blocks, removed behind each, and every bias trained; for training also proxies of classes.

    The embedding's pass: x_{i+1} = Block_i([Q_i; x_i]) without the prompts' outputs, Q_i (n_i, D), n_i =
    max(n - i step, 0), for i < depth. The authors put them before the class token; here they stand behind it, which
    changes nothing, as a frozen block has no order of tokens but the positions that are in x_0.

    With class_tokens m > 0 each training image runs a second time, with the prompts G_i[y] (m_i, D) of its class y in
    place of Q_i, and the pooled feature goes through a LayerNorm and a linear map of its own to s (B, E). A gated
    recurrent unit takes the s of a class into its row of a memory A (C, E), and the proxies beta F + (1 - beta) A give
    a Proxy-Anchor loss of the head's embeddings; see `SemanticProxies` and `proxy_anchor`. Train it with the task
    retrieval and its loss none, else both losses are added. None of this is in an adapter file, and no answer needs it.

    Q_i starts Xavier-normal on (1, n, D) and G_i on (C, m, D), so step 0 is not the frozen model. The authors' bank of
    class prompts on the processor, for sets with 11,318 classes, is not built: G is on the device.
    """

    tokens: int = Field(default=20, gt=0)
    """n; 10 to 90 in the released settings"""
    depth: int | None = Field(default=None, gt=0)
    """how many blocks have prompts, from the first; None means all"""
    step: int = Field(default=0, ge=0)
    """how many prompts fewer each next block has"""
    biases: bool = True
    """also train every bias of the backbone"""
    pooled: bool = False
    """whether a mean over the tokens, where the backbone pools by one, includes the last block's prompts"""
    class_tokens: int = Field(default=0, ge=0)
    """m, prompts of each class in training; 0 for no proxies; 3 to 80 in the released settings"""
    class_depth: int | None = Field(default=None, gt=0)
    """how many blocks have class prompts; None means all"""
    class_step: int = Field(default=0, ge=0)
    """how many class prompts fewer each next block has"""
    classes: int | None = Field(default=None, gt=1)
    """C; filled in with the classes of the task"""
    dimensions: int = Field(default=512, gt=1)
    """E, that of the task's embeddings; 384 with ViT-S, 512 with ViT-B"""
    mix: float = Field(default=0.5, ge=0, le=1)
    """beta, share of the free proxies; 0.5 and 0.4 for CUB, 0.7 and 0.1 for Cars, 0.2 for the others"""
    recurrence: Literal["relu", "tanh"] = "relu"
    """activation of the recurrent unit"""
    recurrence_dropout: float = Field(default=0.0, ge=0, lt=1)
    """dropout on its state; 0.1 and 0.5 for SOP, 0.1 for In-Shop"""
    proxy_rate: float = Field(default=10.0, gt=0)
    """factor of the learning rate of the free proxies; 10 to 500 in the released settings"""
    proxies: Literal["all", "batch"] = "all"
    """whose proxies are compared with a batch: of all classes, or of those in it"""
    alpha: float = Field(default=32.0, gt=0)
    """scale of the loss"""
    margin: float = Field(default=0.1, ge=0)
    """margin of the loss"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def for_labels(self, labels: Sequence[str]) -> Self:
        if not self.class_tokens:
            return self
        if self.classes not in (None, len(labels)):
            raise BadField(
                f"VPTSPG has prompts for {self.classes} classes, and the task has {len(labels)}. Leave it out."
            )
        return self.model_copy(update={"classes": len(labels)})

    def for_use(self) -> Self:
        return self.model_copy(update={"class_tokens": 0, "classes": None})

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if self.class_tokens and self.classes is None:
            raise BadField("VPTSPG with class_tokens needs a task with labels, such as retrieval, or classes = C.")
        asked = AskedClasses()
        for block in backbone.blocks:
            shared = self._start(
                1, self.tokens, self._count(self.tokens, self.depth, self.step, block.index), block.dim
            )
            own = None
            if self.class_tokens and self.classes is not None:
                count = self._count(self.class_tokens, self.class_depth, self.class_step, block.index)
                own = self._start(self.classes, self.class_tokens, count, block.dim)
            if shared is None and own is None:
                continue
            layer = SharedOrClassPrompts(None if shared is None else shared[0], own, block.dim, asked)
            yield block.insert_tokens(layer, lifetime="pooled" if self.pooled else "span")
        if self.biases:
            yield from BitFit().edits(backbone)
        if self.class_tokens and self.classes is not None:
            made = SemanticProxies(
                self.classes,
                backbone.facts.width,
                self.dimensions,
                mix=self.mix,
                activation=self.recurrence,
                dropout=self.recurrence_dropout,
                rate=self.proxy_rate,
                asked=asked,
            )
            yield backbone.outlet.tap(made)

    @staticmethod
    def _count(most: int, depth: int | None, step: int, index: int) -> int:
        return max(most - index * step, 0) if depth is None or index < depth else 0

    @staticmethod
    def _start(rows: int, most: int, count: int, width: int) -> Tensor | None:
        # the code makes all `most` in each block and uses the first: the range is that of all
        return nn.init.xavier_normal_(torch.empty(rows, most, width))[:, :count].clone() if count else None

    def batch_loss(self, tuned: TunedModel, outputs: Any, batch: Batch) -> Tensor | None:
        for edit in tuned.adapter().edits:
            if isinstance(edit.layer, SemanticProxies):
                return self._proxy_loss(tuned, edit.layer, outputs, batch)
        return None

    @property
    def runs_again(self) -> bool:
        return self.class_tokens > 0

    def _proxy_loss(self, tuned: TunedModel, branch: SemanticProxies, outputs: Any, batch: Batch) -> Tensor:
        embeddings = outputs["embeddings"] if isinstance(outputs, Mapping) and "embeddings" in outputs else outputs
        numbers = class_labels(batch.targets, len(batch), "VPTSP-G")
        if not isinstance(embeddings, Tensor) or embeddings.shape != (len(batch), self.dimensions):
            found = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
            raise BadField(
                f"VPTSPG makes proxies of {self.dimensions} numbers, and the head gives {found}. Give both the same"
                " number of dimensions, with the task retrieval."
            )
        with branch.asked.of(numbers):
            features = tuned.features(batch.inputs)
        of_all, of_batch, present = branch.proxies(branch.embeddings(features).float(), numbers)
        if self.proxies == "batch":
            return proxy_anchor(embeddings.float(), of_batch, numbers[:, None] == present, self.alpha, self.margin)
        everyone = torch.arange(len(of_all), device=numbers.device)
        return proxy_anchor(embeddings.float(), of_all, numbers[:, None] == everyone, self.alpha, self.margin)
