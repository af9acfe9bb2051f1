"""DualPath: what its paths see, a restatement of a block, and its counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.counts import trained_on_frames
from tests.golden.test_aim import adapter, attention, norm, tensors
from tests.models import tiny_swin, tiny_vit
from vpeft.backbones.frame_reader import FrameReader
from vpeft.methods import DualPath
from vpeft.methods.dual_path import FeaturesOfPaths, MosaicPositions, MosaicsAndFrames

SMALL = {"spatial_frames": 2, "side": 2}


def test_mosaics_show_every_frame_and_the_others_are_evenly_spaced() -> None:
    clips = torch.arange(8.0)[None, None, :, None, None].expand(1, 3, 8, 16, 16) * 10
    out = MosaicsAndFrames(2, 2)(clips)
    assert out.shape == (1, 3, 4, 16, 16)
    corners = [out[0, 0, 0, 3, 3], out[0, 0, 0, 3, 12], out[0, 0, 0, 12, 3], out[0, 0, 0, 12, 12]]
    assert [float(value) for value in corners] == [0, 10, 20, 30]
    assert [float(value) for value in out[0, 0, 1, [3, 3, 12, 12], [3, 12, 3, 12]]] == [40, 50, 60, 70]
    assert torch.equal(out[:, :, 2:], clips[:, :, [0, 4]])


def test_features_are_the_means_of_the_two_paths_side_by_side() -> None:
    features = torch.randn(6, 5)  # two clips of one mosaic and two frames
    out = FeaturesOfPaths(5, 2)(features, frames=3).unflatten(0, (2, 3)).mean(dim=1)
    clips = features.unflatten(0, (2, 3))
    assert torch.allclose(out, torch.cat([clips[:, 0], clips[:, 1:].mean(dim=1)], dim=1), atol=1e-6)


def test_the_code_of_a_cell_is_that_of_its_number() -> None:
    layer = MosaicPositions(8, 1, (4, 4), DualPath(**SMALL))
    out = layer(torch.zeros(4, 17, 8), grid=(4, 4), frames=4).detach()  # two mosaics, then two frames
    assert not out[2:].any()

    def code(number: int) -> Tensor:
        angles = [number / 10000 ** (i / 8) for i in range(0, 8, 2)]
        return torch.tensor([f(a) for a in map(torch.tensor, angles) for f in (torch.sin, torch.cos)])

    # cells of a mosaic count row by row: the upper left quarter is the first frame
    for mosaic in range(2):
        for row in range(4):
            for column in range(4):
                number = 1 + 4 * mosaic + 2 * (row // 2) + column // 2
                assert torch.allclose(out[mosaic, 1 + 4 * row + column], code(number), atol=1e-5)
        assert torch.allclose(out[mosaic, 0], code(0))


def test_a_block_equals_a_restatement() -> None:
    torch.manual_seed(0)
    tuned = vpeft.tune(FrameReader(tiny_vit(), 4), DualPath(**SMALL), num_classes=3, show=False).eval()
    randomise(tuned)
    block = tuned.backbone.image_model.blocks[1]
    x = torch.randn(3, 17, 48)  # one mosaic and two frames
    entering, behind, mlp = (
        tensors(tuned, f"blocks.1.{place}") for place in ("attn.before", "attn.after", "mlp.after")
    )

    def part(own: dict[str, Tensor], path: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{path}."): value for key, value in own.items() if key.startswith(path)}

    with torch.no_grad():
        time, space = x[:1], x[1:]
        y = norm(block.norm1, time)
        time = time + adapter(part(behind, "temporal"), attention(block, adapter(part(entering, "temporal"), y)))
        w = norm(block.norm2, time)
        time = time + adapter(part(mlp, "temporal"), block.mlp.fc2(F.gelu(block.mlp.fc1(w))))
        y = norm(block.norm1, space)
        space = space + attention(block, y) + adapter(part(behind, "spatial"), y)
        w = norm(block.norm2, space)
        space = space + block.mlp.fc2(F.gelu(block.mlp.fc1(w))) + adapter(part(mlp, "spatial"), w)
        # a block that is run by itself is told the frames of the last clip
        tuned.features(torch.randn(1, 3, 4, 32, 32))
        seen: list[Tensor] = []
        handle = block.register_forward_hook(lambda _m, args, out: seen.extend((args[0], out)))
        tuned.features(torch.randn(1, 3, 4, 32, 32))
        handle.remove()
        assert seen[0].shape == x.shape
        layer = tuned.adapter()
        ran = layer.get_submodule("blocks.1.attn.before")(norm(block.norm1, x), frames=3)
        h = layer.get_submodule("blocks.1.attn.after")(attention(block, ran), norm(block.norm1, x), frames=3)
        stream = x + h
        w = norm(block.norm2, stream)
        out = layer.get_submodule("blocks.1.mlp.after")(block.mlp.fc2(F.gelu(block.mlp.fc1(w))), w, frames=3)
        assert torch.allclose(stream + out, torch.cat([time, space]), atol=1e-4)


def test_step_0_of_the_spatial_path_is_the_frozen_model_and_the_temporal_path_passes_its_blocks() -> None:
    model = tiny_vit()
    tuned = vpeft.tune(FrameReader(model, 4), DualPath(**SMALL), num_classes=3, show=False).eval()
    clips = tuned.description.inputs.example(2)
    frozen = FrameReader(tiny_vit(), 4)
    frozen.image_model.load_state_dict(model.state_dict())
    with torch.no_grad():
        found = tuned.features(clips)
        plain = frozen(clips[:, :, [0, 2]])
    assert found.shape == (2, 96)
    assert torch.allclose(found[:, 48:], plain, atol=1e-5)
    assert not torch.allclose(found[:, :48], plain, atol=1e-2)


def test_counts() -> None:
    adapters, positions, token = 17_752_320, 197 * 768, 768
    assert trained_on_frames(DualPath(train_embedding=False), frames=16) == adapters + positions
    assert trained_on_frames(DualPath(), frames=32) == adapters + 2 * positions + token


def test_clips_that_fill_no_mosaic_and_windows_are_refused() -> None:
    with pytest.raises(vpeft.MissingPlace, match="16 frames on each mosaic"):
        vpeft.tune(FrameReader(tiny_vit(), 8), DualPath(), show=False)
    with pytest.raises(vpeft.MissingPlace, match="within windows"):
        vpeft.tune(FrameReader(tiny_swin(), 4), DualPath(**SMALL), show=False)
    tuned = vpeft.tune(FrameReader(tiny_vit(), 4), DualPath(**SMALL), num_classes=2, show=False)
    with pytest.raises(vpeft.VpeftError, match="this clip has 6 frames"):
        tuned(torch.randn(1, 3, 6, 32, 32))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_it_runs_beside_a_model_of_sixteen_bits(kind: torch.dtype) -> None:
    tuned = vpeft.tune(FrameReader(tiny_vit(), 4).to(kind), DualPath(**SMALL), num_classes=3, show=False)
    out = tuned(tuned.description.inputs.example(2))
    out.float().sum().backward()
    assert out.dtype == kind and bool(out.isfinite().all())
