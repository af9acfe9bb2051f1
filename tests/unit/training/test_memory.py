"""Saved bytes by hand, and peaks."""

from __future__ import annotations

import gc

import torch
from torch import nn

from vpeft.training.memory import SavedForBackward, peak_memory, readable, saved_bytes


def test_saved_bytes_by_hand() -> None:
    # Linear saves its input (not counted: it is the batch) and its weight (not counted); GELU saves its input, a
    # (4, 16) tensor; the second linear saves GELU's output, as large again.
    network = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))
    batch = torch.randn(4, 8)
    assert saved_bytes(network, batch) == 2 * 4 * 16 * 4
    with SavedForBackward(network, [batch]) as saved:
        network(batch)
    assert (saved.bytes, saved.tensors) == (2 * 4 * 16 * 4, 2)


def test_a_frozen_first_layer_keeps_nothing() -> None:
    network = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))
    network[0].requires_grad_(False)
    # Only the last layer's input is kept, for its weight.
    assert saved_bytes(network, torch.randn(4, 8)) == 4 * 16 * 4
    network.requires_grad_(False)
    assert saved_bytes(network, torch.randn(4, 8)) == 0


def test_a_storage_that_is_saved_twice_counts_once() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 1.0
            return y.sin() + y.cos() + y.view(-1).exp().view_as(y)

    x = torch.randn(6, 5, requires_grad=True)
    # y once for sin and cos; exp keeps its own result.
    assert saved_bytes(Twice(), x) == 2 * 6 * 5 * 4


def test_it_counts_on_the_meta_device_too() -> None:
    network = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))
    with torch.device("meta"):
        twin = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))
    assert saved_bytes(twin, torch.empty(4, 8, device="meta")) == saved_bytes(network, torch.randn(4, 8))


def test_peaks_and_their_wording() -> None:
    peak = peak_memory(torch.device("cpu"))
    assert peak.process is not None
    assert peak.process > 50 * 2**20  # torch alone is more
    assert peak.accelerator is None
    assert [readable(n) for n in (512, 3.4 * 2**20, 5 * 2**30)] == ["512 B", "3.4 MiB", "5.0 GiB"]


def test_counting_leaves_nothing_behind_and_changes_no_gradient() -> None:
    """A softmax keeps its own output: a graph that no backward pass takes apart must go all the same."""

    class Shares(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.softmax(-1).exp()

    x = torch.randn(977, 3, requires_grad=True)

    def alive() -> int:
        gc.collect()
        return sum(type(o) is torch.Tensor and tuple(o.shape) == (977, 3) for o in gc.get_objects())

    before = alive()
    for _ in range(3):
        assert saved_bytes(Shares(), x) == 2 * 977 * 3 * 4
    assert alive() == before
    with SavedForBackward(nn.Identity(), [x]):
        counted = Shares()(x)
    (first,) = torch.autograd.grad(counted.square().sum(), x, create_graph=True)
    (plain,) = torch.autograd.grad(Shares()(x).square().sum(), x, create_graph=True)
    assert torch.equal(first, plain)
    twice = [torch.autograd.grad(one.square().sum(), x)[0] for one in (first, plain)]
    assert torch.equal(*twice)
