"""Which pixels stand out."""

from __future__ import annotations

from vpeft.data.joint_maps import MapLayer
from vpeft.data.pixel_maps import BinaryMap, PixelMaps
from vpeft.data.target import register_target


@register_target("saliency")
class Saliency(PixelMaps):
    """0 or 1 for each pixel; a sample carries int64 (H, W), where 255 does not count."""

    given = "maps of what stands out are"
    plural = "maps of what stands out"
    task = "saliency"
    wants = "a map of what stands out"
    column = "saliency"
    one = BinaryMap
    names = ("salient",)
    layer = MapLayer("saliency", "classes")
