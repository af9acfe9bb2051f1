"""Towers inside larger models: found, named, and with the places that each library's tower has alone."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import timm
import torch
from torch import nn

import vpeft
from tests.models import roughen
from tests.unit.backbones.test_families import Look
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.describe import UnknownBackbone, describe
from vpeft.backbones.digest import weights_digest
from vpeft.backbones.places import Place, Projection
from vpeft.backbones.points import Layout
from vpeft.injection.hooks import Wiring

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def contrastive(kind: str) -> nn.Module:
    """A tiny model of transformers with an image and a text tower."""
    transformers: Any = pytest.importorskip("transformers")
    vision = {**SMALL, "image_size": 32, "patch_size": 8, "num_patches": 16}
    text = {**SMALL, "vocab_size": 50, "max_position_embeddings": 10, "projection_size": 32}
    ids = {"bos_token_id": 0, "eos_token_id": 49, "pad_token_id": 1}
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config={**text, **ids})
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, f"{kind}Model")(config).eval()
    return model


def clip(kind: str) -> nn.Module:
    """A tiny open_clip model."""
    pytest.importorskip("open_clip")
    from open_clip.coca_model import CoCa, MultimodalCfg
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8}
    text = {"context_length": 8, "vocab_size": 40, "width": 32, "heads": 4, "layers": 2}
    torch.manual_seed(0)
    if kind == "CoCa":
        pooled = {**vision, "attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 4}
        more = {"embed_cls": True, "output_tokens": True}
        decoder = MultimodalCfg(context_length=8, vocab_size=40, width=24, heads=4, layers=1)
        model: nn.Module = CoCa(
            24, decoder, CLIPTextCfg(**{**text, **more}), CLIPVisionCfg(**pooled, output_tokens=True)
        )
    elif kind == "timm":
        inner = CLIPVisionCfg(timm_model_name="test_vit", image_size=160)
        model = CustomTextCLIP(24, inner, CLIPTextCfg(**text))
    else:
        made = CLIP if kind == "CLIP" else CustomTextCLIP
        model = made(24, CLIPVisionCfg(**vision), CLIPTextCfg(**text))
    return model.eval()


TWO: dict[str, Callable[[], nn.Module]] = {
    **{kind: (lambda kind=kind: contrastive(kind)) for kind in ("CLIP", "Siglip", "Siglip2")},  # type: ignore[misc]
    **{f"open_clip {kind}": (lambda kind=kind: clip(kind)) for kind in ("CLIP", "Custom", "CoCa", "timm")},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", TWO)
def test_image_and_text_are_towers_and_their_places_say_so(name: str) -> None:
    model = TWO[name]()
    described = describe(model)
    assert described.host is model and list(described.towers) == ["image", "text"]
    image, text = described.towers.values()
    assert image.inputs.takes_images and text.inputs.layout == "tokens"
    names = [place.name for place in described.places()]
    assert len(set(names)) == len(names) and {one.partition(".")[0] for one in names} == {"image", "text"}
    for tower in (image, text):
        alone = [place.name for place in describe(tower.module).places()] if tower.module is not model else []
        assert not alone or [f"{tower.tower_name}.{one}" for one in alone] == [one.name for one in tower.places()]
        assert tower.place("blocks.1.mlp.fc1").name == f"{tower.tower_name}.blocks.1.mlp.fc1"
        with torch.no_grad():
            assert tower.pooled(tower.inputs.example(2)).shape == (2, tower.facts.width)


@pytest.mark.parametrize("name", TWO)
def test_both_towers_are_tuned_by_one_adapter(name: str, tmp_path: Any) -> None:
    model = TWO[name]()
    fresh = copy.deepcopy(model)
    targets = ("q", "v")
    tuned = vpeft.tune(model, {"image": vpeft.methods.LoRA(rank=2, targets=targets), "text": vpeft.methods.BitFit()})
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.05 * torch.randn_like(parameter))
    inputs = tuned.description.inputs.probe()
    tuned.eval()
    adapted = tuned.features(inputs)
    with tuned.disable():
        assert not torch.allclose(adapted, tuned.features(inputs), atol=1e-5)
    path = tuned.save(tmp_path / "a.safetensors")
    assert [entry.tower for entry in vpeft.read_manifest(path).methods] == ["image", "text"]
    again = vpeft.load(fresh, path).eval()
    assert torch.equal(again.features(inputs), adapted)
    if name == "CLIP":
        given: Any = model
        words, images = inputs["text"], inputs["image"]
        with torch.no_grad():
            own = tuned(input_ids=words, pixel_values=images)
            assert torch.equal(own.text_embeds, given(input_ids=words, pixel_values=images).text_embeds)


def test_a_text_tower_of_transformers_is_pooled_as_the_model_pools_it() -> None:
    model: Any = contrastive("CLIP")
    tower = describe(model.text_model)
    words = tower.inputs.example(3)
    with torch.no_grad():
        assert torch.equal(tower.pooled(words), model.text_model(input_ids=words).pooler_output)
        states = model.text_model(input_ids=words, output_hidden_states=True).hidden_states
    seen: list[torch.Tensor] = []
    point = tower.blocks[1].enter
    assert point is not None
    handle = point.module.register_forward_pre_hook(lambda _, args, named: seen.append(args[0]), with_kwargs=True)
    with torch.no_grad():
        tower.pooled(words)
    handle.remove()
    assert torch.equal(seen[0], states[1])
    with pytest.raises(vpeft.MissingPlace, match="made for the length of the text"):
        list(vpeft.methods.VPTDeep(tokens=2).edits(tower))


def segmenters() -> dict[str, Callable[[], nn.Module]]:
    """Hosts with one tower, and what each tower is."""
    from torchvision.models import detection, segmentation

    plain: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 3}
    return {
        "retinanet": lambda: detection.retinanet_resnet50_fpn(**plain),
        "mask r-cnn": lambda: detection.maskrcnn_resnet50_fpn(**plain),
        "deeplab": lambda: segmentation.deeplabv3_resnet50(**plain),
        "fcn": lambda: segmentation.fcn_resnet50(**plain),
    }


@pytest.mark.parametrize("name", segmenters())
def test_hosts_of_torchvision_have_one_tower_with_its_own_names(name: str) -> None:
    model = segmenters()[name]()
    described = describe(model)
    assert described.host is model and described.facts.family == "torchvision_layers"
    assert list(described.towers.values()) == [described]
    from torchvision.models import resnet50

    alone = [place.name for place in describe(resnet50(weights=None)).projections]
    assert [place.name for place in described.projections] == alone


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_segmenters_on_mobilenet_are_tuned(name: str) -> None:
    from torchvision.models import segmentation

    torch.manual_seed(0)
    model = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=3).eval()
    model.backbone.image_size = 64
    images = torch.randn(2, 3, 64, 64)
    tuned = vpeft.tune(model, vpeft.methods.LoRA(rank=2, targets=("all",)), train=("classifier",)).eval()
    assert torch.equal(tuned(images)["out"], model(images)["out"])
    tuned.train()(images)["out"].sum().backward()
    adapted = [p.grad for key, p in tuned.trainable() if key.startswith("blocks.")]
    assert adapted and all(gradient is not None for gradient in adapted)


def sam() -> nn.Module:
    """transformers' SAM, tiny: two blocks with padded windows, one without."""
    transformers: Any = pytest.importorskip("transformers")
    vision = {
        "hidden_size": 16,
        "output_channels": 12,
        "num_pos_feats": 6,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 3,
        "global_attn_indexes": [1],
        "mlp_dim": 32,
    }
    prompts = {
        "hidden_size": 12,
        "image_size": 64,
        "patch_size": 8,
        "image_embedding_size": 8,
        "mask_input_channels": 4,
    }
    masks = {
        "hidden_size": 12,
        "mlp_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 12,
    }
    config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=masks)
    torch.manual_seed(0)
    return roughen(transformers.SamModel(config))


def test_sam_is_tuned_and_gives_masks() -> None:
    model: Any = sam()
    described = describe(model)
    assert described.module is model.vision_encoder and described.facts.family == "hf_sam"
    named = {"pixel_values": torch.randn(1, 3, 64, 64), "input_points": torch.tensor([[[[10.0, 20.0]]]])}
    with torch.no_grad():
        plain = model(**named).pred_masks
    for method in (vpeft.methods.LoRA(rank=2), vpeft.methods.AdaptFormer(bottleneck=4), vpeft.methods.SSF()):
        tuned = vpeft.tune(model, method, train=("mask_decoder",)).eval()
        begins = torch.allclose(tuned(**named).pred_masks, plain, atol=1e-5)
        assert begins or not method.starts_as_identity
        for _, parameter in tuned.trainable():
            parameter.data += 0.05 * torch.randn_like(parameter)
        assert not torch.allclose(tuned(**named).pred_masks, plain, atol=1e-4)
        tuned(**named).pred_masks.sum().backward()
        assert all(p.grad is not None for key, p in tuned.trainable() if key.startswith("blocks."))
        tuned.detach()
        with torch.no_grad():
            assert torch.equal(model(**named).pred_masks, plain)
    with pytest.raises(vpeft.MissingPlace, match=r"blocks\.0\.attn_branch cannot after: its windows are cut"):
        described.blocks[0].attn_branch.after(nn.Identity())


def towers_to_watch() -> dict[str, Callable[[], nn.Module]]:
    """Towers that no list of families holds, as they have no model of their own there."""
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter

    def layers() -> nn.Module:
        made = IntermediateLayerGetter(resnet18(weights=None), {"layer3": "aux", "layer4": "out"})
        made.image_size = 64
        return made

    return {
        "sam": lambda: cast(Any, sam()).vision_encoder,
        "clip text": lambda: cast(Any, contrastive("CLIP")).text_model,
        "siglip text": lambda: cast(Any, contrastive("Siglip")).text_model,
        "resnet layers": layers,
    }


@pytest.mark.parametrize("name", towers_to_watch())
def test_each_place_runs_once_with_its_width_and_layout(name: str) -> None:
    backbone = describe(towers_to_watch()[name]().eval())
    seen: Counter[str] = Counter()
    wrong: list[str] = []

    def watch(place: Place, side: str, tensor: torch.Tensor) -> None:
        seen[f"{place.name} {side}"] += 1
        if place.name in ("outlet", "logits"):
            return
        conv = isinstance(place, Projection) and place.is_conv
        layout = Layout.CHANNELS_FIRST if conv else place.layout
        channels = tensor.shape[1] if layout is Layout.CHANNELS_FIRST else tensor.shape[-1]
        rows = place.rows is not None if isinstance(place, Projection) else False
        wide = place.width_in if side == "in" else place.width
        dims = {Layout.TOKENS: 3, Layout.MAP: 4, Layout.CHANNELS_FIRST: 4, Layout.VECTOR: 2}[layout]
        if tensor.dim() != dims or (channels != wide and not rows):
            wrong.append(f"{place.name} {side}: {tuple(tensor.shape)}, not {layout.value} with {wide}")

    wiring = Wiring()
    wiring.switch.on = "watch"
    expected = 0
    for place in backbone.places():
        for side, point in (("in", place.enter), ("out", place.exit)):
            if point is not None:
                wiring.at(point, Look(partial(watch, place, side)))
                expected += 1
    tuned = vpeft.TunedModel(backbone)
    with torch.no_grad():
        tuned(backbone.inputs.example(2))
    assert not wrong, wrong
    assert len(seen) == expected and set(seen.values()) == {1}, [one for one in seen if seen[one] != 1]


def transformers_hosts() -> dict[str, Callable[[Any], nn.Module]]:
    """Segmenters and models of pictures and words of transformers, tiny, and what their towers are."""

    def upernet(library: Any) -> nn.Module:
        inner = library.ConvNextConfig(
            hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
        )
        config = library.UperNetConfig(
            backbone_config=inner, hidden_size=16, pool_scales=[1, 2], use_auxiliary_head=False
        )
        made: nn.Module = library.UperNetForSemanticSegmentation(config)
        return made

    def segformer(library: Any) -> nn.Module:
        config = library.SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            hidden_sizes=[8, 16],
            num_attention_heads=[1, 2],
            sr_ratios=[2, 1],
            patch_sizes=[7, 3],
            strides=[4, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
        )
        made: nn.Module = library.SegformerForSemanticSegmentation(config)
        return made

    def captions(library: Any) -> nn.Module:
        vision = library.ViTConfig(**SMALL, image_size=32, patch_size=8)
        words = library.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, n_positions=16, bos_token_id=0)
        config = library.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, words)
        made: nn.Module = library.VisionEncoderDecoderModel(config)
        return made

    return {"hf_convnext": upernet, "hf_segformer": segformer, "hf_vit": captions}


@pytest.mark.parametrize("name", transformers_hosts())
def test_hosts_of_transformers_have_one_tower_and_run_with_it(name: str) -> None:
    library: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model: Any = transformers_hosts()[name](library).eval()
    described = describe(model)
    assert described.host is model and described.facts.family == name
    tuned = vpeft.tune(described, vpeft.methods.LoRA(rank=2, targets=("fc1", "fc2"))).eval()
    side = 64 if name in ("hf_convnext", "hf_segformer") else 32
    named: dict[str, Any] = {"pixel_values": torch.randn(1, 3, side, side)}
    if name == "hf_vit":
        named["decoder_input_ids"] = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        plain = model(**named).logits
        assert torch.equal(tuned(**named).logits, plain)
        for _, parameter in tuned.trainable():
            parameter.add_(0.1 * torch.randn_like(parameter))
        assert not torch.equal(tuned(**named).logits, plain)
    tuned(**named).logits.sum().backward()
    assert all(p.grad is not None for _, p in tuned.trainable())


def test_a_host_that_does_not_use_the_last_block_says_so_in_training() -> None:
    library: Any = pytest.importorskip("transformers")

    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = library.CLIPVisionModel(library.CLIPVisionConfig(**SMALL, image_size=32, patch_size=8))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            states = self.inner(images, output_hidden_states=True).hidden_states
            found: torch.Tensor = states[-2].mean(1)
            return found

    torch.manual_seed(0)
    model, images = Early(), torch.randn(1, 3, 32, 32)
    model(images)  # transformers puts hooks of its own on a model when it is first run
    hooked = sum(len(module._forward_hooks) for module in model.modules())
    tuned = vpeft.tune(model, vpeft.methods.LoRA(rank=2))
    tuned.eval()(images)
    with pytest.raises(vpeft.DeadPlace, match=r"does not depend on the output of blocks\.1, so edits there"):
        tuned.train()(images)
    tuned.detach()
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooked


def test_blocks_that_a_language_model_does_not_read_are_no_places() -> None:
    library: Any = pytest.importorskip("transformers")
    vision = library.CLIPVisionConfig(**SMALL, image_size=32, patch_size=8)
    words = library.LlamaConfig(**SMALL, vocab_size=64, bos_token_id=0, eos_token_id=1)
    for layer, blocks in ((-1, 2), (-2, 1)):
        config = library.LlavaConfig(
            vision_config=vision, text_config=words, image_token_id=63, vision_feature_layer=layer
        )
        assert len(describe(library.LlavaForConditionalGeneration(config)).towers["vision"].blocks) == blocks


def test_a_host_that_runs_its_tower_without_gradients_says_so() -> None:
    class Frozen(Wrapped):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                features = self.inner["net"](images)
            out: torch.Tensor = self.last(features)
            return out

    tuned = vpeft.tune(Frozen(), vpeft.methods.LoRA(rank=2), train=("last",)).train()
    with pytest.raises(vpeft.DeadPlace, match="runs its tower without gradients"):
        tuned(torch.randn(2, *tuned.description.inputs.shape))


class Wrapped(nn.Module):
    """Anybody's module around a timm model."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.ModuleDict({"net": timm.create_model("test_vit", num_classes=0, **options)})
        self.last = nn.Linear(self.inner["net"].num_features, 3)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.inner["net"](images))
        return out


def test_a_timm_model_inside_anybodys_module_is_its_tower() -> None:
    model = Wrapped()
    described = describe(model)
    assert described.module is model.inner["net"] and described.host is model
    tuned = vpeft.tune(model, vpeft.methods.LoRA(rank=2), train=("last",))
    tuned(torch.randn(2, *described.inputs.shape)).sum().backward()
    assert {"last.unfreeze.weight", "last.unfreeze.bias"} <= {
        name for name, p in tuned.trainable() if p.grad is not None
    }


def test_the_digest_of_a_host_covers_all_of_it() -> None:
    one, other = Wrapped(), Wrapped()
    assert weights_digest(describe(one)) == weights_digest(describe(other))
    with torch.no_grad():
        other.last.bias.add_(1.0)
    assert weights_digest(describe(one)) != weights_digest(describe(other))


def test_a_model_without_a_known_part_is_refused_as_before() -> None:
    with pytest.raises(UnknownBackbone, match="Say where its blocks are"):
        describe(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UnknownBackbone, match=r"Its part 0 cannot be described: This FeatureListNet holds"):
        describe(nn.Sequential(timm.create_model("test_convnext", features_only=True)))


def test_a_module_that_two_attributes_share_is_one_tower() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = vpeft.create_backbone("pocket_vit")
            self.right = self.left

    found: Backbone = describe(Siamese())
    assert list(found.towers) == [""]
