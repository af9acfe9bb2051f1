"""SegFormer of transformers (the Mix Transformer): keys and values from a reduced map, a convolution in each MLP.

A stage ends with a norm and begins with overlapping patches; both stand before the next stage's blocks, as its
downsampling. The sequence keeps its grid, so nothing can carry further tokens through it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block, Stage
from ..builders import Where, norm, projection
from ..describe import family
from ..hf_model import HfPooling, architecture, as_pixels, classifier, mean_of_cells, pixels, size_of, tower
from ..hf_reading import read_layer
from ..host import in_host
from ..places import Attention, Place
from ..points import Layout, Point
from .hf_vit import assembled, attention_places

MODELING = "transformers.models.segformer.modeling_segformer"


class Between(nn.Module):
    """What leaves one stage, (B, H * W, D), normed, as a map, and cut into the next stage's patches."""

    def __init__(self, closing: nn.Module, patches: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.closing, self.patches, self.grid = closing, patches, grid

    def forward(self, x: Tensor) -> Tensor:
        mapped = self.closing(x).transpose(1, 2).reshape(x.shape[0], x.shape[2], *self.grid)
        out: Tensor = self.patches(mapped)[0]
        return out


@family(
    "hf_segformer",
    f"{MODELING}.SegformerModel",
    f"{MODELING}.SegformerForImageClassification",
    f"{MODELING}.SegformerForSemanticSegmentation",
)
def describe_hf_segformer(model: nn.Module) -> Backbone:
    """transformers SegFormer (Mix Transformer): its encoder, alone, for classification or for segmentation."""
    inner = tower(model)
    size, stride = size_of(inner.config), 1
    stages: list[Stage] = []
    before: tuple[nn.Module, tuple[int, int]] | None = None
    for number, module in enumerate(inner.stages):
        stride *= int(module.patch_embeddings.proj.stride[0])
        grid = (-(-size[0] // stride), -(-size[1] // stride))
        start = sum(len(stage.blocks) for stage in stages)
        stages.append(_stage(number, module, before, Where(start, Layout.TOKENS, grid, 0, stride)))
        before = module.layer_norm, grid
    first, last, stem = stages[0], stages[-1], inner.stages[0].patch_embeddings
    depth, tokens = sum(len(stage.blocks) for stage in stages), Where(-1, Layout.TOKENS, first.grid, 0, first.stride)
    others: list[Place] = [
        projection("patch", stem.proj, tokens.but(Layout.CHANNELS_FIRST)),
        norm("patch_norm", stem.layer_norm, tokens, first.width),
        outline.embedding(Point(stem, "output"), tokens, first.width),
    ]
    pooling = HfPooling(as_pixels, mean_of_cells)
    decoder = model._modules.get("decode_head")
    made = Backbone(
        module=model,
        facts=Facts(
            family="hf_segformer",
            library="transformers",
            architecture=architecture(model),
            image_size=size,
            depth=depth,
            width=last.width,
            prefix_tokens=0,
            pooling="avg",
            dynamic_size=True,
            rounding=("ceil", "ceil"),
        ),
        pixels=pixels(inner.config.num_channels, pooling),
        trunk=outline.trunk(stages),
        stages=stages,
        norm=norm(
            "norm", inner.stages[-1].layer_norm, Where(depth, Layout.TOKENS, last.grid, 0, last.stride), last.width
        ),
        others=others,
        pooled=pooling,
        classifier=classifier,
        unused=() if decoder is None else decoder.parameters(),
        no_tokens="its keys and values come from a convolution over the grid, and its MLPs convolve over the grid too",
    )
    return made if decoder is None else in_host(made, model)


def _stage(number: int, module: Any, before: tuple[nn.Module, tuple[int, int]] | None, where: Where) -> Stage:
    """One stage; the norm that closed the previous one and the overlapping patches belong to it."""
    blocks = [_block(where.depth + offset, number, layer, where) for offset, layer in enumerate(module.blocks)]
    parts: dict[str, Place] = {}
    if before is not None:
        closing, grid = before
        name, patches = f"stages.{number}.downsample", module.patch_embeddings
        earlier = Where(where.depth - 1, Layout.TOKENS, grid, 0, where.stride // int(patches.proj.stride[0]))
        width = int(patches.proj.weight.shape[1])
        parts[f"{name}.norm"] = norm(f"{name}.norm", closing, earlier, width)
        entering = replace(where, depth=where.depth - 1)
        reduction = projection(f"{name}.reduction", patches.proj, entering.but(Layout.CHANNELS_FIRST))
        parts[f"{name}.reduction"] = reduction
        parts[f"{name}.patch_norm"] = norm(f"{name}.patch_norm", patches.layer_norm, entering, reduction.width)
    return outline.stage(
        number,
        blocks,
        where,
        parts,
        downsample=None if before is None else Between(before[0], module.patch_embeddings, before[1]),
    )


def _block(index: int, stage: int, layer: Any, stage_where: Where) -> Block:
    where = replace(stage_where, depth=index)
    found = replace(read_layer(layer), steps=((), ()))  # the grid is a further argument, so no branch is a plain chain
    width, name = int(layer.layernorm_before.weight.shape[0]), f"blocks.{index}"
    attn = attention_places(f"{name}.attn", found, where, width)
    reduction = layer.attention._modules.get("sequence_reduction")
    if reduction is not None:
        _reduced(attn, reduction, where, width)
    block = assembled(index, layer, found, attn, where, width, None, stage)
    mixing = projection(f"{name}.mlp.conv", layer.mlp.dwconv.dwconv, where.but(Layout.CHANNELS_FIRST))
    block.mlp.parts = {"fc1": block.mlp.fc1, "conv": mixing, "fc2": block.mlp.fc2}
    return block


def _reduced(attn: AttentionSite, reduction: Any, where: Where, width: int) -> None:
    """Keys and values come from a map that a strided convolution has reduced; it reads the norm beside the queries."""
    inner = Where(where.depth, Layout.TOKENS, None, 0, where.stride * int(reduction.sequence_reduction.stride[0]))
    attn.parts["sr"] = projection(f"{attn.name}.sr", reduction.sequence_reduction, inner.but(Layout.CHANNELS_FIRST))
    attn.parts["sr_norm"] = norm(f"{attn.name}.sr_norm", reduction.layer_norm, inner, width)
    for key in ("k", "v"):
        attn.parts[key].grid, attn.parts[key].stride = inner.grid, inner.stride
    attn.consumers = ()
    core = attn.parts["core"]
    assert isinstance(core, Attention)
    core.reduced = True
