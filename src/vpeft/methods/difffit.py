"""DiffFit: biases, norms and a new scale behind each residual branch."""

from __future__ import annotations

from collections.abc import Iterator

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Norm
from ..layers.scale_shift import Scale
from ..method import Method, register


@register("difffit", category="partial", family="specification", paper="2304.06648", year=2023, venue="ICCV")
class DiffFit(Method):
    """x -> x + gamma * F(norm x), gamma (D,), with F attention or MLP; every bias and every norm trains too.

    gamma multiplies after LayerScale and drop path, just before the residual add, and starts at one, so step 0 is the
    frozen model. It folds into the branch's last projection. Biases and norms are chosen as by BitFit and LN-Tune.
    Made for diffusion transformers; on classifiers as in the re-run of Mai et al. (2409.16434). Weight decay would
    pull gamma to 0: leave it off (one-dimensional tensors are not decayed here).
    """

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for place in backbone.places():
            names = [name for name in place.own if isinstance(place, Norm) or name.rpartition(".")[2] == "bias"]
            if names:
                yield place.unfreeze(*names)
        for block in backbone.blocks:
            for name in ("attn_branch", "mlp_branch"):
                if block.has(name):
                    yield block.parts[name].after(Scale(block.dim))
