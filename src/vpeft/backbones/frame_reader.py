"""An image model as a reader of clips: each frame passes it as an image, and their features are averaged."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import VpeftError
from .describe import describe

# by which a reader of data finds means and deviations
STATED = ("pretrained_cfg", "config", "preprocessor_config", "preprocess_cfg")


class NotAFrameReader(VpeftError):
    """A model cannot read clips frame by frame: it is none for images, or has several towers."""


class FramesAsBatch(nn.Module):
    """Clips (B, C, T, H, W) -> their frames as a batch of images (B * T, C, H, W), those of one clip together."""

    def forward(self, clips: Tensor) -> Tensor:
        return clips.movedim(2, 1).flatten(0, 1)


class FrameReader(nn.Module):
    """Clips (B, C, T, H, W) -> features (B, D): the mean over the frames of the image model's pooled features.

    Frames share the model's weights and do not see one another, unless a method that adds time lets them. An image
    (B, C, H, W) is read as a clip of one frame.

    Args:
        model: a model for images that `describe` knows.
        frames: T, of the clips for which checks are made; other numbers are read too.
    """

    pretrained_cfg: dict[str, Any]

    def __init__(self, model: nn.Module, frames: int) -> None:
        super().__init__()
        inner = describe(model)
        if len(inner.towers) > 1 or inner.host is not None or not inner.inputs.takes_images:
            raise NotAFrameReader(
                f"{inner.facts.architecture} cannot read clips frame by frame: it is"
                f" {'a model of several parts' if inner.inputs.takes_images else 'no model for images'}. Give the tower"
                " for images alone."
            )
        if frames < 1:
            raise NotAFrameReader(f"A clip has at least one frame, not {frames}.")
        self.image_model = model
        self.frames = frames
        self.clips = nn.Identity()  # where clips enter, for edits of them
        self.apart = FramesAsBatch()
        self.images = nn.Identity()  # where frames enter the image model
        self.training = model.training
        self.pooling = inner._pooled
        self.image_size = inner.inputs.size
        for stated in STATED:
            if hasattr(model, stated):
                self.__dict__[stated] = getattr(model, stated)
        if getattr(self, "pretrained_cfg", None):
            channels, size = inner.inputs.channels, inner.inputs.size
            self.pretrained_cfg = {**self.pretrained_cfg, "input_size": (channels, *size)}

    def frame_features(self, clips: Tensor) -> Tensor:
        """The features of all frames, (B * T, D)."""
        clips = self.clips(clips[:, :, None] if clips.dim() == 4 else clips)
        features: Tensor = self.pooling(self.image_model, self.images(self.apart(clips)))
        return features

    def forward(self, clips: Tensor) -> Tensor:
        features = self.frame_features(clips)
        return features.reshape(clips.shape[0], -1, features.shape[-1]).mean(dim=1)


def frame_features(model: nn.Module, clips: Tensor) -> Tensor:
    """The features of all frames of clips, (B, C, T, H, W) -> (B * T, D)."""
    reader: Any = model
    features: Tensor = reader.frame_features(clips)
    return features


def image_classifier(model: nn.Module) -> nn.Module:
    """The image model's own last layer."""
    reader: Any = model
    found: nn.Module = describe(reader.image_model).classifier
    return found
