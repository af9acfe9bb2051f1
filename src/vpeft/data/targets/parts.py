"""A part of the body for each pixel."""

from __future__ import annotations

from collections.abc import Sequence

from vpeft.data.config import DataConfig
from vpeft.data.table_cells import column_place
from vpeft.data.target import register_target
from vpeft.data.targets.mask import Masks


@register_target("parts")
class Parts(Masks):
    """The number of a part for each pixel; a sample carries int64 (H, W), where 255 does not count."""

    given = "maps of parts are"
    plural = "maps of parts"
    task = "human_parts"
    wants = "a map of parts"

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        return [column_place(header, config.label_column or "parts", where)]

    def list_columns(self, labels: Sequence[str]) -> list[str]:
        return ["parts"]
