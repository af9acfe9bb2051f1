"""SegFormer's and UPerNet's decoders against transformers' with copied weights; batches of one; options."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.models import tiny_convnext, tiny_swin, tiny_vit
from torch import Tensor, nn
from transformers import SegformerConfig, UperNetConfig
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead
from transformers.models.upernet.modeling_upernet import UperNetFCNHead
from transformers.models.upernet.modeling_upernet import UperNetHead as TheirUperNet

import vpeft
from vpeft.backbones.features import Feature, Features
from vpeft.head import BadHead, get_head, make_head
from vpeft.heads.segformer_map import SegformerMapHead
from vpeft.heads.upernet import UperNetHead
from vpeft.layers.conv_norm_relu import BatchNorm2dOrRunning, map_norm
from vpeft.methods.linear_probe import LinearProbe

WIDTHS, STRIDES = [8, 12, 16, 20], [4, 8, 16, 32]
PYRAMID: dict[str, Any] = {"places": ["a", "b", "c", "d"], "widths": WIDTHS, "strides": STRIDES}


def _levels(count: int = 2, height: int = 64, width: int = 96) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randn(count, wide, height // stride, width // stride, generator=draw)
        for wide, stride in zip(WIDTHS, STRIDES, strict=True)
    ]


def _features(levels: list[Tensor]) -> Features:
    names = PYRAMID["places"]
    return Features({name: Feature(one.movedim(1, -1)) for name, one in zip(names, levels, strict=True)})


def _copied(own: nn.Module, theirs: nn.Module) -> None:
    """Their weights in our module, in the order in which both are made; every tensor has a partner of its shape."""
    ours, other = own.state_dict(), theirs.state_dict()
    assert [tuple(value.shape) for value in ours.values()] == [tuple(value.shape) for value in other.values()]
    own.load_state_dict(dict(zip(ours, other.values(), strict=True)))


def _rough(module: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
            value.add_(torch.rand(value.shape, generator=draw) * 0.2)
    return module.eval()


def test_segformer_is_that_of_transformers() -> None:
    config = SegformerConfig(hidden_sizes=WIDTHS, decoder_hidden_size=24, num_labels=5)
    theirs = _rough(SegformerDecodeHead(config))
    own = SegformerMapHead(PYRAMID, 5, channels=24).eval()
    levels = _levels()
    linear = [one.proj for one in theirs.linear_projections]  # type: ignore[union-attr]
    for mine, other in zip(own.linear, linear, strict=True):
        mine.load_state_dict({"weight": other.weight[:, :, None, None], "bias": other.bias})
    _copied(own.fuse, nn.Sequential(theirs.linear_fuse, theirs.batch_norm))  # type: ignore[arg-type]
    own.conv.load_state_dict(theirs.classifier.state_dict())  # type: ignore[union-attr]
    own.maps.levels = nn.ModuleList(nn.Identity() for _ in WIDTHS)
    torch.testing.assert_close(own(_features(levels)), theirs(levels))
    count = sum(value.numel() for value in theirs.parameters())
    assert sum(value.numel() for value in own.parameters()) == count


def test_upernet_is_that_of_transformers() -> None:
    config = UperNetConfig(hidden_size=24, num_labels=5, auxiliary_channels=10)
    theirs, auxiliary = _rough(TheirUperNet(config, WIDTHS)), _rough(UperNetFCNHead(config, WIDTHS))
    own = UperNetHead(PYRAMID, 5, channels=24, auxiliary_channels=10, dropout=0.0).eval()
    for mine, other in (
        (own.conv, "classifier"),
        (own.pooled, "psp_modules"),
        (own.context, "bottleneck"),
        (own.lateral, "lateral_convs"),
        (own.smooth, "fpn_convs"),
        (own.fuse, "fpn_bottleneck"),
    ):
        _copied(mine, getattr(theirs, other))
    assert own.auxiliary is not None
    _copied(own.auxiliary, auxiliary)
    own.maps.levels = nn.ModuleList(nn.Identity() for _ in WIDTHS)
    levels = _levels()
    torch.testing.assert_close(own(_features(levels)), theirs(levels))
    torch.testing.assert_close(own.auxiliary(levels[own.auxiliary_level]), auxiliary(levels))


@pytest.mark.parametrize(("widths", "labels"), [([96, 192, 384, 768], 150), ([128, 256, 512, 1024], 19)])
def test_upernet_has_as_many_parameters_as_that_of_transformers(widths: list[int], labels: int) -> None:
    """For Swin-T and Swin-B: with the norms of the levels, which transformers has in its backbone."""
    with torch.device("meta"):
        config = UperNetConfig(num_labels=labels, auxiliary_in_channels=widths[2])
        theirs = (TheirUperNet(config, widths), UperNetFCNHead(config, widths))
        own = UperNetHead({**PYRAMID, "widths": widths}, labels)
    count = sum(value.numel() for module in theirs for value in module.parameters())
    assert sum(value.numel() for value in own.parameters()) == count + 2 * sum(widths)


def test_upernet_gives_its_auxiliary_logits_in_training_alone() -> None:
    head = UperNetHead(PYRAMID, 5, channels=8, auxiliary_channels=6)
    outputs = head(_features(_levels()))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "logits": (2, 5, 16, 24),
        "auxiliary": (2, 5, 4, 6),
    }
    assert head.eval()(_features(_levels())).shape == (2, 5, 16, 24)
    without = UperNetHead(PYRAMID, 5, channels=8, auxiliary=False)
    assert without(_features(_levels())).shape == (2, 5, 16, 24)


def test_fewer_levels() -> None:
    pyramid = {"places": ["a", "b"], "widths": [8, 12], "strides": [2, 4]}
    head = UperNetHead(pyramid, 5, channels=8)
    levels = [torch.randn(2, 8, 12, 16), torch.randn(2, 12, 6, 8)]
    features = Features({name: Feature(one.movedim(1, -1)) for name, one in zip("ab", levels, strict=True)})
    outputs = head(features)
    assert outputs["logits"].shape == (2, 5, 12, 16) and outputs["auxiliary"].shape == (2, 5, 12, 16)


@pytest.mark.parametrize("kind", ["upernet", "segformer_map"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_batch_of_one_image_trains(kind: str, norm: str) -> None:
    """Pyramid pooling gives it one value for each channel, which torch's BatchNorm refuses."""
    model = tiny_vit(img_size=32, patch_size=16)
    head = make_head(f"{kind}(channels=8, norm={norm})", vpeft.describe(model), 48, 3)
    tuned = vpeft.tune(model, LinearProbe(), head=head).train()
    outputs = tuned(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    assert logits.shape == (1, 3, 8, 8)
    logits.square().mean().backward()
    found = {name: parameter.grad for name, parameter in head.named_parameters() if parameter.requires_grad}
    reached = [name for name, grad in found.items() if grad is not None and bool(torch.isfinite(grad).all())]
    assert {name for name in found if not name.startswith("auxiliary.")} <= set(reached)


def test_a_single_value_is_normalised_by_the_running_statistics_and_leaves_them() -> None:
    norm = BatchNorm2dOrRunning(3)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))  # type: ignore[union-attr]
    norm.running_var.copy_(torch.tensor([4.0, 9.0, 16.0]))  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    found = norm(torch.tensor([[3.0, 5.0, 7.0]])[:, :, None, None])
    torch.testing.assert_close(found.flatten(), torch.ones(3), atol=1e-5, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    more = torch.randn(2, 3, 1, 1)
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict(before)
    torch.testing.assert_close(norm(more), plain(more))
    assert norm.state_dict()["num_batches_tracked"] == 1


@pytest.mark.parametrize("kind", ["upernet", "segformer_map"])
@pytest.mark.parametrize("make", [tiny_vit, tiny_swin, tiny_convnext])
def test_heads_are_made_again_from_their_settings(kind: str, make: Any) -> None:
    head = make_head(f"{kind}(channels=8, level_norm=frozen)", vpeft.describe(make()), 48, 3)
    settings = json.loads(json.dumps(head.settings))
    assert settings["channels"] == 8 and settings["pyramid"]["norm"] == "frozen"
    get_head(kind)(**settings).load_state_dict(head.state_dict())
    assert tuple(head.reads) == tuple(settings["pyramid"]["places"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("upernet(level_norm=none)", "level_norm='none'.*'train' or 'frozen'"),
        ("segformer_map(norm=layer)", "'batch' or 'group'"),
        ("segformer_map(channel=8)", "Did you mean 'channels'"),
        ("upernet(pyramid=3)", "no option 'pyramid'"),
    ],
)
def test_refusals(text: str, said: str) -> None:
    with pytest.raises(BadHead, match=said):
        make_head(text, vpeft.describe(tiny_convnext()), 48, 3)


@pytest.mark.parametrize(("channels", "groups"), [(512, 32), (64, 8), (48, 6), (34, 2), (8, 1), (3, 1)])
def test_groups_of_channels(channels: int, groups: int) -> None:
    norm = map_norm(channels, "group")
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == groups
