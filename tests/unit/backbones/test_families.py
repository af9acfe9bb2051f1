"""Each family says of its places what is true: executed once, of the declared width and layout, under stored names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.families import EVERY, VARIANTS
from tests.models import images_for, library_features, library_output, tiny_convnext, tiny_swin, tiny_vit
from tests.unit.backbones.store_place_names import stored_names
from vpeft.backbones.places import Norm, Place, Projection
from vpeft.backbones.points import Layout
from vpeft.injection.hooks import CoreEdits, WeightEdits, Wiring
from vpeft.injection.operations import Operation
from vpeft.injection.switch import Switch

SETTINGS: dict[str, Callable[[], nn.Module]] = {
    **EVERY,
    **VARIANTS,
    "vit registers": lambda: tiny_vit(reg_tokens=4, no_embed_class=True),
    "vit average pool": lambda: tiny_vit(class_token=False, global_pool="avg"),
    "vit average pool with class token": lambda: tiny_vit(global_pool="avg"),
    "vit map pool": lambda: tiny_vit(class_token=False, global_pool="map"),
    "vit layer scale": lambda: tiny_vit(init_values=0.5),
    "vit qk-norm": lambda: tiny_vit(qk_norm=True),
    "vit scaled norms": lambda: tiny_vit(scale_attn_norm=True, scale_mlp_norm=True),
    "vit dynamic size": lambda: tiny_vit(dynamic_img_size=True),
    "vit pre-norm": lambda: tiny_vit(pre_norm=True),
    "vit drop path": lambda: tiny_vit(drop_path_rate=0.2),
    "vit unfused": lambda: _unfused(tiny_vit()),
    "vit post-norm": lambda: _post_norm(),
    "swin padded": lambda: tiny_swin(window_size=5),
    "swin whole windows": lambda: tiny_swin(always_partition=True, window_size=8),
    "convnext 1x1": lambda: tiny_convnext(conv_mlp=True),
    "convnext v2": lambda: tiny_convnext(use_grn=True, ls_init_value=None),
    "convnext overlapping stem": lambda: tiny_convnext(stem_type="overlap_tiered"),
    "convnext norm first": lambda: tiny_convnext(head_norm_first=True),
}


def _unfused(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def _post_norm() -> nn.Module:
    from timm.models.vision_transformer import ResPostBlock

    return tiny_vit(block_fn=ResPostBlock)


@pytest.fixture(params=SETTINGS, ids=str)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return SETTINGS[request.param]()


@pytest.mark.parametrize("family", EVERY)
def test_names_are_the_stored_ones(family: str) -> None:
    """Adapter files name places: a change here breaks every file that was saved before."""
    names = stored_names()
    assert family in names, "a new family: python -m tests.unit.backbones.store_place_names, and read what it wrote"
    assert [place.name for place in vpeft.describe(EVERY[family]()).places()] == names[family]


class Look(Operation):
    """Shows a test what passes a point."""

    def __init__(self, show: Callable[[Tensor], None]) -> None:
        super().__init__("watch", 0)
        self.show = show

    def act(self, hidden: Tensor) -> Tensor:
        self.show(hidden)
        return hidden


def test_each_place_is_executed_once_with_its_width_and_layout(model: nn.Module) -> None:
    backbone = vpeft.describe(model)
    seen: Counter[str] = Counter()
    problems = []

    def watch(place: Place, side: str, tensor: Tensor) -> None:
        seen[f"{place.name} {side}"] += 1
        layout = place.layout
        if side == "in" and isinstance(place, Projection) and place.is_conv:
            layout = Layout.CHANNELS_FIRST  # a patch embedding flattens what its convolution gives
        width = place.width_in if side == "in" else place.width
        if place.name in ("logits", "outlet"):
            return
        channels = tensor.shape[1] if layout is Layout.CHANNELS_FIRST else tensor.shape[-1]
        rows = place.rows if isinstance(place, Projection) else None
        if channels != width and rows is None and not (isinstance(place, Norm) and "_norm" in place.name):
            problems.append(f"{place.name} {side}: {tuple(tensor.shape)} is not {width} wide")
        expected = {Layout.TOKENS: 3, Layout.MAP: 4, Layout.CHANNELS_FIRST: 4, Layout.VECTOR: 2}[layout]
        clips = backbone.inputs.frames is not None
        timed = clips and not place.per_frame and layout in (Layout.MAP, Layout.CHANNELS_FIRST)
        if place.per_frame and len(tensor) % (2 * (backbone.inputs.frames or 1)):
            problems.append(f"{place.name} {side}: {tuple(tensor.shape)} has no row for each frame of two clips")
        if tensor.dim() != expected + timed and "_norm" not in place.name:
            problems.append(f"{place.name} {side}: {tuple(tensor.shape)} is not {layout.value}")

    wiring = Wiring()
    wiring.switch.on = "watch"
    for place in backbone.places():
        for side, point in (("in", place.enter), ("out", place.exit)):
            if point is not None:
                wiring.at(point, Look(partial(watch, place, side)))
    tuned = vpeft.TunedModel(backbone)
    tuned(images_for(model))
    assert not problems, problems
    often = {name: count for name, count in seen.items() if count != 1}
    assert not often, f"not executed exactly once: {often}"
    expected = sum((place.enter is not None) + (place.exit is not None) for place in backbone.places())
    assert len(seen) == expected, "some places are never executed"


def test_features_are_those_of_the_library(model: nn.Module) -> None:
    backbone = vpeft.describe(model)
    images = images_for(model)
    assert torch.equal(backbone.pooled(images), library_features(model, images))
    assert torch.equal(vpeft.TunedModel(backbone)(images), library_output(model, images))
    assert backbone.pooled(images).shape == (2, backbone.facts.width)


def test_re_expressions_are_bit_equal_without_edits(model: nn.Module) -> None:
    """Attention, linear and convolution classes that stand in during edits compute the same bits when nothing edits."""
    images = images_for(model)
    before = library_output(model, images)
    switch, swapped, wiring = Switch(), 0, Wiring()
    wiring.switch.on = "none"
    for place in vpeft.describe(model).places():
        for point in (place.enter, place.exit):
            wiring.express(point.needs if point is not None else (), "none")
        for verb, pairs in place.rewrites.items():
            for module, kind in pairs:
                if verb == "insert_tokens":
                    module.__dict__["vpeft_carrier"] = place.carrier
                elif verb == "extend":
                    module.__dict__["vpeft_core"] = CoreEdits(switch)
                else:
                    module.__dict__["vpeft_weight"] = WeightEdits(switch)
                if type(module) is not kind:
                    module.__class__ = kind
                    swapped += 1
    assert swapped
    assert torch.equal(library_output(model, images), before)


def test_every_parameter_has_a_place(model: nn.Module) -> None:
    backbone = vpeft.describe(model)
    owned = [id(m._parameters[a]) for place in backbone.whole.walk() for m, a in place.own.values()]
    assert len(owned) == len(set(owned)), "a parameter belongs to two places"
    apart = {id(p) for p in (*backbone.unused, *backbone.classifier.parameters())}
    assert not apart & set(owned)
    assert set(owned) | apart == {id(p) for p in model.parameters()}


def test_missing_place_lists_what_exists() -> None:
    backbone = vpeft.describe(tiny_convnext())
    with pytest.raises(vpeft.MissingPlace, match="has no 'attn'.*It has: conv, norm2, mlp"):
        _ = backbone.blocks[0].attn
    with pytest.raises(vpeft.MissingPlace, match=r"no place 'attn\.core' in blocks\.0.*conv"):
        backbone.require("attn.core")
    with pytest.raises(vpeft.MissingPlace, match=r"cannot insert_tokens: .* is a map,.*; it offers: after, before"):
        backbone.trunk.insert_tokens(nn.Identity())
    with pytest.raises(vpeft.MissingPlace, match=r"Did you mean .*blocks\.0\.mlp"):
        backbone.place("blocks.0.mpl")


def test_unknown_models_are_refused_with_the_list_of_families() -> None:
    with pytest.raises(vpeft.VpeftError, match="timm_vit .VisionTransformer.*CONTRIBUTING"):
        vpeft.describe(nn.Linear(3, 3))
    from timm.models.vision_transformer import ParallelThingsBlock

    with pytest.raises(vpeft.VpeftError, match="ParallelThingsBlock; timm_vit describes"):
        vpeft.describe(tiny_vit(block_fn=ParallelThingsBlock))


def test_create_backbone_names_the_nearest() -> None:
    with pytest.raises(vpeft.VpeftError, match="vit_tiny_patch16_224"):
        vpeft.create_backbone("vit_tini_patch16_224", pretrained=False)
    model = vpeft.create_backbone("vit_tiny_patch16_224", pretrained=False)
    assert vpeft.describe(model).facts.architecture.startswith("vit_tiny_patch16_224")
