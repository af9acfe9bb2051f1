"""What descriptions of transformers models share: the tower inside, its facts, and the pooling of its feature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from . import outline
from .describe import UnknownBackbone
from .places import Site
from .points import Point

# where a model for a task keeps the tower that makes the features
INNER = (
    "vit",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "beit",
    "videomae",
    "vjepa2",
    "vivit",
    "timesformer",
    "vision_model",
    "swin",
    "swinv2",
    "convnext",
    "convnextv2",
    "resnet",
    "hiera",
    "segformer",
)
# the last layer of a model for a task, or the projection into a space shared with text
HEADS = ("classifier", "visual_projection")


def tower(model: nn.Module) -> Any:
    """The module that turns pixels into the sequence or map: the model itself, or the one inside a task's model."""
    for name in INNER:
        inner = model._modules.get(name)
        if inner is not None:
            return inner
    return model


def classifier(model: nn.Module) -> nn.Module:
    """The model's own last layer; an identity where it has none."""
    for name in HEADS:
        found = model._modules.get(name)
        if found is not None:
            return found
    return nn.Identity()


def is_for_classes(model: nn.Module) -> bool:
    return "classifier" in model._modules


def for_maps(model: Any) -> bool:
    """Whether a model is one of the backbone API, which gives the maps of the stages that it was asked for.

    Raises:
        UnknownBackbone: its last map is not that of its last stage, so that later blocks would change nothing; or what
            it gives are no maps.
    """
    asked, stages = getattr(model, "out_features", None), getattr(model, "stage_names", None)
    if not asked or not stages:
        return False
    kind = type(model).__name__
    if asked[-1] != stages[-1]:
        raise UnknownBackbone(
            f"This {kind} gives the maps of {', '.join(asked)}, so that edits behind {asked[-1]} would change nothing."
            f" Make it with out_features that end with {stages[-1]!r}."
        )
    if getattr(model.config, "reshape_hidden_states", True) is False:
        raise UnknownBackbone(f"This {kind} gives sequences, not maps. Make it with reshape_hidden_states=True.")
    return True


def architecture(model: nn.Module) -> str:
    """How `create_backbone` finds the model again: "hf:" and its id or folder; the class name of one made by hand."""
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    return f"hf:{name}" if name else type(model).__name__


def size_of(config: Any) -> tuple[int, int]:
    """Height and width that a config states, or what ImageNet models take."""
    stated = getattr(config, "image_size", None) or 224
    if isinstance(stated, (tuple, list)):
        return int(stated[-2]), int(stated[-1])
    return int(stated), int(stated)


def pair(value: Any) -> tuple[int, int]:
    """A number or a pair of them, as a pair."""
    if isinstance(value, (tuple, list)):
        return int(value[-2]), int(value[-1])
    return int(value), int(value)


@dataclass
class HfPooling:
    """images (B, C, H, W) -> features (B, D), in steps that a pickle can hold.

    Attributes:
        prepare: from images to the model's own arguments.
        read: from the model and its tower's outputs to the feature.
        anchor: an identity that the images pass first, so that they are a place for every model alike.
    """

    prepare: Callable[[Any, Tensor], dict[str, Any]]
    read: Callable[[Any, Any], Tensor]
    anchor: nn.Module = field(default_factory=nn.Identity)

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        inner = tower(model)
        called = model if for_maps(model) else inner
        return self.read(model, called(**self.prepare(inner, self.anchor(images))))

    def enters(self, model: nn.Module) -> Point | None:
        """Where the images enter when a larger model runs this one; None where these are no images (B, C, H, W)."""
        if self.prepare not in (as_pixels, unmasked, with_hidden_states):
            return None
        return Point(model if for_maps(model) else tower(model), "input", "pixel_values")


def as_pixels(inner: Any, images: Tensor) -> dict[str, Any]:
    """Most models take the images as they are; some interpolate their positions for another size if they are asked."""
    stated = getattr(inner.config, "image_size", None)
    own = (stated, stated) if isinstance(stated, int) else tuple(stated or images.shape[-2:])
    if own != tuple(images.shape[-2:]) and "interpolate_pos_encoding" in signature(inner.forward).parameters:
        return {"pixel_values": images, "interpolate_pos_encoding": True}
    return {"pixel_values": images}


def with_hidden_states(inner: Any, images: Tensor) -> dict[str, Any]:
    """The images, and the wish for what each layer gives."""
    return {"pixel_values": images, "output_hidden_states": True}


def unmasked(inner: Any, images: Tensor) -> dict[str, Any]:
    """A masked autoencoder keeps every patch, and its order, when nothing is masked and the noise is a ramp."""
    grid = inner.embeddings.patch_embeddings.num_patches
    ramp = torch.arange(grid, device=images.device, dtype=images.dtype).expand(images.shape[0], -1)
    return {"pixel_values": images, "noise": ramp}


def as_patches(inner: Any, images: Tensor) -> dict[str, Any]:
    """SigLIP 2 takes patches (B, N, p * p * C), channels last in each, and the grid that they come from."""
    batch, channels, height, width = images.shape
    side = inner.config.patch_size
    rows, columns = height // side, width // side
    cut = images.reshape(batch, channels, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
    shapes = torch.tensor([[rows, columns]]).expand(batch, -1)
    return {
        "pixel_values": cut.reshape(batch, rows * columns, -1),
        "pixel_attention_mask": None,
        "spatial_shapes": shapes,
    }


def first_token(model: Any, outputs: Any) -> Tensor:
    token: Tensor = outputs.last_hidden_state[:, 0]
    return token


def token_of_last_layer(model: Any, outputs: Any) -> Tensor:
    """The class token as the last layer leaves it, without the norm behind the layers."""
    token: Tensor = outputs.hidden_states[-1][:, 0]
    return token


def pooler_output(model: Any, outputs: Any) -> Tensor:
    pooled: Tensor = outputs.pooler_output
    return pooled.flatten(1)


def mean_of_tokens(model: Any, outputs: Any) -> Tensor:
    mean: Tensor = outputs.last_hidden_state.mean(dim=1)
    return mean


def normed_mean(model: Any, outputs: Any) -> Tensor:
    normed: Tensor = model.fc_norm(outputs.last_hidden_state.mean(dim=1))
    return normed


def mean_of_patches(model: Any, outputs: Any) -> Tensor:
    mean: Tensor = outputs.last_hidden_state[:, 1:].mean(dim=1)
    return mean


def mean_of_cells(model: Any, outputs: Any) -> Tensor:
    """Of a last map (B, D, H, W), or of the sequence (B, N, D) where the model leaves it one."""
    hidden: Tensor = outputs.last_hidden_state
    return hidden.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1) if hidden.dim() == 4 else hidden.mean(dim=1)


def mean_of_map(model: Any, outputs: Any) -> Tensor:
    """Of the last feature map of a model that is made for detectors."""
    mean: Tensor = outputs.feature_maps[-1].mean(dim=(2, 3))
    return mean


@dataclass
class TokenAndMean:
    """The class token beside the mean of the patches, behind all prefix tokens."""

    prefix: int

    def __call__(self, model: Any, outputs: Any) -> Tensor:
        hidden: Tensor = outputs.last_hidden_state
        return torch.cat([hidden[:, 0], hidden[:, self.prefix :].mean(dim=1)], dim=1)


def pixels(channels: int, pooling: HfPooling) -> Site:
    """The images, where the model first sees them."""
    return outline.pixels(Point(pooling.anchor, "input"), channels)
