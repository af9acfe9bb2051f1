"""Whole models as hosts: tuned by their own loss, saved, reloaded bit-equal, detached exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vpeft
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import LST, PETAL, SSF, AdaptFormer, BitFit, LoRA, SideTuning, VPTDeep


def detector() -> nn.Module:
    """torchvision's Faster R-CNN with a feature pyramid on ResNet-18, for images of 64 pixels and two classes."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.faster_rcnn import TwoMLPHead

    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    model: nn.Module = FasterRCNN(
        body, num_classes=None, min_size=64, max_size=64, box_head=TwoMLPHead(256 * 49, 32), box_predictor=_predictor()
    )
    return model.eval()


def _predictor() -> nn.Module:
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    return FastRCNNPredictor(32, 3)


def detr(inner: Any = None) -> nn.Module:
    """transformers' DETR on its own tiny ResNet, or on another backbone's configuration."""
    transformers: Any = pytest.importorskip("transformers")
    if inner is None:
        inner = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic", out_features=["stage2"]
        )
    config = transformers.DetrConfig(
        backbone_config=inner,
        use_timm_backbone=False,
        num_labels=2,
        num_queries=3,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
    )
    torch.manual_seed(0)
    model: nn.Module = transformers.DetrForObjectDetection(config).eval()
    return model


def clip() -> nn.Module:
    """open_clip's CLIP, tiny: images of 32 pixels, texts of eight tokens."""
    pytest.importorskip("open_clip")
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(image_size=32, patch_size=8, width=32, layers=2, head_width=8, mlp_ratio=2.0)
    text = CLIPTextCfg(context_length=8, vocab_size=40, width=32, heads=4, layers=2, mlp_ratio=2.0)
    torch.manual_seed(0)
    model: nn.Module = CLIP(24, vision, text).eval()
    return model


def boxes(count: int, size: int = 64) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Images with a bright square each, and its box and label."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        left, top = (int(value) for value in torch.randint(4, size // 2, (2,), generator=generator))
        image = 0.1 * torch.rand(3, size, size, generator=generator)
        image[index % 3, top : top + 24, left : left + 24] = 1.0
        box = torch.tensor([[left, top, left + 24, top + 24]], dtype=torch.float32)
        made.append((image, {"boxes": box, "labels": torch.tensor([1 + index % 2])}))
    return made


def named_boxes(count: int) -> list[dict[str, Any]]:
    """The same for transformers: centre, width and height as fractions of the image."""
    made = []
    for image, target in boxes(count):
        left, top, right, bottom = (target["boxes"][0] / 64).tolist()
        box = torch.tensor([[(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]])
        made.append({"pixel_values": image, "labels": {"class_labels": target["labels"] - 1, "boxes": box}})
    return made


def texts(count: int) -> Tensor:
    """Rows of eight tokens that all end with the end token."""
    rows = torch.randint(1, 38, (count, 8), generator=torch.Generator().manual_seed(2))
    rows[:, -1] = 39
    return rows


@dataclass(frozen=True)
class Host:
    """A model, how it is tuned, its own loss on a fixed batch, and what it gives in evaluation."""

    make: Callable[[], nn.Module]
    methods: tuple[Any, ...]
    train: tuple[str, ...]
    loss: Callable[[TunedModel], Tensor]
    outputs: Callable[[Any], Any]


def _detector_loss(tuned: TunedModel) -> Tensor:
    images, targets = zip(*boxes(2), strict=True)
    losses = tuned(list(images), list(targets))
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    return torch.stack(list(losses.values())).sum()


def _detr_loss(tuned: TunedModel) -> Tensor:
    samples = named_boxes(2)
    images = torch.stack([sample["pixel_values"] for sample in samples])
    found: Tensor = tuned(pixel_values=images, labels=[sample["labels"] for sample in samples]).loss
    return found


def _clip_loss(tuned: TunedModel) -> Tensor:
    from open_clip.loss import ClipLoss

    images, words, scale = tuned(torch.stack([image[:, :32, :32] for image, _ in boxes(4)]), texts(4))
    found: Tensor = ClipLoss()(images, words, scale)
    return found


HOSTS = {
    "detector": Host(
        detector,
        (LoRA(rank=2),),
        ("roi_heads.box_predictor", "rpn.head.cls_logits"),
        _detector_loss,
        lambda model: model([image for image, _ in boxes(2)]),
    ),
    "detr": Host(
        detr,
        (LoRA(rank=2, targets=("all",)),),
        ("class_labels_classifier", "bbox_predictor"),
        _detr_loss,
        lambda model: model(pixel_values=torch.stack([image for image, _ in boxes(2)])),
    ),
    "clip": Host(
        clip,
        ({"image": LoRA(rank=2), "text": [LoRA(rank=2), BitFit()]},),
        ("logit_scale",),
        _clip_loss,
        lambda model: model(torch.stack([image[:, :32, :32] for image, _ in boxes(2)]), texts(2)),
    ),
}


def flat(outputs: Any) -> list[Tensor]:
    """Every tensor among the outputs."""
    if isinstance(outputs, Tensor):
        return [outputs]
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, (list, tuple)) else ()
    return [tensor for part in parts for tensor in flat(part)]


def equal(one: Any, other: Any) -> bool:
    """Whether two outputs hold the same bits."""
    pairs = list(zip(flat(one), flat(other), strict=True))
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)


def hooks(model: nn.Module) -> int:
    """How many hooks there are on all modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_learns_by_its_own_loss_and_is_left_as_it_was(name: str, tmp_path: Path) -> None:
    case = HOSTS[name]
    model = case.make()
    fresh = copy.deepcopy(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    classes, hooked = [type(module) for module in model.modules()], hooks(model)
    flags = [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        plain = case.outputs(model)
    tuned = vpeft.tune(model, *case.methods, train=case.train)
    assert tuned.backbone is model and tuned.description.host is model
    with torch.no_grad():
        begun = case.outputs(tuned.eval())
    pairs = zip(flat(begun), flat(plain), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)  # open_clip's fused attention differs in last bits
    own = {key for key, _ in tuned.trainable()}
    for part in case.train:
        assert any(key.startswith(f"{part}.unfreeze.") for key in own), part

    tuned.train()
    optimiser = torch.optim.AdamW([p for _, p in tuned.trainable()], lr=3e-3)
    losses = []
    torch.manual_seed(0)
    for _ in range(10):
        loss = case.loss(tuned)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < losses[0], losses
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)

    with torch.no_grad():
        learnt = case.outputs(tuned.eval())
    assert len(flat(learnt)) != len(flat(plain)) or not equal(learnt, plain)
    path = tuned.save(tmp_path / "host.safetensors")
    again = vpeft.load(fresh, path).eval()
    with torch.no_grad():
        assert equal(case.outputs(again), learnt)
    assert again.methods() == tuned.methods() and str(again.plan()) == str(tuned.plan())

    assert tuned.detach() is model
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert [type(module) for module in model.modules()] == classes and hooks(model) == hooked
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(key.startswith("vpeft") for module in model.modules() for key in module.__dict__)
    with torch.no_grad():
        assert equal(case.outputs(model.eval()), plain)


@pytest.mark.parametrize("name", ["detector", "detr"])
def test_fit_trains_a_host_by_the_host_task(name: str, tmp_path: Path) -> None:
    case = HOSTS[name]
    data: Any = boxes(4) if name == "detector" else named_boxes(4)
    model = case.make()
    tuned = vpeft.tune(model, *case.methods, train=case.train)
    modes = {key: value.clone() for key, value in model.state_dict().items()}
    settings = vpeft.Optimisation(epochs=6, batch=2, lr=3e-3)
    result = vpeft.fit(
        tuned, data, data, optimisation=settings, task=vpeft.get_task("host")(), progress=False, out=tmp_path
    )
    losses = [record.val["loss"] for record in result.history if record.val is not None]
    assert len(losses) == 6 and losses[-1] < losses[0], losses
    assert result.val is not None and result.val.leading == "loss" and not result.val.higher_is_better
    again = vpeft.evaluate(tuned, data, task=vpeft.get_task("host")(), batch=2)
    assert again.value == vpeft.evaluate(tuned, data, batch=2).value == result.val.value
    if name == "detector":
        parts = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
        assert set(again.values) == {*parts, "loss"}
        assert again.value == pytest.approx(sum(again.values[part] for part in parts), rel=1e-5)
    tuned.detach()
    after = model.state_dict()
    assert all(torch.equal(after[key], modes[key]) for key in modes if key in after)


def test_validation_of_a_detector_moves_no_statistics_and_draws_no_dropout() -> None:
    from vpeft.tasks.host import held_still

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    images = torch.randn(2, 3, 8, 8)
    expected = net(images)
    with held_still(net):
        assert net.training and net[0].training
        assert torch.equal(net(images), expected)
    assert not any(module.training for module in net.modules()) and int(net[1].num_batches_tracked) == 0  # type: ignore[arg-type]


def test_the_host_task_says_what_it_cannot_do() -> None:
    task = vpeft.get_task("host")()
    with pytest.raises(vpeft.MissingPlace, match="bare backbone and has no loss"):
        vpeft.tune(vpeft.create_backbone("pocket_vit"), LoRA(), task=task)
    with pytest.raises(vpeft.VpeftError, match="and no loss: neither a mapping of scalars"):
        task.loss({"logits": torch.zeros(2, 3)}, vpeft.Batch(torch.zeros(2)))
    assert task.loss({"loss": torch.tensor(2.0), "logits": torch.zeros(2, 3)}, vpeft.Batch(None)) == {"loss": 2.0}


class Pair(nn.Module):
    """Two backbones of one kind, whose features are compared."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (vpeft.create_backbone("pocket_vit") for _ in range(2))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        a, b = (nn.functional.normalize(net(x), dim=1) for net, x in ((self.first, one), (self.second, other)))
        return a @ b.T


def test_methods_are_put_on_towers_by_name() -> None:
    model = clip()
    with pytest.raises(vpeft.VpeftError, match=r"has the towers image, text; .* tune\(model, \{'image': LoRA"):
        vpeft.tune(model, LoRA())
    with pytest.raises(vpeft.VpeftError, match=r"has no tower 'images'\. Did you mean 'image'"):
        vpeft.tune(model, {"images": LoRA()})
    with pytest.raises(vpeft.VpeftError, match="edits each tower by itself"):
        vpeft.tune(model, {"*": LoRA()})
    with pytest.raises(vpeft.VpeftError, match="a head belongs to one of them"):
        vpeft.tune(model, {"image": LoRA()}, num_classes=2)
    with pytest.raises(vpeft.VpeftError, match="has one tower"):
        vpeft.tune(vpeft.create_backbone("pocket_vit"), {"image": LoRA()})
    assert hooks(model) == 0
    tuned = vpeft.tune(model, {"image": VPTDeep(tokens=2), "text": AdaptFormer(bottleneck=4)})
    places = {row.place.split(".")[0]: row.layer for row in tuned.plan().rows}
    assert places == {"image": "PromptTokens", "text": "Bottleneck"}
    assert tuned.plan().methods == tuple(str(one) for one in tuned.placed())
    assert [one.tower for one in tuned.placed()] == ["image", "text"]


def test_the_hosts_own_functions_give_adapted_features() -> None:
    model: Any = clip()
    tuned = vpeft.tune(model, {"image": SSF(), "text": LoRA(rank=2)}).eval()
    for _, parameter in tuned.trainable():
        parameter.data += 0.1 * torch.randn_like(parameter)
    images, words = torch.stack([image[:, :32, :32] for image, _ in boxes(2)]), texts(2)
    with torch.no_grad():
        given = tuned(images, words)
        assert torch.equal(given[0], model.encode_image(images, normalize=True))
        assert torch.equal(given[1], model.encode_text(words, normalize=True))
        with tuned.disable():
            assert not torch.allclose(given[0], tuned(images, words)[0])
        both = tuned.features({"image": images, "text": words})
        assert torch.equal(both[:, :24], tuned.features({"image": images}))
    with pytest.raises(vpeft.MissingPlace, match="features need inputs by tower"):
        tuned.features(images)


def test_what_a_host_never_comes_by_is_refused() -> None:
    model = detector()
    with pytest.raises(vpeft.MissingPlace, match=r"FasterRCNN runs the tower and never comes by outlet"):
        vpeft.tune(model, SideTuning())
    assert hooks(model) == 0

    class Cut(nn.Module):
        """Runs the first half of its tower alone, as no description can foresee."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net: Any = vpeft.create_backbone("pocket_vit")

        def forward(self, images: Tensor) -> Any:
            return self.net.forward_intermediates(images, indices=[0], stop_early=True, intermediates_only=True)

    tuned = vpeft.tune(Cut(), LoRA(rank=2))
    with pytest.raises(vpeft.DeadPlace, match=r"The forward pass of Cut does not execute these edits.*: blocks\.1"):
        tuned(torch.randn(1, 3, *tuned.description.inputs.size))


def test_a_head_on_the_tower_of_a_host_leaves_the_host_alone() -> None:
    tuned = vpeft.tune(detector(), LoRA(rank=2), num_classes=5).eval()
    assert tuned(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_towers_of_anybody_are_named_by_their_attributes() -> None:
    described = vpeft.describe(Pair())
    assert list(described.towers) == ["first", "second"]
    assert described.place("second.blocks.0.attn.q").width == described.towers["first"].blocks[0].width
    assert described.towers["second"].place("blocks.0.attn.q") is described.place("second.blocks.0.attn.q")


def test_a_file_of_a_host_is_refused_where_any_part_of_the_host_differs(tmp_path: Path) -> None:
    model: Any = detr()
    other = copy.deepcopy(model)
    path = vpeft.tune(model, LoRA(rank=2, targets=("all",))).save(tmp_path / "a.safetensors")
    with torch.no_grad():
        other.bbox_predictor.layers[0].weight += 1.0
    with pytest.raises(vpeft.VpeftError, match="was made on"):
        vpeft.load(other, path)


@pytest.mark.parametrize("name", HOSTS)
def test_copies_and_merged_weights_of_a_host_give_the_same(name: str) -> None:
    case = HOSTS[name]
    model = case.make()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tuned = vpeft.tune(model, *case.methods, train=case.train).eval()
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.02 * torch.randn_like(parameter))
        given = case.outputs(tuned)
        twin = copy.deepcopy(tuned)
        tuned.detach()
        assert equal(case.outputs(twin), given)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        pairs = zip(flat(case.outputs(twin.merge())), flat(given), strict=True)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


def test_a_method_that_shares_layers_edits_all_towers_together(tmp_path: Path) -> None:
    model = Pair()
    tuned = vpeft.tune(model, {"*": PETAL(rank=4)})
    first, second = (
        next(
            p
            for key, p in tuned.adapter().named_parameters(remove_duplicate=False)
            if key.startswith(tower) and "U" in key
        )
        for tower in ("first", "second")
    )
    assert first is second
    alone = vpeft.tune(vpeft.create_backbone("pocket_vit"), PETAL(rank=4)).plan().trainable
    vectors = sum(p.numel() for key, p in tuned.trainable() if key.endswith(".P"))
    assert tuned.plan().trainable == alone + vectors // 2
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.05 * torch.randn_like(parameter))
    images = [torch.randn(2, 3, *tuned.description.inputs.size) for _ in range(2)]
    given = tuned.eval()(*images)
    assert not torch.allclose(given, model(images[0], images[0])) and given.shape == (2, 2)
    again = vpeft.load(Pair(), tuned.save(tmp_path / "pair.safetensors")).eval()
    assert torch.equal(again(*images), given)
    assert [entry.tower for entry in vpeft.read_manifest(tmp_path / "pair.safetensors").methods] == ["*"]


def test_several_adapters_on_one_batch_are_refused_on_a_host() -> None:
    tuned = vpeft.tune(Pair(), {"first": LoRA(rank=2)})
    tuned.attach({"second": LoRA(rank=2)}, name="other")
    images = torch.randn(2, 3, *tuned.description.inputs.size)
    with tuned.enable("default", "other"), pytest.raises(vpeft.VpeftError, match="one adapter at a time"):
        tuned(images, images)


def test_lst_on_a_host_says_why_not() -> None:
    with pytest.raises(vpeft.MissingPlace, match="outlet"):
        vpeft.tune(clip(), {"image": LST()})
