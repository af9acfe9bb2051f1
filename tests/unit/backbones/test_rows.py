"""The rows of q, k and v in a fused projection, side by side or a head at a time."""

from __future__ import annotations

import pytest
import torch

from vpeft.backbones.rows import Rows


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dim", [0, -1])
def test_take_put_and_pad_agree_with_an_index(groups: int, dim: int) -> None:
    torch.manual_seed(0)
    each = 24 // groups
    rows, index = Rows(2, 6, groups), torch.arange(24)
    index = index[(index % each >= 2) & (index % each < 6)]
    whole = torch.randn(24, 5) if dim == 0 else torch.randn(2, 5, 24)
    assert rows.count == len(index)
    assert torch.equal(rows.take(whole, dim), whole.index_select(dim, index))
    part = torch.randn_like(whole.index_select(dim, index))
    assert torch.equal(rows.put(whole, part, dim), whole.index_copy(dim, index, part))
    change = torch.randn(len(index), 7)
    assert torch.equal(rows.pad(change, 24), torch.zeros(24, 7).index_copy(0, index, change))
