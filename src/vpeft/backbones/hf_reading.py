"""How a layer and a model of transformers are read: the parts by the names that they have there, and the pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from .describe import UnknownBackbone
from .hf_model import (
    HfPooling,
    TokenAndMean,
    as_patches,
    as_pixels,
    first_token,
    for_maps,
    is_for_classes,
    mean_of_map,
    mean_of_patches,
    mean_of_tokens,
    pooler_output,
    token_of_last_layer,
    unmasked,
    with_hidden_states,
)
from .points import Point

QKV = (("q", "query"), ("k", "key"), ("v", "value"))
GATED = {"gate_proj": "fc1_g", "up_proj": "fc1_x", "down_proj": "fc2"}


@dataclass(frozen=True)
class Layer:
    """The parts of one layer, whatever they are called there. `gains` are the LayerScales, as module and attribute."""

    norms: tuple[nn.Module, nn.Module]
    attention: nn.Module
    core: nn.Module
    qkv: tuple[nn.Module, ...]
    proj: nn.Module
    mlp: nn.Module
    mlp_exit: Point
    fcs: dict[str, nn.Module]
    ends: tuple[Point, Point]
    gains: tuple[tuple[nn.Module, str] | None, tuple[nn.Module, str] | None]
    steps: tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]]
    drop_path: float
    biased: bool


def read_layer(layer: Any) -> Layer:
    """Find the parts of a layer by the names that transformers uses."""
    has = layer._modules
    first, second = next(
        (has[a], has[b])
        for a, b in (("layernorm_before", "layernorm_after"), ("norm1", "norm2"), ("layer_norm1", "layer_norm2"))
        if a in has
    )
    outer = next(has[key] for key in ("attention", "self_attn", "attn") if key in has)
    core: Any = outer._modules.get("attention", outer)
    fused = core._modules.get("qkv")
    names = ((f"{letter}_proj", word) for letter, word in QKV)
    qkv = (fused,) if fused is not None else tuple(core._modules.get(a, core._modules.get(b)) for a, b in names)
    known = [core._modules[key] for key in ("o_proj", "out_proj", "proj") if key in core._modules]
    proj = known[0] if known else outer.output.dense
    if "mlp" in has:
        mlp, mlp_exit, inner = has["mlp"], Point(has["mlp"], "output"), has["mlp"]._modules
        called = GATED if "gate_proj" in inner else {"up_proj": "fc1", "down_proj": "fc2", "fc1": "fc1", "fc2": "fc2"}
        fcs = {called[key]: module for key, module in inner.items() if key in called}
        tail: tuple[nn.Module, ...] = (mlp,)
    else:  # VideoMAE adds the residual inside its second half
        mlp, mlp_exit = has["intermediate"], Point(has["output"].dropout, "output")
        fcs = {"fc1": mlp.dense, "fc2": has["output"].dense}
        tail = (mlp, has["output"].dense, has["output"].dropout)
    gains: tuple[Any, Any] = (None, None)
    scales: tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]] = ((), ())
    if "layer_scale1" in has:
        gains = (has["layer_scale1"], "lambda1"), (has["layer_scale2"], "lambda1")
        scales = (has["layer_scale1"],), (has["layer_scale2"],)
    elif isinstance(getattr(layer, "lambda_1", None), nn.Parameter):
        gains = (layer, "lambda_1"), (layer, "lambda_2")
    shared = has.get("drop_path", has.get("dropout"))
    if shared is None or "mlp" not in has:
        ends = Point(outer, "output"), mlp_exit
        last: tuple[nn.Module, ...] = ()
    else:
        calls = (outer, mlp)
        ends = Point(shared, "output", calls=calls, call=0), Point(shared, "output", calls=calls, call=1)
        last = (shared,)
    biased = "relative_position_bias" in has
    # a scale that is no module, a bias on the scores or rotary positions: then a branch is no plain chain
    plain = not biased and (gains[0] is None or "layer_scale1" in has) and "DINOv3" not in type(layer).__name__
    return Layer(
        norms=(first, second),
        attention=outer,
        core=core,
        qkv=cast(tuple[nn.Module, ...], qkv),
        proj=proj,
        mlp=mlp,
        mlp_exit=mlp_exit,
        fcs=fcs,
        ends=ends,
        gains=gains,
        steps=((first, outer, *scales[0], *last), (second, *tail, *scales[1], *last)) if plain else ((), ()),
        drop_path=float(getattr(has.get("drop_path"), "drop_prob", 0.0) or 0.0),
        biased=biased,
    )


@dataclass(frozen=True)
class CheckpointReading:
    """What a model is beside its layers: its pooling, its final norm, and what it does not use."""

    pooling: HfPooling
    kind: str
    final: nn.Module | None = None
    vector: bool = False
    mean: Point | None = None
    end: Point | None = None
    factor: int = 1
    masked: bool = False


def read_model(model: Any, inner: Any, layers: Any, prefix: int) -> CheckpointReading:
    """How the feature is pooled: as the model for classes does it, and as its authors do where there is no such."""
    name, classes = type(inner).__name__, is_for_classes(model)
    final = inner._modules.get("layernorm", inner._modules.get("norm", inner._modules.get("post_layernorm")))
    last = Point(layers[-1], "output")
    if for_maps(model):
        applied = getattr(inner.config, "apply_layernorm", False)
        final = final if applied or name.startswith("DINOv3") else None
        return CheckpointReading(
            HfPooling(as_pixels, mean_of_map), "avg", final, mean=Point(final, "output") if final else last
        )
    if name.startswith("Beit"):
        if inner.config.use_mean_pooling:
            mean = Point(inner.layernorm, "output")
            start = Point(inner.layernorm, "input")
            return CheckpointReading(
                HfPooling(as_pixels, pooler_output), "avg", inner.pooler.layernorm, True, mean, start
            )
        return CheckpointReading(HfPooling(as_pixels, pooler_output), "token", final)
    if name.startswith("CLIP"):
        if classes:
            return CheckpointReading(HfPooling(as_pixels, mean_of_patches), "avg", mean=last)
        return CheckpointReading(HfPooling(as_pixels, pooler_output), "token", final, True)
    if name.startswith("Siglip"):
        prepare = as_patches if name.startswith("Siglip2") else as_pixels
        if classes or not inner.use_head:
            return CheckpointReading(HfPooling(prepare, mean_of_tokens), "avg", final, mean=Point(final, "output"))
        return CheckpointReading(HfPooling(prepare, pooler_output), "map", final)
    if name.startswith(("Idefics3", "SmolVLM")):
        return CheckpointReading(HfPooling(as_pixels, mean_of_tokens), "avg", final, masked=True)
    if name.startswith("DPT"):  # its decoder reads the layers; nothing reads the norm behind them
        return CheckpointReading(HfPooling(with_hidden_states, token_of_last_layer), "token")
    if name.startswith("ViTMAE"):
        if inner.config.mask_ratio:
            raise UnknownBackbone(
                f"{type(model).__name__} masks {inner.config.mask_ratio:.0%} of the patches at random, so it gives no"
                " features of the whole image. Load it with from_pretrained(..., mask_ratio=0.0), or set"
                " model.config.mask_ratio = 0.0; create_backbone does so."
            )
        return CheckpointReading(HfPooling(unmasked, first_token), "token", final)
    if name.startswith("Dinov2") and classes:
        pooling = HfPooling(as_pixels, TokenAndMean(prefix))
        return CheckpointReading(pooling, "token+avg", final, mean=Point(final, "output"), factor=2)
    return CheckpointReading(HfPooling(as_pixels, first_token), "token", final)
