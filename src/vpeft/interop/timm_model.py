"""A tuned backbone of timm that behaves as a model of timm: for code that extracts features or swaps classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..arguments import PATH, Kind, require
from ..backbones.create import create_backbone
from ..errors import VpeftError
from ..injection.adapter_file import read_manifest
from ..injection.heads import new_head
from ..injection.load_adapter import load
from ..injection.tuned_model import TunedModel


class NotOfTimm(VpeftError):
    """The backbone is of another library."""


class TimmModel(nn.Module):
    """The interface of timm's models around a tuned backbone, with the adapter on.

    `forward`, `forward_features`, `forward_head`, `forward_intermediates`, `get_classifier` and `reset_classifier` work
    as timm's do; every other attribute (`pretrained_cfg`, `num_features`, `patch_embed`) is the backbone's.
    """

    def __init__(self, tuned: TunedModel) -> None:
        super().__init__()
        self.tuned = tuned
        self.without_head = tuned.head is None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            tuned: Any = super().__getattr__("tuned")
            return getattr(tuned.backbone, name)

    @property
    def num_classes(self) -> int:
        """The outputs of the classifier; 0 for none, as in timm."""
        head = None if self.without_head else self.tuned.head
        return int(getattr(head, "out_features", 0))

    def forward(self, x: Tensor) -> Any:
        """Images (B, C, H, W) -> the head's outputs, or the pooled features (B, D) without a classifier."""
        return self.tuned.features(x) if self.without_head else self.tuned(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the tokens or the map before pooling, as the library lays them out."""
        found: Tensor = self.tuned.backbone.forward_features(x)  # type: ignore[operator]
        return found

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """What `forward_features` returned -> the head's outputs, or the pooled features (B, D)."""
        pooled = self.tuned.backbone.forward_head(x, pre_logits=True)  # type: ignore[operator]
        pooled = self.tuned.description.outlet_anchor(pooled)
        return pooled if pre_logits or self.without_head else self.tuned.outputs(pooled, None)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """As timm's: the outputs of several blocks, with the adapter's edits."""
        return self.tuned.backbone.forward_intermediates(  # type: ignore[operator]
            x,
            indices=indices,
            norm=norm,
            stop_early=stop_early,
            output_fmt=output_fmt,
            intermediates_only=intermediates_only,
        )

    def get_classifier(self) -> nn.Module:
        """The head; an identity if there is none."""
        head = None if self.without_head else self.tuned.head
        return nn.Identity() if head is None else head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new linear head in place of the adapter's; 0 makes `forward` return the pooled features.

        Raises:
            NotOfTimm: another pooling is asked for, which the adapter was not trained with.
        """
        own = getattr(self.tuned.backbone, "global_pool", None)
        if global_pool is not None and global_pool != own:
            raise NotOfTimm(
                f"The adapter was trained with the pooling {own!r}; {global_pool!r} would be another model."
            )
        self.without_head = num_classes == 0
        if num_classes:
            like = next(self.tuned.backbone.parameters())
            made = new_head(self.tuned.description.facts.width, num_classes)
            self.tuned.adapter().head = made.to(like.device)


def timm_model(
    model: TunedModel | str | Path, *, backbone: nn.Module | None = None, num_classes: int | None = None
) -> TimmModel:
    """Return a tuned backbone as a model of timm.

    Args:
        model: a TunedModel, or an adapter file.
        backbone: for a file, the backbone; by default the one that the file names is created.
        num_classes: of a new classifier, 0 for pooled features; by default the adapter's head stays.

    Raises:
        NotOfTimm: the backbone is of another library.
        BadAdapterFile: the file does not fit.
    """
    if not isinstance(model, TunedModel):
        require("timm_model(model)", model=(model, Kind("a TunedModel or an adapter file", PATH.fits)))
        if backbone is None:
            origin = read_manifest(model).origin
            if origin is None:
                raise NotOfTimm(f"{model} does not say how its backbone is made; pass it as `backbone`.")
            backbone = create_backbone(origin.name, pretrained=origin.pretrained, image_size=origin.image_size)
        model = load(backbone, model)
    if not hasattr(model.backbone, "forward_head"):
        raise NotOfTimm(
            f"{model.description.facts.architecture} is of {model.description.facts.library}; timm_model takes"
            " backbones of timm."
        )
    found = TimmModel(model.eval())
    if num_classes is not None:
        found.reset_classifier(num_classes)
    return found
