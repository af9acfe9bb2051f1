"""TADFormer against its authors' code, with their static filter and with the paper's; and counted as in the paper."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

import vpeft
from tests.golden.counts import trained
from tests.golden.streams import reproduce_streams
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.backbones.describe import describe
from vpeft.methods import TADFormer

SWIN_T = "swin_tiny_patch4_window7_224"


@pytest.mark.parametrize("filter", ["static", "dynamic"])
def test_equals_the_authors_code(filter: Literal["static", "dynamic"]) -> None:
    name = "tadformer" if filter == "static" else "tadformer_dynamic"
    reproduce_streams(name, TADFormer(rank=4, filter=filter, merging="full", gated="released"))


def test_counts_of_the_paper_are_those_of_the_dynamic_filter() -> None:
    heads, unused_norms, tasks = 1_946_624, 5_952, ("a", "b", "c", "d")
    for rank, published in ((16, 3.56), (32, 4.78), (64, 7.38)):
        whole = trained(TADFormer(rank=rank, tasks=tasks), model=SWIN_T) + heads + unused_norms
        assert round(whole / 1e6, 2) == published, whole
    static = trained(TADFormer(rank=64, filter="static", tasks=tasks), model=SWIN_T)
    assert trained(TADFormer(rank=64, tasks=tasks), model=SWIN_T) - static == 12 * (38_592 - 4 * 10 * 64)


def test_cells_in_windows_undo_the_windows() -> None:
    model = tiny_swin()
    for block, module in zip(describe(model).blocks, [b for layer in model.layers for b in layer.blocks], strict=True):
        seen = {}
        handle = module.attn.register_forward_pre_hook(lambda _m, args, seen=seen: seen.update(windows=args[0]))
        x = torch.randn(2, *block.cells, block.dim)
        module(x)
        handle.remove()
        order = block.attn.core.cells_in_windows
        assert order is not None
        rows = seen["windows"].reshape(2, -1, block.dim)[:, order(*block.cells)]
        assert torch.equal(rows, module.norm1(x).flatten(1, 2))


def test_a_class_token_and_prompts_reach_each_other() -> None:
    tuned = vpeft.tune(tiny_vit(), TADFormer(rank=4), num_classes=2, show=False)
    x = images_for(tiny_vit())
    before = tuned(x).detach()
    with torch.no_grad():
        dict(tuned.trainable())["embedding.tap.of.task"].neg_()
    assert (tuned(x) - before).abs().max() > 1e-4


def test_refuses_what_has_no_windows_that_it_knows() -> None:
    with pytest.raises(vpeft.MissingPlace, match="no projection 'qkv'|has no 'attn'"):
        vpeft.tune(tiny_convnext(), TADFormer(), show=False)
