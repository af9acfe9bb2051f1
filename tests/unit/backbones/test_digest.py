"""The digest of the frozen weights: of what it is made, and that it is computed once, and again after any change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.families.timm_conv import tiny_resnet
from tests.models import tiny_vit
from vpeft.backbones import digest
from vpeft.backbones.digest import weights_digest


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors each full reading took."""
    counted: list[int] = []
    whole = digest.tensors_digest

    def counting(tensors: dict[str, Tensor]) -> str:
        counted.append(len(tensors))
        return whole(tensors)

    monkeypatch.setattr(digest, "tensors_digest", counting)
    return counted


def test_it_is_sha256_of_names_types_shapes_and_bytes_without_the_classifier() -> None:
    model = tiny_vit(num_classes=3)
    by_hand = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if not key.startswith("head."):
            by_hand.update(f"{key}|torch.float32|{tuple(value.shape)}|".encode() + value.numpy().tobytes())
    assert weights_digest(vpeft.describe(model)) == by_hand.hexdigest()


def test_all_bytes_are_read_once(reads: list[int]) -> None:
    model = tiny_vit()
    first = weights_digest(vpeft.describe(model))
    assert weights_digest(vpeft.describe(model)) == first
    assert len(reads) == 1


def _in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight[3, 5] += 1.0


def _through_data(weight: nn.Parameter) -> None:
    weight.data.mul_(1.5)


def _other_data(weight: nn.Parameter) -> None:
    weight.data = weight.data * 1.5


@pytest.mark.parametrize("change", [_in_place, _through_data, _other_data])
def test_a_changed_tensor_is_noticed(change: Callable[[nn.Parameter], None], reads: list[int]) -> None:
    model = tiny_vit()
    description = vpeft.describe(model)
    before = weights_digest(description)
    change(model.blocks[1].mlp.fc1.weight)
    assert weights_digest(description) != before
    assert len(reads) == 2


def test_another_parameter_in_its_place_is_noticed() -> None:
    model = tiny_vit()
    description = vpeft.describe(model)
    before = weights_digest(description)
    model.norm.weight = nn.Parameter(model.norm.weight.detach() + 1.0)
    assert weights_digest(description) != before


def test_moved_batch_statistics_are_noticed_and_the_counter_is_not() -> None:
    model = tiny_resnet()
    description = vpeft.describe(model)
    before = weights_digest(description)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.num_batches_tracked is not None and norm.running_mean is not None
    norm.num_batches_tracked += 1
    assert weights_digest(description) == before
    norm.running_mean[0] += 0.5
    assert weights_digest(description) != before
