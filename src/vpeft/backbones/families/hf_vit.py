"""transformers' plain sequences of attention and MLP: ViT, DeiT, ViT-MAE, DINOv2, DINOv3, BEiT, CLIP, SigLIP.

One description for all: they differ in what the parts of a layer are called, in LayerScale, in the tokens before the
grid, and in how the feature is pooled. Where two branches of a layer share a dropout, a branch ends at that call of it
that follows its own attention or MLP.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block, MlpSite
from ..builders import Where, attention_core, norm, own_parameters, projection, site, token_rewrites
from ..describe import UnknownBackbone, family
from ..hf_attention import edited_class
from ..hf_model import architecture, classifier, pair, pixels, pooler_output, size_of, tower
from ..hf_reading import CheckpointReading, Layer, read_layer, read_model
from ..places import Place, Projection, Site
from ..points import Layout, Point
from ..tokens import TokenCarrier

MODELING = "transformers.models"


@family(
    "hf_vit",
    f"{MODELING}.vit.modeling_vit.ViTModel",
    f"{MODELING}.vit.modeling_vit.ViTForImageClassification",
    f"{MODELING}.deit.modeling_deit.DeiTModel",
    f"{MODELING}.deit.modeling_deit.DeiTForImageClassification",
    f"{MODELING}.vit_mae.modeling_vit_mae.ViTMAEModel",
    f"{MODELING}.vit_mae.modeling_vit_mae.ViTMAEForPreTraining",
    f"{MODELING}.dinov2.modeling_dinov2.Dinov2Model",
    f"{MODELING}.dinov2.modeling_dinov2.Dinov2ForImageClassification",
    f"{MODELING}.dinov2.modeling_dinov2.Dinov2Backbone",
    f"{MODELING}.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersModel",
    f"{MODELING}.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersForImageClassification",
    f"{MODELING}.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersBackbone",
    f"{MODELING}.dinov3_vit.modeling_dinov3_vit.DINOv3ViTModel",
    f"{MODELING}.dinov3_vit.modeling_dinov3_vit.DINOv3ViTBackbone",
    f"{MODELING}.beit.modeling_beit.BeitModel",
    f"{MODELING}.beit.modeling_beit.BeitForImageClassification",
    f"{MODELING}.beit.modeling_beit.BeitBackbone",
    f"{MODELING}.clip.modeling_clip.CLIPVisionModel",
    f"{MODELING}.clip.modeling_clip.CLIPVisionModelWithProjection",
    f"{MODELING}.clip.modeling_clip.CLIPForImageClassification",
    f"{MODELING}.siglip.modeling_siglip.SiglipVisionModel",
    f"{MODELING}.siglip.modeling_siglip.SiglipForImageClassification",
    f"{MODELING}.siglip2.modeling_siglip2.Siglip2VisionModel",
    f"{MODELING}.siglip2.modeling_siglip2.Siglip2ForImageClassification",
    f"{MODELING}.dpt.modeling_dpt.DPTModel",
    f"{MODELING}.idefics3.modeling_idefics3.Idefics3VisionTransformer",
    f"{MODELING}.smolvlm.modeling_smolvlm.SmolVLMVisionTransformer",
)
def describe_hf_vit(model: nn.Module) -> Backbone:
    """transformers ViT, DeiT, ViT-MAE, DINOv2, DINOv3, BEiT, CLIP, SigLIP, DPT, Idefics3, alone or for a task."""
    inner = tower(model)
    config, stem = inner.config, inner.embeddings
    if getattr(config, "is_hybrid", False):
        raise UnknownBackbone(
            f"This {type(model).__name__} is a hybrid, whose transformer reads the maps of a convolutional net; places"
            " are known for the plain one (is_hybrid=False)."
        )
    layers = (
        inner.layers
        if "layers" in inner._modules
        else next(
            inner._modules[key]._modules[name]
            for key, name in (("encoder", "layer"), ("encoder", "layers"), ("model", "layer"))
            if name in getattr(inner._modules.get(key), "_modules", {})
        )
    )
    patch = stem._modules.get("patch_embeddings", stem._modules.get("patch_embedding"))
    patch = patch._modules.get("projection", patch)
    width, depth = (
        int(layers[0].norm1.weight.shape[0]) if hasattr(layers[0], "norm1") else config.hidden_size,
        len(layers),
    )
    prefix = sum(
        stem._parameters.get(name) is not None for name in ("cls_token", "class_embedding", "distillation_token")
    )
    if stem._parameters.get("register_tokens") is not None:
        prefix += stem.register_tokens.shape[1]
    size, side = size_of(config), pair(config.patch_size)
    if isinstance(patch, nn.Linear):  # SigLIP 2 states a number of patches
        size = (int(config.num_patches**0.5) * side[0],) * 2
    grid = (size[0] // side[0], size[1] // side[1])
    reading, carrier = read_model(model, inner, layers, prefix), TokenCarrier(prefix)
    # what is added to the scores of every layer: a bias, or a mask of the patches that are no padding
    shared_bias = inner._modules.get("shared_position_bias") is not None or reading.masked
    blocks = [
        _block(index, layer, Where(index, Layout.TOKENS, grid, prefix, side[0]), width, carrier, shared_bias)
        for index, layer in enumerate(layers)
    ]
    tokens, after = Where(-1, Layout.TOKENS, grid, prefix, side[0]), Where(depth, Layout.TOKENS, grid, prefix, side[0])
    start = Where(0, Layout.TOKENS, grid, prefix, side[0])
    trunk, stage = outline.tower(blocks, start, reading.mean)
    others: list[Place] = [_patch(patch, tokens), _embedding(inner, stem, layers[0], tokens, width)]
    if "pre_layrnorm" in inner._modules:
        others.append(norm("norm_pre", inner.pre_layrnorm, tokens, width))
    final = None
    if reading.final is not None:
        final = norm("norm", reading.final, after.but(Layout.VECTOR) if reading.vector else after, width)
    return Backbone(
        module=model,
        facts=Facts(
            family="hf_vit",
            library="transformers",
            architecture=architecture(model),
            image_size=size,
            depth=depth,
            width=width * reading.factor,
            prefix_tokens=prefix,
            pooling=reading.kind,
        ),
        pixels=pixels(config.num_channels, reading.pooling),
        trunk=trunk,
        stages=[stage],
        norm=final,
        others=others,
        pooled=reading.pooling,
        classifier=classifier,
        end=reading.end,
        unused=_unused(model, inner, stem, reading),
    )


def _unused(model: nn.Module, inner: Any, stem: nn.Module, reading: CheckpointReading) -> list[nn.Parameter]:
    """Mask tokens, decoders, and poolers and norms whose output is not the feature."""
    idle = [value for key, value in stem._parameters.items() if key == "mask_token" and value is not None]
    known = {id(p) for p in inner.parameters()} | {id(p) for p in classifier(model).parameters()}
    if reading.final is not None:
        known |= {id(p) for p in reading.final.parameters()}
    idle += [p for p in model.parameters() if id(p) not in known]
    asleep = []
    if reading.pooling.read is not pooler_output:
        asleep += [inner._modules.get("pooler"), inner._modules.get("head")]
    norms = [inner._modules.get(name) for name in ("layernorm", "norm", "post_layernorm")]
    asleep += [layer for layer in norms if layer is not reading.final]
    return idle + [p for layer in asleep if layer is not None for p in layer.parameters()]


def _patch(module: nn.Module, tokens: Where) -> Projection:
    layout = Layout.TOKENS if isinstance(module, nn.Linear) else Layout.CHANNELS_FIRST
    return projection("patch", module, tokens.but(layout, 0))


def _embedding(inner: Any, stem: Any, first: nn.Module, tokens: Where, width: int) -> Site:
    """The sequence as it enters the first layer; its own parameters under the names that every library shares."""
    names = {
        "cls_token": ("cls_token", "class_embedding"),
        "dist_token": ("distillation_token",),
        "reg_token": ("register_tokens",),
        "pos_embed": ("position_embeddings",),
    }
    own: dict[str, tuple[nn.Module, str]] = {
        ours: (stem, theirs)
        for ours, known in names.items()
        for theirs in known
        if stem._parameters.get(theirs) is not None
    }
    if "position_embedding" in stem._modules:
        own["pos_embed"] = (stem.position_embedding, "weight")
    if type(stem).__name__.startswith("DPT"):  # it gives the sequence in an output of several fields
        return outline.embedding(Point(first, "input"), tokens, width, own=own, nesting=-1)
    source = inner._modules.get("pre_layrnorm", stem)
    return outline.embedding(Point(source, "output"), tokens, width, own=own)


def _block(index: int, layer: Any, where: Where, width: int, carrier: TokenCarrier, shared_bias: bool) -> Block:
    found = read_layer(layer)
    kind = edited_class(type(found.core)) if found.biased or shared_bias else None
    attn = attention_places(f"blocks.{index}.attn", found, where, width)
    block = assembled(index, layer, found, attn, where, width, carrier)
    block.rewrites = token_rewrites(((found.core, kind),) if kind is not None else ())
    bias = layer._modules.get("relative_position_bias")
    if bias is not None:
        block.own |= {f"attn.{key}": value for key, value in own_parameters(bias).items()}
    return block


def assembled(
    index: int,
    layer: nn.Module,
    found: Layer,
    attn: AttentionSite,
    where: Where,
    width: int,
    carrier: TokenCarrier | None,
    stage: int = 0,
) -> Block:
    """A pre-norm block from the parts of a layer and its attention's places."""
    name = f"blocks.{index}"
    fcs: dict[str, Place] = {key: projection(f"{name}.mlp.{key}", module, where) for key, module in found.fcs.items()}
    readers = tuple(place for key, place in fcs.items() if key != "fc2" and isinstance(place, Projection))
    entering = Point(found.mlp, "input")
    mlp = site(f"{name}.mlp", MlpSite, entering, found.mlp_exit, where, width, fcs, None, readers)
    halves = [
        outline.Residual(inner, Point(around, "input"), end, around, inner.consumers, writer, gain, steps)
        for inner, around, end, writer, gain, steps in zip(
            (attn, mlp), found.norms, found.ends, (attn.proj, mlp.fc2), found.gains, found.steps, strict=True
        )
    ]
    return outline.residual_pair(
        index, layer, halves, where, width, carrier=carrier, drop_path=found.drop_path, stage=stage
    )


def attention_places(name: str, found: Layer, where: Where, width: int) -> AttentionSite:
    """q, k, v, the core and the output projection, where the model stores q, k and v apart."""
    core: Any = found.core
    inputs = tuple(
        projection(f"{name}.{letter}", module, where) for letter, module in zip("qkv", found.qkv, strict=True)
    )
    parts: dict[str, Place] = {place.name[-1]: place for place in inputs}
    parts["proj"] = projection(f"{name}.proj", found.proj, where)
    kind = edited_class(type(core))
    if kind is not None:
        heads = int(getattr(core, "num_attention_heads", 0) or core.num_heads)
        parts["core"] = attention_core(f"{name}.core", core, kind, where, inputs[0].width, heads)
    return site(
        name,
        AttentionSite,
        Point(found.attention, "input", "hidden_states"),
        Point(found.attention, "output"),
        where,
        width,
        parts,
        None,
        inputs,
    )
