"""Memory that training needs, predicted without weights: one forward pass on the meta device, counted to the byte."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from vpeft.training.memory import readable, saved_bytes

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel


class _FusedAttention(TorchFunctionMode):
    """On the meta device torch chooses the plain products, which keep the attention map; a processor does not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        plain = all(given.get(name) is None for name in ("attn_mask", "scale")) and not given.get("is_causal")
        if func is scaled_dot_product_attention and len(args) == 3 and plain and not given.get("enable_gqa"):
            kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return kernel(*args, given.get("dropout_p", 0.0), False)[0]
        return func(*args, **given)


class MemoryPlan(BaseModel):
    """Bytes in fp32, without accelerations. The activations are what the backward pass keeps of a whole batch."""

    model_config = ConfigDict(frozen=True)

    batch: int
    weights: int = Field(description="Of backbone, adapter and head, buffers included.")
    gradients: int = Field(description="Of what is trained.")
    optimiser: int = Field(description="AdamW's two moments of what is trained.")
    activations: int = Field(description="Kept for the backward pass.")
    per_image: int = Field(description="Share of one image in the activations.")

    @property
    def total(self) -> int:
        """All of it. The peak of a process is higher by what a layer needs for a moment, and by torch itself."""
        return self.weights + self.gradients + self.optimiser + self.activations

    def largest_batch(self, limit: int) -> int:
        """The most images whose total stays within `limit` bytes; 0 if not even one does."""
        fixed = self.total - self.per_image * self.batch
        return max(0, (limit - fixed) // max(1, self.per_image))

    def sentence(self) -> str:
        """The figures in one line."""
        return (
            f"memory for a batch of {self.batch} in fp32: {readable(self.weights)} weights,"
            f" {readable(self.gradients)} gradients, {readable(self.optimiser)} optimiser,"
            f" {readable(self.activations)} kept for the backward pass ({readable(self.per_image)} per image);"
            f" together {readable(self.total)}"
        )


def plan_memory(tuned: TunedModel, batch: int) -> MemoryPlan:
    """Predict what one step on `batch` images needs. `tuned` is on the meta device; its modes are as before afterwards.

    The activations are those of this many images, and not a multiple of one: what does not grow with the batch (a
    weight that is made anew) is counted once.
    """
    modes = [(module, module.training) for module in tuned.modules()]
    shape = (tuned.description.pixels.width, *tuned.description.facts.image_size)
    counted = {}
    try:
        tuned.train()
        with warnings.catch_warnings():
            # Some operations warn that they have no kernel for the meta device and are decomposed; nothing is computed.
            warnings.simplefilter("ignore")
            for images in (batch, batch + 1):
                empty = torch.empty(images, *shape, device="meta")
                with _FusedAttention():
                    counted[images] = saved_bytes(tuned, empty)
    finally:
        for module, training in modes:
            module.training = training
    trained = sum(p.numel() * p.element_size() for _, p in tuned.trainable())
    return MemoryPlan(
        batch=batch,
        weights=sum(t.numel() * t.element_size() for t in (*tuned.parameters(), *tuned.buffers())),
        gradients=trained,
        optimiser=2 * trained,
        activations=counted[batch],
        per_image=counted[batch + 1] - counted[batch],
    )
