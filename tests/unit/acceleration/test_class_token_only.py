"""What the last block computes when one token alone is read."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vpeft
from tests.models import tiny_vit
from vpeft.acceleration.apply import accelerate
from vpeft.method import Method
from vpeft.methods import get
from vpeft.tasks import Depth, Detection


def products(method: Method, choice: str) -> int:
    """Multiplications and additions of a training forward in linear layers; attention runs in a fused kernel."""
    tuned = vpeft.tune(tiny_vit(), method, num_classes=3, show=False, verify=False).train()
    made = accelerate(tuned, choice)
    counter = FlopCounterMode(display=False)
    assert all(one.applied for one in made.outcomes), made.lines()
    with counter:
        tuned(torch.randn(2, 3, 32, 32))
    made.close()
    flops: dict[object, int] = counter.get_flop_counts()["Global"]
    return sum(count for kind, count in flops.items() if "mm" in str(kind))


def test_queries_of_other_tokens_are_not_projected() -> None:
    """Beside a method that does nothing to q, k, v: of the last block only keys and values see all 17 tokens."""
    vit, images = tiny_vit(), 2
    width, hidden, tokens = vit.embed_dim, vit.blocks[-1].mlp.fc1.out_features, 17
    plain, fast = (products(get("partial_k")(k=1), choice) for choice in ("off", "class_token_only"))
    of_others = 2 * images * (tokens - 1) * width * (width + width + 2 * hidden)  # q, proj, fc1 and fc2
    assert plain - fast == of_others


@pytest.mark.parametrize("fields", [{"targets": ("q", "v")}, {"targets": ("qkv",)}])
def test_a_projection_that_is_edited_still_runs_whole(fields: dict[str, tuple[str, ...]]) -> None:
    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_vit(), get("lora")(rank=2, **fields), num_classes=3, show=False, verify=False).train()
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.normal_(std=0.3)
    images = torch.randn(2, 3, 32, 32)
    expected = tuned(images)
    made = accelerate(tuned, "class_token_only")
    assert [one.applied for one in made.outcomes] == [True], made.lines()  # one that is wrong is refused by its proof
    assert torch.allclose(tuned(images), expected, atol=1e-5)
    made.close()


def test_a_head_that_reads_a_map_behind_the_last_block_needs_all_tokens() -> None:
    task = Detection(labels=("a", "b"), head="retinanet(channels=16)")
    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_vit(), get("lora")(rank=2), task=task, show=False, verify=False).train()
    with accelerate(tuned, "class_token_only,fused_low_rank") as made:
        lines = made.lines()
    assert "- class_token_only: the head reads norm, and all of its tokens" in lines
    assert any(line.startswith("+ fused_low_rank") for line in lines)  # others are proved on the raw outputs


def test_a_head_that_reads_levels_of_an_edit_needs_all_tokens() -> None:
    """ViT-Adapter makes levels that are no places of the backbone."""
    tuned = vpeft.tune(tiny_vit(), get("vit_adapter")(), task=Depth(scale=1.0), show=False, verify=False).train()
    made = accelerate(tuned, "class_token_only")
    assert "levels" in " ".join(made.lines()) and not any(one.applied for one in made.outcomes)
    made.close()
