"""What a backbone takes, and the made-up batches that checks run on."""

from __future__ import annotations

import math

import pytest
import torch

import vpeft
from tests.families import EVERY
from tests.models import tiny_convnext, tiny_vit
from vpeft.acceleration.equivalence import two_images
from vpeft.backbones.inputs import BadInputSpec, InputSpec, fitted_to


@pytest.mark.parametrize("name", EVERY)
def test_every_family_states_inputs_that_its_model_takes(name: str) -> None:
    description = vpeft.describe(EVERY[name]())
    example = description.inputs.example(2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = description.pooled(fitted_to(example, description.module))
    assert features.shape == (2, description.facts.width)
    assert example.shape[1:] == description.inputs.shape
    blank = description.inputs.blank(3)
    assert (blank.shape[1:], blank.dtype) == (example.shape[1:], example.dtype)


def test_images_are_normal_random_numbers_of_the_models_size() -> None:
    inputs = vpeft.describe(tiny_convnext()).inputs
    assert (inputs.layout, inputs.size, inputs.channels, inputs.shape) == ("images", (64, 64), 3, (3, 64, 64))
    torch.manual_seed(0)
    expected = torch.randn(2, 3, 64, 64)
    torch.manual_seed(0)
    assert torch.equal(inputs.example(2), expected)


def test_acceleration_proves_itself_on_the_same_random_images_as_before() -> None:
    tuned = vpeft.tune(tiny_vit(), vpeft.methods.get("lora")(rank=1), show=False)
    expected = torch.randn((5, 3, 32, 32), generator=torch.Generator().manual_seed(3))
    assert torch.equal(two_images(tuned, 5), expected)


def test_the_probe_is_waves() -> None:
    probe = InputSpec((4, 6), 2).probe()
    assert (probe.shape, probe.dtype) == ((1, 2, 4, 6), torch.float32)
    for channel, row, column in [(0, 0, 0), (0, 3, 2), (1, 1, 5)]:
        y, x = row / 4, column / 6
        value = math.sin(6 * (channel + 1) * y + 4 * x) * math.cos(9 * x - channel)
        assert probe[0, channel, row, column].item() == pytest.approx(value, abs=1e-7)


def test_a_clip_has_frames_where_its_model_wants_them() -> None:
    front = InputSpec((4, 6), 3, layout="clips", frames=5, time_axis=1)
    assert front.example(2).shape == (2, 5, 3, 4, 6) and front.probe().shape == (1, 5, 3, 4, 6)
    behind = InputSpec((4, 6), 3, layout="clips", frames=5)
    assert behind.example(2).shape == (2, 3, 5, 4, 6)
    assert torch.equal(behind.probe(), front.probe().transpose(1, 2))
    assert torch.equal(front.probe()[:, 0], InputSpec((4, 6), 3).probe())
    assert not torch.equal(front.probe()[:, 1], front.probe()[:, 0])


def test_texts_are_made_by_the_family_and_start_no_random_numbers() -> None:
    inputs = vpeft.describe(EVERY["open_clip_text"]()).inputs
    assert (inputs.layout, inputs.names, inputs.takes_images) == ("tokens", ("text",), False)
    state = torch.get_rng_state()
    texts = inputs.example(3)
    assert texts.dtype == torch.int64 and torch.equal(texts[:1], inputs.probe())
    assert torch.equal(torch.get_rng_state(), state)


def test_texts_keep_their_type_beside_a_model_of_sixteen_bits() -> None:
    model = tiny_vit().to(torch.bfloat16)
    assert fitted_to(torch.zeros(1, 4, dtype=torch.int64), model).dtype == torch.int64
    assert fitted_to(torch.zeros(1, 4), model).dtype == torch.bfloat16


def test_what_a_layout_needs_is_asked_for() -> None:
    with pytest.raises(BadInputSpec, match="need `make`"):
        InputSpec((1, 8), 1, layout="tokens")
    with pytest.raises(BadInputSpec, match="'clips' does not go with frames=None"):
        InputSpec((8, 8), 3, layout="clips")
    with pytest.raises(BadInputSpec, match="'images' does not go with frames=4"):
        InputSpec((8, 8), 3, frames=4)
