"""What heads on the stages of a backbone have in common: how they find the stages, and two options for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..head import BadHead, Head
from ..layers.feature_pyramid import StageMaps

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone


class StageHead(Head):
    """A head on the levels of `StageMaps`. Its constructor takes their settings as `pyramid`, and `outputs`.

    Two options choose the levels: `level_norm` is "train" (the default) or "frozen", the LayerNorm of each level, and
    `place` makes a pyramid of one place's map instead of reading the stages.

    Class attributes:
        level_channels: channels that all levels are brought to; None leaves those of the stages.
    """

    level_channels: ClassVar[int | None] = None

    def __init__(self, pyramid: Mapping[str, Any]) -> None:
        super().__init__()
        self.maps = StageMaps(**pyramid)
        self.reads = self.maps.reads

    @classmethod
    def on(cls, backbone: Backbone, width: int, outputs: int, /, **options: Any) -> Head:
        """The head on the stages of a backbone, or on the pyramid of the option `place`.

        Raises:
            MissingPlace: the backbone has no map of rows and columns.
            BadHead: an option does not exist, or does not take this value.
        """
        rest = dict(options)
        norm, place = rest.pop("level_norm", "train"), rest.pop("place", None)
        try:
            maps = StageMaps.on(backbone, cls.level_channels, norm, place)
        except ValueError as error:
            raise BadHead(f"The head {cls.kind!r} does not take level_norm={norm!r}: {error}") from error
        return cls.with_options(rest, pyramid=maps.settings, outputs=outputs)
