"""What is special of hybrids: rows head by head, poolings, scaled shortcuts, a remembered bias, passages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.families import EVERY
from tests.families.timm_hybrids import tiny_byobnet
from tests.models import images_for
from tests.unit.training.material import Patches
from vpeft.acceleration.apply import accelerate
from vpeft.acceleration.prefix_cache import Situation
from vpeft.backbones.edits import Edit
from vpeft.methods import LAST, LST, SCT, FullFinetuning, LNTune, LoRA, Method, PartialK, PrefixTuning


def made(family: str) -> nn.Module:
    torch.manual_seed(0)
    return EVERY[family]()


def moved(tuned: vpeft.TunedModel, by: float = 0.3) -> vpeft.TunedModel:
    """Every trained tensor off its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * by)
    return tuned.eval()


@pytest.mark.parametrize(
    ("family", "path"),
    [("timm_coatnet", "stages.1.blocks.1.attn.qkv"), ("timm_levit", "stages.0.blocks.0.attn.qkv.linear")],
)
def test_lora_on_rows_that_lie_head_by_head_changes_these_and_no_others(family: str, path: str) -> None:
    """W[q of head h] + B[h] A, written into a twin's weight by hand; the q of the first attention block."""
    tuned = moved(vpeft.tune(made(family), LoRA(rank=2, targets=("q",)), verify=False, show=False))
    block, images = tuned.description.blocks[0], images_for(tuned.backbone)
    rows, layer = block.attn.q.rows, tuned.adapter().get_submodule("blocks.0.attn.q")
    assert rows is not None and rows.groups == 2
    for other in tuned.description.blocks[1:]:
        with torch.no_grad():
            next(p for key, p in tuned.trainable() if key.startswith(other.name + ".") and key.endswith("B")).zero_()
    (verb,) = layer.children()
    twin = made(family)
    weight = twin.get_submodule(path).weight
    change = (verb.B @ verb.A).reshape(-1, *weight.shape[1:])
    each, wide = len(weight) // 2, rows.stop - rows.start
    with torch.no_grad():
        for head in range(2):
            weight[head * each + rows.start : head * each + rows.stop] += change[head * wide : (head + 1) * wide]
    expected = vpeft.describe(twin).pooled(images)
    assert torch.allclose(tuned.features(images), expected, atol=1e-5, rtol=1e-5)
    with tuned.disable():
        assert not torch.allclose(tuned.features(images), expected, atol=1e-4)
    assert torch.allclose(tuned.merge().features(images), expected, atol=1e-5, rtol=1e-5)


def attended(q: Tensor, k: Tensor, v: Tensor, more: tuple[Tensor, Tensor], bias: Tensor, scale: float) -> Tensor:
    """softmax([bias of further keys 0; q k^T + bias]) over further keys and the others, (B, heads, N, d)."""
    keys, values = (part.reshape(len(part), q.shape[1], -1).transpose(0, 1).expand(len(q), -1, -1, -1) for part in more)
    scores = torch.cat([q @ keys.transpose(-2, -1) * scale, q @ k.transpose(-2, -1) * scale + bias], dim=-1)
    return scores.softmax(-1) @ torch.cat([values, v], dim=2)


def test_prefixes_in_windows_of_maxvit_have_no_position() -> None:
    tuned = moved(vpeft.tune(made("timm_maxvit"), PrefixTuning(length=3), verify=False, show=False))
    attention = tuned.backbone.stages[0].blocks[0].attn_grid.attn
    layer = tuned.adapter().get_submodule("blocks.1.attn.core.extend")
    x = torch.randn(4, 2, 2, 16)
    q, k, v = attention.qkv.forward(x).reshape(4, 4, 3, 2, 8).permute(2, 0, 3, 1, 4)
    mixed = attended(q, k, v, layer.rows(), attention.rel_pos.get_bias(), 8**-0.5)
    expected = attention.proj.forward(mixed.transpose(1, 2).reshape(4, 2, 2, 16))
    assert torch.allclose(attention(x), expected, atol=1e-5, rtol=1e-5)


def test_prefixes_in_pooled_attention_have_no_position() -> None:
    """MViTv2: keys from a pooled grid; decomposed relative positions for those alone; q is added to what attends."""
    tuned = moved(vpeft.tune(made("timm_mvitv2"), PrefixTuning(length=3), verify=False, show=False))
    attention = tuned.backbone.stages[0].blocks[0].attn
    layer = tuned.adapter().get_submodule("blocks.0.attn.core.extend")
    x = torch.randn(2, 64, 16)
    made_of = attention.qkv.forward(x).reshape(2, 64, 3, 2, 8).permute(2, 0, 3, 1, 4)
    parts = []
    for letter, part in zip("qkv", made_of, strict=True):
        pool, after = getattr(attention, f"pool_{letter}"), getattr(attention, f"norm_{letter}")
        mapped = pool(part.transpose(2, 3).reshape(4, 8, 8, 8))
        parts.append(after(mapped.reshape(2, 2, 8, -1).transpose(2, 3)))
    q, k, v = parts
    across, down = torch.arange(8), torch.arange(4)
    offset = across[:, None] - 2 * down[None] + 6
    by_row, by_column = attention.rel_pos_h[offset], attention.rel_pos_w[offset]
    grid = q.reshape(2, 2, 8, 8, 8)
    bias = (
        torch.einsum("bhyxc,ykc->bhyxk", grid, by_row)[..., None]
        + torch.einsum("bhyxc,xkc->bhyxk", grid, by_column)[..., None, :]
    )
    mixed = attended(q, k, v, layer.rows(), bias.reshape(2, 2, 64, 16), 8**-0.5) + q
    expected = attention.proj.forward(mixed.transpose(1, 2).reshape(2, 64, 16))
    assert torch.allclose(attention(x, [8, 8])[0], expected, atol=1e-5, rtol=1e-5)


def test_a_bias_that_trains_is_never_remembered() -> None:
    """LeViT keeps its bias between passes in eval mode; while it may train, each pass reads it anew."""
    tuned = vpeft.tune(made("timm_levit"), FullFinetuning(), num_classes=2, show=False).eval()
    images = images_for(tuned.backbone)
    before = tuned(images)
    assert torch.equal(tuned(images), before)
    attention = tuned.backbone.stages[0].blocks[0].attn
    with torch.no_grad():
        attention.attention_biases[:, 1] += 3.0
    assert not torch.allclose(tuned(images), before)


class Doubled(nn.Module):
    """2 x + p."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + self.p


class TwiceTheShortcut(Method):
    """The first shortcut of the second block, doubled."""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: vpeft.Backbone) -> Iterator[Edit]:
        yield backbone.blocks[1].skip1.replace(Doubled())


def test_a_scaled_shortcut_is_the_shortcut() -> None:
    """In the second stage of this PoolFormer, s x + branch(x) becomes 2 s x + branch(x)."""
    tuned = vpeft.tune(made("timm_poolformer"), TwiceTheShortcut(), verify=False, show=False).eval()
    twin, images = made("timm_poolformer"), images_for(tuned.backbone)
    with torch.no_grad():
        twin.stages[1].blocks[0].res_scale1.scale.mul_(2.0)
    assert torch.allclose(tuned.features(images), vpeft.describe(twin).pooled(images), atol=1e-5, rtol=1e-5)


def test_what_lies_between_the_blocks_has_places_of_its_own() -> None:
    """Convolutions open a stage or lie among its blocks; every block attends."""
    maxvit, coatnet = vpeft.describe(made("torchvision_maxvit")), vpeft.describe(made("timm_coatnet"))
    assert {part.rpartition(".")[0] for part in maxvit.stages[0].parts if "between" in part} >= {"stages.0.between"}
    assert [block.stage for block in maxvit.blocks] == [0, 0, 0, 0, 1, 1]
    assert all(block.has("attn.core") for block in (*maxvit.blocks, *coatnet.blocks))
    first = [name for name in coatnet.stages[0].parts if name.endswith(".fc1") and ".se." not in name]
    assert len(first) == 3, "two MBConv units and an attention block that halves the map"


def test_methods_that_read_the_embedding_know_that_it_may_be_finer_than_the_blocks() -> None:
    """CAFormer's first block stands behind convolutions: LAST refuses, LST averages over cells."""
    with pytest.raises(vpeft.MissingPlace, match="one width and one grid; embedding of"):
        vpeft.tune(made("timm_caformer"), LAST(), show=False)
    assert vpeft.tune(made("timm_caformer"), LST(reduction=4), show=False).verify()


def test_salient_channels_of_a_block_without_norms_are_those_that_the_mlp_reads() -> None:
    tuned = vpeft.tune(made("timm_levit"), SCT(channels=4), num_classes=2, verify=False, show=False)
    images, seen = images_for(tuned.backbone), []
    handle = tuned.backbone.stages[0].blocks[0].mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tuned.prepare([(images, torch.zeros(2, dtype=torch.long))])
    handle.remove()
    squares = seen[0].double().square().flatten(0, 1).sum(dim=0)
    chosen = tuned.adapter().get_submodule("blocks.0.stream1.after").index
    assert chosen.tolist() == squares.topk(4).indices.sort().values.tolist()


def test_ln_tune_needs_a_norm() -> None:
    with pytest.raises(vpeft.MissingPlace, match="has no norm with any. Biases alone are trained by BitFit"):
        vpeft.tune(made("timm_nfnet"), LNTune(), show=False)


@pytest.mark.parametrize("family", ["timm_mvitv2", "timm_maxvit"])
def test_a_frozen_part_is_replayed_through_what_lies_between_the_blocks(family: str) -> None:
    """Blocks that are passed by hand on their sizes too; `accelerate` compares the features on a sample."""
    tuned = vpeft.tune(made(family), PartialK(k=1), num_classes=3, verify=False, show=False).train()
    found = accelerate(tuned, "frozen_prefix", situation=Situation(Patches(6), None, 3, 2, nullcontext))
    assert found.prefix is not None and found.lines()[0].startswith("+ frozen_prefix"), found.lines()


UNKNOWN = {
    "timm_maxvit": lambda model: setattr(model.stages[0].blocks, "0", nn.Identity()),
    "timm_hiera": lambda model: model.blocks.append(nn.Identity()),
    "timm_mvitv2": lambda model: setattr(model.stages[1].blocks[1], "attn", nn.Identity()),
    "timm_xcit": lambda model: model.cls_attn_blocks.append(nn.Identity()),
    "timm_twins": lambda model: model.blocks[1].append(nn.Identity()),
    "timm_poolformer": lambda model: setattr(model.stages[0].blocks[0], "token_mixer", nn.Identity()),
}


@pytest.mark.parametrize("family", UNKNOWN)
def test_unknown_blocks_are_refused_by_name(family: str) -> None:
    model = made(family)
    UNKNOWN[family](model)
    with pytest.raises(vpeft.VpeftError, match=r"Identity.* describes"):
        vpeft.describe(model)


@pytest.mark.parametrize(
    ("attention", "free"), [("lambda", True), ("lambda, whole", False), ("bottleneck", False), ("halo", False)]
)
def test_some_self_attention_is_made_for_one_size_of_images(attention: str, free: bool) -> None:
    kind, _, whole = attention.partition(", ")
    kwargs = {"lambda": {"r": None} if whole else {}, "halo": {"block_size": 4, "halo_size": 1}}.get(kind, {})
    model = tiny_byobnet("bottle", "self_attn", img_size=64, self_attn_layer=kind, self_attn_kwargs=kwargs)
    assert vpeft.describe(model).facts.dynamic_size is free
    with nullcontext() if free else pytest.raises((AssertionError, RuntimeError)):
        model(torch.randn(1, 3, 80, 80))
