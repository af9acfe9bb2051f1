"""Several adapters on one batch: each works on its own rows, and the rows of those that do nothing here stay whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vpeft.injection.forward_pass import Choice, ForwardPass
from vpeft.injection.switch import NotByImage, Shares, Switch

SHARES = Shares((("a", 2), ("b", 1), (None, 1), ("c", 3), ("b2", 1)))


def test_each_adapter_has_its_rows() -> None:
    rows = torch.arange(16).view(16, 1)  # two rows for each image
    found = [(name, count, part.flatten().tolist()) for name, count, (part,) in SHARES.of(rows)]
    assert found == [
        ("a", 2, [0, 1, 2, 3]),
        ("b", 1, [4, 5]),
        (None, 1, [6, 7]),
        ("c", 3, [8, 9, 10, 11, 12, 13]),
        ("b2", 1, [14, 15]),
    ]
    with pytest.raises(NotByImage):
        list(SHARES.of(torch.zeros(9, 1)))


def test_neighbours_that_do_nothing_come_as_one() -> None:
    found = [(name, count, len(part)) for name, count, (part,) in SHARES.of(torch.zeros(8, 1), acting={"c"})]
    assert found == [(None, 4, 4), ("c", 3, 3), (None, 1, 1)]


@pytest.mark.parametrize("writes", [False, True])
def test_only_adapters_with_an_operation_are_called_for_their_rows(writes: bool) -> None:
    switch, called = Switch(), list[tuple[str | None, slice | None, int]]()
    now = ForwardPass(Choice(), None, SHARES)

    def act(hidden: Tensor) -> tuple[Tensor]:
        called.append((now.on, now.rows, len(hidden)))
        return (hidden.add_(1) if writes else hidden + 1,)

    hidden = torch.zeros(8, 3)
    (out,) = switch.by_image(now, act, {"b", "c"}, hidden)
    assert called == [("b", slice(2, 3), 1), ("c", slice(4, 7), 3)]
    assert out[:, 0].tolist() == [0, 0, 1, 0, 1, 1, 1, 0]
    assert (out is hidden) == writes
    assert now.on is None and now.shares is SHARES and now.rows is None
