"""The direction of the surface at each pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vpeft.data.joint_maps import MapLayer
from vpeft.data.pixel_maps import PixelMap, PixelMaps
from vpeft.data.pixels import UnreadableImage
from vpeft.data.target import register_target

# A stored vector shorter than this shows no direction: pictures of 8 bits hold (0, 0, 0) as a shade of grey.
SHORTEST = 0.1


@dataclass(frozen=True, slots=True)
class NormalMap(PixelMap):
    """Where a map of normals is: x to the right, y up, z towards the camera or away from it, as the data have it."""

    def values(self) -> Tensor:
        """Unit vectors float32 (3, H, W); NaN where no direction is known.

        Pictures of bytes hold (n + 1) / 2 times 255, arrays of signed bytes n times 127, others n itself.

        Raises:
            UnreadableImage: the file is damaged or has no three channels.
        """
        stored = self.picture.stored()
        if stored.shape[-1] < 3:
            raise UnreadableImage(f"it has {stored.shape[-1]} channels; a normal has three numbers")
        raw = stored[..., :3].astype(np.float32)
        if stored.dtype.kind == "u":
            raw = 2.0 * raw / float(np.iinfo(stored.dtype).max) - 1.0
        elif stored.dtype.kind == "i":
            raw = raw / float(np.iinfo(stored.dtype).max)
        vectors = torch.from_numpy(np.ascontiguousarray(np.moveaxis(raw, -1, 0)))
        long = vectors.norm(dim=0)
        known = torch.isfinite(long) & (long > SHORTEST)
        return torch.where(known, functional.normalize(vectors, dim=0), torch.nan)

    def known(self, values: Tensor) -> bool:
        return bool(torch.isfinite(values).any())


@register_target("normals")
class Normals(PixelMaps):
    """A unit vector for each pixel; a sample carries float32 (3, H, W), NaN where nothing is known."""

    given = "surface normals are"
    plural = "surface normals"
    task = "surface_normals"
    wants = "a map of surface normals"
    column = "normals"
    one = NormalMap
    names = ("x", "y", "z")
    layer = MapLayer("normals", "vectors")
