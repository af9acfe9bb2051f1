"""An image model as a reader of frames, and video models for other numbers of frames."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import vpeft
from tests.families import video_models
from tests.families.transformers_models import clip, videomae
from tests.models import library_features, tiny_convnext, tiny_swin, tiny_vit
from vpeft.backbones.clip_frames import fitted_in_time, for_clips
from vpeft.backbones.create import create_backbone
from vpeft.backbones.edits import Edit
from vpeft.backbones.frame_reader import FrameReader, NotAFrameReader
from vpeft.backbones.library_create import UnsuitableSize
from vpeft.backbones.origin import origin_of
from vpeft.backbones.positions import ResizedPositions
from vpeft.method import Method
from vpeft.methods import LoRA, STAdapter
from vpeft.task import get_task
from vpeft.training.optimisation import Optimisation


@pytest.mark.parametrize("make", [tiny_vit, tiny_swin, tiny_convnext, clip], ids=lambda make: make.__name__)
def test_the_feature_is_the_mean_of_what_the_library_gives_for_each_frame(make: Any) -> None:
    model = make()
    reader = FrameReader(model, 3)
    clips = vpeft.describe(reader).inputs.example(2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        frames = torch.stack([library_features(model, clips[:, :, t]) for t in range(3)])
        assert torch.allclose(reader(clips), frames.mean(dim=0), atol=1e-5)
        assert torch.equal(vpeft.describe(reader).pooled(clips), reader(clips))
        # an image is a clip of one frame, and other numbers of frames are read too
        assert torch.allclose(reader(clips[:, :, 0]), frames[0], atol=1e-5)
        assert torch.allclose(reader(clips[:, :, :2]), frames[:2].mean(dim=0), atol=1e-5)


def test_places_are_those_of_the_image_model_and_one_for_clips() -> None:
    image, frames = vpeft.describe(tiny_vit()), vpeft.describe(FrameReader(tiny_vit(), 3))
    own = [place.name for place in frames.places()]
    assert set(own) - {place.name for place in image.places()} == {"clips"}
    assert (frames.inputs.frames, frames.inputs.shape, frames.facts.architecture) == (
        3,
        (3, 3, 32, 32),
        image.facts.architecture,
    )
    assert frames.blocks[0].per_frame and frames.outlet.per_frame and not frames.place("clips").per_frame
    assert frames.blocks[0].grid_at((8, 32, 32)) == (4, 4)


class Sees(nn.Module):
    """Notes what it is called with."""

    wants_grid = True
    wants_frames = True

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.told: list[tuple[tuple[int, ...], tuple[int, ...], int]] = []

    def forward(self, x: Tensor, *, grid: tuple[int, ...], frames: int) -> Tensor:
        self.told.append((tuple(x.shape), grid, frames))
        return x * self.gain


class Seeing(Method):
    """Puts `Sees` at the first block; no part of the registry."""

    def edits(self, backbone: Any) -> Any:
        yield backbone.blocks[0].after(LAYERS[-1])


LAYERS: list[Sees] = []


def seen(model: nn.Module, clips: Tensor, training: bool = False) -> list[tuple[Any, ...]]:
    LAYERS.append(Sees())
    tuned = vpeft.tune(model, Seeing(), num_classes=2, verify=False, show=False)
    tuned(clips)
    return LAYERS[-1].told


def test_layers_are_told_frames_and_grid() -> None:
    assert seen(FrameReader(tiny_vit(), 3), torch.randn(2, 3, 5, 32, 32)) == [((10, 17, 48), (4, 4), 5)]
    assert seen(tiny_vit(), torch.randn(2, 3, 32, 32)) == [((2, 17, 48), (4, 4), 1)]
    assert seen(videomae(), torch.randn(2, 3, 4, 32, 32)) == [((2, 32, 24), (2, 4, 4), 1)]
    # maps of clips come frame by frame, unless a layer says that it takes them
    assert seen(video_models.swin3d(), torch.randn(2, 3, 6, 32, 32)) == [((6, 8, 8, 12), (8, 8), 1)]


class AddsQuery(nn.Module):
    """x + g q for each frame, where q is the frozen model's own feature of that frame."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((1,), gain))

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        return x + self.gain * query[:, None]


class Querying(Method):
    """Puts `AddsQuery` behind the first block; no part of the registry."""

    gain: float = 1.0

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Any) -> Any:
        yield backbone.blocks[0].after(AddsQuery(self.gain), reads=(backbone.query,))


def test_each_frame_has_the_frozen_models_feature_of_itself_also_where_adapters_share_a_batch() -> None:
    tuned = vpeft.tune(FrameReader(tiny_vit(), 3), Querying(gain=0.5), num_classes=2, show=False).eval()
    tuned.attach(Querying(gain=-2.0), name="other", num_classes=2)
    clips = torch.randn(4, 3, 3, 32, 32)
    names = ["other", "default", "default", "other"]
    with torch.no_grad():
        alone = []
        for number, name in enumerate(names):
            with tuned.enable(name):
                alone.append(tuned(clips[number : number + 1]))
        with tuned.enable(*names):
            together = tuned(clips)
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


@pytest.mark.parametrize("make", [lambda: FrameReader(tiny_vit(), 4), videomae, video_models.swin3d])
def test_a_head_reads_all_tokens_of_a_clip(make: Any) -> None:
    task = get_task("classification")(head="attentive(heads=2)", labels=("a", "b", "c"))
    tuned = vpeft.tune(make(), LoRA(rank=1), task=task, show=False).eval()
    clips = tuned.description.inputs.example(2)
    before = tuned(clips)
    mixed = clips.clone()
    mixed[1] = mixed[1].flip(1)
    with torch.no_grad():
        assert before.shape == (2, 3) and torch.allclose(tuned(mixed)[0], before[0], atol=1e-5)


def test_it_is_made_by_name_and_made_again_by_what_is_kept() -> None:
    reader = create_backbone("vit_tiny_patch16_224", pretrained=False, image_size=64, frames=8)
    assert isinstance(reader, FrameReader) and vpeft.describe(reader).inputs.shape == (3, 8, 64, 64)
    origin = origin_of(reader)
    assert origin is not None and (origin.frames, origin.frames_rule) == (8, "interpolate")
    assert reader.pretrained_cfg["input_size"] == (3, 64, 64)
    with torch.device("meta"):
        swin = create_backbone("torchvision:swin3d_t", pretrained=False, frames=8)
    assert vpeft.describe(swin).inputs.shape == (3, 8, 224, 224)


def test_what_reads_no_images_is_refused() -> None:
    from tests.families import EVERY

    with pytest.raises(NotAFrameReader, match="no model for images"):
        FrameReader(EVERY["open_clip_text"](), 4)
    with pytest.raises(NotAFrameReader, match="at least one frame"):
        FrameReader(tiny_vit(), 0)


def test_an_adapter_file_goes_onto_a_reader_of_frames_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = tiny_vit()
    tuned = vpeft.tune(FrameReader(copy.deepcopy(base), 4), STAdapter(bottleneck=4), num_classes=2, show=False).eval()
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.1)
    path = tuned.save(tmp_path / "a.safetensors", labels=["a", "b"])
    again = vpeft.load(FrameReader(base, 4), path).eval()
    clips = tuned.description.inputs.example(2)
    assert torch.equal(again(clips), tuned(clips))


# -- other numbers of frames ----------------------------------------------------------------------------------------


def test_videomaes_table_is_interpolated_or_goes_on_and_it_is_said() -> None:
    model: Any = videomae(num_frames=4)
    table = model.videomae.embeddings.position_embeddings.clone()
    with pytest.warns(ResizedPositions, match=r"steps of time.*\(2,\) to \(4,\)"):
        model, said = for_clips(model, 8)
    own = model.videomae.embeddings.position_embeddings
    assert len(said) == 1 and own.shape == (1, 64, 24)
    cells = table.reshape(2, 16, 24)
    expected = torch.stack([cells[0], 0.75 * cells[0] + 0.25 * cells[1], 0.25 * cells[0] + 0.75 * cells[1], cells[1]])
    assert torch.allclose(own.reshape(4, 16, 24), expected, atol=1e-5)
    description = vpeft.describe(model)
    assert (description.inputs.frames, description.blocks[0].frames) == (8, 4)
    assert description.pooled(description.inputs.example(2)).shape == (2, 24)


def test_the_first_positions_of_videomaes_table_are_those_of_a_model_made_for_so_many() -> None:
    for frames in (2, 8):
        model: Any = videomae(num_frames=4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResizedPositions)
            fitted: Any = for_clips(model, frames, "first")[0]
        made: Any = videomae(num_frames=frames)
        own, theirs = (one.videomae.embeddings.position_embeddings for one in (fitted, made))
        assert torch.allclose(own, theirs, atol=1e-6)


def test_vivits_learnt_table_follows_and_the_class_token_keeps_its_own() -> None:
    model: Any = video_models.vivit()
    before = model.vivit.embeddings.position_embeddings.detach().clone()
    with pytest.warns(ResizedPositions):
        for_clips(model, 8)
    own = model.vivit.embeddings.position_embeddings
    assert own.shape == (1, 65, 24) and torch.equal(own[:, 0], before[:, 0])
    description = vpeft.describe(model)
    assert description.pooled(description.inputs.example(1)).shape == (1, 24)
    with pytest.raises(UnsuitableSize, match="cannot make more"):
        for_clips(model, 16, "first")


def test_interpolation_in_time_is_linear_in_each_cell() -> None:
    table = torch.randn(1, 4 * 3, 5)
    made, _ = fitted_in_time("a model", table, (4, 4), "first")
    assert torch.equal(made, table)
    with pytest.warns(ResizedPositions):
        made, _ = fitted_in_time("a model", table, (4, 7), "interpolate")
    for cell in range(3):
        rows = table[0].reshape(4, 3, 5)[:, cell].T[None]
        expected = F.interpolate(rows, size=7, mode="linear", align_corners=False)[0].T
        assert torch.allclose(made[0].reshape(7, 3, 5)[:, cell], expected, atol=1e-6)


def test_a_number_that_fills_no_tubelet_and_one_that_was_not_asked_for_are_refused() -> None:
    for make in (videomae, video_models.vivit, video_models.vjepa2, video_models.swin3d):
        with pytest.raises(UnsuitableSize, match=r"puts 2 frames together.*not 5"):
            for_clips(make(), 5)
    tuned = vpeft.tune(videomae(), LoRA(rank=1), num_classes=2, show=False)
    with pytest.raises(UnsuitableSize, match=r"8 frames.*create_backbone\(name, frames=8\)"):
        tuned(torch.randn(1, 3, 8, 32, 32))


def test_models_without_a_table_take_any_number_of_whole_tubelets() -> None:
    for make in (video_models.vjepa2, video_models.swin3d):
        tuned = vpeft.tune(make(), LoRA(rank=1), num_classes=2, show=False)
        size = tuned.description.inputs.size
        assert tuned(torch.randn(1, 3, 12, *size)).shape == (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "steps"),
    [
        ("torchvision:swin3d_s", (3, 16, 224, 224), [8, 8, 8, 8]),
        ("torchvision:mvit_v2_s", (3, 16, 224, 224), [8, 8, 8, 8]),
        ("torchvision:r3d_18", (3, 16, 112, 112), [16, 8, 4, 2]),
        ("torchvision:r2plus1d_18", (3, 16, 112, 112), [16, 8, 4, 2]),
    ],
)
def test_torchvisions_video_models_at_full_size(name: str, shape: tuple[int, ...], steps: list[int]) -> None:
    with torch.device("meta"):
        tuned = vpeft.tune(create_backbone(name, pretrained=False, frames=16), LoRA(), num_classes=7, verify=False)
        assert tuned.description.inputs.shape == shape
        assert [stage.frames for stage in tuned.description.stages] == steps
        assert tuned(tuned.description.inputs.blank(1, "meta")).shape == (1, 7)


def test_mvit_takes_the_frames_that_it_was_made_for() -> None:
    assert for_clips(video_models.mvit(), 4)[1] == []
    with pytest.raises(UnsuitableSize, match="made for 4 frames"):
        for_clips(video_models.mvit(), 8)


def test_timesformers_positions_in_time_follow() -> None:
    model: Any = video_models.timesformer()
    with pytest.warns(ResizedPositions):
        for_clips(model, 6)
    description = vpeft.describe(model)
    assert (description.inputs.frames, model.timesformer.embeddings.time_embeddings.shape) == (6, (1, 6, 24))
    assert description.pooled(description.inputs.example(2)).shape == (2, 24)


def test_a_checkpoint_is_made_for_another_number_of_frames(tmp_path: Path) -> None:
    videomae().save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.warns(ResizedPositions):
        model = create_backbone(f"hf:{tmp_path}", frames=8)
    assert vpeft.describe(model).inputs.shape == (3, 8, 32, 32)
    origin = origin_of(model)
    assert origin is not None and origin.frames == 8 and "steps of time" in origin.notes[-1]


@pytest.mark.parametrize("make", [lambda: FrameReader(tiny_vit(), 3), videomae], ids=["frames", "videomae"])
def test_training_on_clips_end_to_end(make: Any) -> None:
    torch.manual_seed(0)
    tuned = vpeft.tune(make(), STAdapter(bottleneck=4), num_classes=2, show=False)
    labels = torch.arange(12) % 2
    clips = torch.randn(12, *tuned.description.inputs.shape) + labels.view(-1, 1, 1, 1, 1)
    data = TensorDataset(clips, labels)
    result = vpeft.fit(tuned, data, data, optimisation=Optimisation(epochs=3, batch=4, lr=1e-2, device="cpu"))
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert result.val is not None and result.val.value > 0.9


def test_edits_are_plain() -> None:
    edits = list(STAdapter(bottleneck=2).edits(vpeft.describe(FrameReader(tiny_vit(), 2))))
    assert all(isinstance(edit, Edit) for edit in edits) and len(edits) == 6
