"""Which pixels are edges."""

from __future__ import annotations

from vpeft.data.joint_maps import MapLayer
from vpeft.data.pixel_maps import BinaryMap, PixelMaps
from vpeft.data.target import register_target


@register_target("edges")
class EdgeMaps(PixelMaps):
    """0 or 1 for each pixel; a sample carries int64 (H, W), where 255 does not count."""

    given = "edge maps are"
    plural = "edge maps"
    task = "edges"
    wants = "a map of edges"
    column = "edges"
    one = BinaryMap
    names = ("edge",)
    layer = MapLayer("edges", "classes")
