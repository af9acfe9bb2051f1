"""transformers' HGNetV2, the convolutional backbone of D-FINE: each block joins what all of its layers gave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..backbone import Backbone
from ..convolutional import Unit, conv_stride
from ..convolutional_net import make_net
from ..describe import UnknownBackbone, family
from ..hf_model import HfPooling, architecture, as_pixels, classifier, for_maps, mean_of_map, size_of
from ..points import Point

JOINS = "the block's input is also joined with what its layers give, so a change of it there would be half a change"


@family("hf_hgnet_v2", "transformers.models.hgnet_v2.modeling_hgnet_v2.HGNetV2Backbone")
def describe_hf_hgnet_v2(model: nn.Module) -> Backbone:
    """transformers' HGNetV2 as a detector's backbone (D-FINE); pooled by the mean of its last map."""
    net: Any = model
    if not for_maps(model):
        raise UnknownBackbone(
            f"This {type(model).__name__} gives no map of its last stage; ask for it in out_features."
        )
    stem = net.embedder
    units = [unit for stage in net.encoder.stages for unit in _units(stage)]
    made = make_net(
        model,
        family="hf_hgnet_v2",
        stem=(stem.stem1, stem.stem2a, stem.stem2b, stem.stem3, stem.stem4),
        after_stem=stem,
        units=units,
        behind=units[-1].module,
        head={},
        final=None,
        pooling="avg",
        classifier=classifier,
        library="transformers",
        name=architecture(model),
        size=size_of(net.config),
        pooled=HfPooling(as_pixels, mean_of_map),
        width=int(net.config.stage_out_channels[-1]),
    )
    for block in made.blocks:
        for part in (block.mlp, block.mlp_branch):
            part.verbs = part.verbs - {"before", "wrap"}
            part.refusals = dict.fromkeys(("before", "wrap"), JOINS)
    return made


def _units(stage: Any) -> Iterator[Unit]:
    """The downsampling of a stage, then its blocks; the first block has no shortcut."""
    if not isinstance(stage.downsample, nn.Identity):
        entry, end = Point(stage.downsample, "input"), Point(stage.downsample, "output")
        yield Unit(
            module=stage.downsample,
            branch=(stage.downsample,),
            enter=entry,
            inner=end,
            exit=end,
            keeps=False,
            stride=conv_stride((stage.downsample,)),
        )
    for block in stage.blocks:
        inner = Point(block.aggregation, "output")
        yield Unit(
            module=block,
            branch=(block.layers, block.aggregation),
            enter=Point(block.layers[0], "input"),
            inner=inner,
            exit=Point(block.drop_path, "output") if block.residual else inner,
            keeps=bool(block.residual),
        )
