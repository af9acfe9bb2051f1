"""The contract on clips: twenty methods and more on four unlike ways to read them, and what holds for clips alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.contract.checks import OF_FAMILIES, Cell, hold, ignores_neighbours, shares_a_batch, stacks, two_steps
from tests.contract.matrix import cell_or_refusal
from tests.families import EVERY
from vpeft.acceleration.frozen_prefix import Prefix
from vpeft.acceleration.patches import Patches
from vpeft.acceleration.prefix_cache import frozen_part

CLIPS = [name for name in ("frame_reader", "hf_videomae", "hf_vjepa2", "torchvision_swin3d") if name in EVERY]
METHODS = (
    *("linear_probe", "bitfit", "ln_tune", "ssf", "lora", "dora", "fact_tt", "repadapter", "glora", "boft"),
    *("adapter", "adaptformer", "convpass", "mona", "compacter", "vpt_shallow", "vpt_deep", "prefix_tuning"),
    *("bapat", "lst", "side_tuning", "full_finetuning", "st_adapter", "aim", "dual_path"),
)
CHECKS = (*OF_FAMILIES, ignores_neighbours, stacks)
OWN = ("st_adapter", "aim", "dual_path")


def run(check: Callable[[Cell], None], name: str, family: str) -> None:
    cell, refusal = cell_or_refusal(name, family)
    if cell is None:
        assert refusal is not None and len(str(refusal)) > 40
        pytest.skip(f"refused: {refusal}")
    hold(check, cell)


@pytest.mark.parametrize("check", [*CHECKS, shares_a_batch], ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", OWN)
def test_methods_for_clips(name: str, check: Callable[[Cell], None]) -> None:
    run(check, name, "frame_reader")


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", CLIPS)
def test_promise_on_clips(family: str, name: str, check: Callable[[Cell], None]) -> None:
    run(check, name, family)


@pytest.mark.parametrize("family", CLIPS)
def test_at_least_twenty_methods_attach(family: str) -> None:
    attached = [name for name in METHODS if cell_or_refusal(name, family)[0] is not None]
    assert len(attached) >= 20 - (family == "hf_vjepa2")  # whose places take no prompts


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name != CLIPS[0])) for name in CLIPS]
)
def test_loss_falls_on_clips_that_single_frames_cannot_tell_apart(family: str) -> None:
    """Clips and the same clips backwards: what the mean over frames cannot tell apart, methods with time learn."""
    name = "st_adapter"
    cell, _ = cell_or_refusal(name, family)
    assert cell is not None
    tuned = cell.tuned()
    spec = tuned.description.inputs
    torch.manual_seed(0)
    forward = torch.randn(2, *spec.shape)
    clips, labels = torch.cat([forward, forward.flip(2)]), torch.tensor([0, 0, 1, 1])
    optimizer = torch.optim.Adam([p for _, p in tuned.trainable()], lr=0.02)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(tuned(clips), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("family", CLIPS)
@pytest.mark.parametrize("name", ["linear_probe", "partial_k"])
def test_what_is_frozen_can_be_recorded_once_for_each_clip(name: str, family: str) -> None:
    cell, refusal = cell_or_refusal(name, family)
    assert cell is not None, refusal
    tuned = cell.tuned()
    two_steps(tuned, cell.images())
    tuned.eval()
    cut = frozen_part(tuned)
    patches = Patches(tuned)
    try:
        prefix = Prefix(tuned, cut, patches)
        rows = prefix.record(cell.images(3))
        assert all(len(row) == 3 for row in rows)
        with torch.no_grad():
            replayed = prefix.replay([row[[2, 0]] for row in rows])
    finally:
        patches.undo()
    with torch.no_grad():
        assert torch.allclose(replayed, tuned(cell.images(3)[[2, 0]]), atol=1e-5)
