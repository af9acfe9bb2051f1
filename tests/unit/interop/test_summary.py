"""Numbers about adapters, against what can be computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import vpeft
from tests.unit.interop.adapters import adapted, backbone, shaken
from vpeft.injection.adapter_file import read
from vpeft.injection.merge import CannotMerge
from vpeft.interop.adapter_difference import manifest_differences, tensor_differences
from vpeft.interop.adapter_summary import (
    cosine,
    cosines,
    delta_of,
    effective_rank,
    nearest_of,
    summary_of_changes,
    summary_of_tensors,
)
from vpeft.interop.weight_changes import weight_changes
from vpeft.methods import BitFit, FullFinetuning, LoRA, VPTDeep


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.ones(4, 9)) == pytest.approx(1)
    assert effective_rank(torch.zeros(4, 9)) == 0
    parts = torch.tensor([3.0, 1.0])
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(torch.diag(parts)) == pytest.approx(expected)


def test_changes_are_those_of_the_formula() -> None:
    tuned = adapted("timm_vit", LoRA(rank=3, alpha=6, targets=("fc1",)))
    rows = {row.place: row for row in summary_of_changes(weight_changes(tuned))}
    assert set(rows) == {f"blocks.{number}.mlp.fc1.weight" for number in range(3)}
    total = 0.0
    deltas = {}
    for edit in tuned.adapter().edits:
        deltas[f"{edit.place.name}.weight"] = 2 * (edit.layer.B @ edit.layer.A).detach()
        total += float(deltas[f"{edit.place.name}.weight"].square().sum())
    for key, delta in deltas.items():
        row, weight = rows[key], backbone("timm_vit").get_parameter(key).detach()
        assert row.norm == pytest.approx(float(delta.norm()), rel=1e-5)
        assert row.relative == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-5)
        assert row.share == pytest.approx(float(delta.square().sum()) / total, rel=1e-5)
        assert row.effective_rank is not None and 1 < row.effective_rank <= 3.001
        assert row.parameters == weight.numel()


@pytest.mark.parametrize("method", [BitFit(), FullFinetuning()], ids=lambda one: one.name)
def test_unfrozen_parameters_are_changes_too(method: vpeft.Method) -> None:
    if method.name == "full_finetuning":
        tuned = adapted("timm_vit", method)
        assert weight_changes(tuned) == {}  # it has no originals to compare with
        return
    tuned = adapted("timm_vit", method)
    changes = weight_changes(tuned)
    assert all(key.endswith("bias") for key in changes) and "blocks.0.norm1.bias" in changes
    before, after = changes["blocks.0.norm1.bias"]
    assert torch.equal(before.float(), backbone("timm_vit").get_parameter("blocks.0.norm1.bias").detach())
    with tuned.enable("default"):
        assert torch.equal(after.float(), tuned.backbone.get_parameter("blocks.0.norm1.bias").detach())


def test_the_gauge_of_a_lora_does_not_count() -> None:
    """B R and R^-1 A are other tensors with the same change."""
    first, second = adapted("timm_vit", LoRA(rank=3)), adapted("timm_vit", LoRA(rank=3))
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    with torch.no_grad():
        for edit in second.adapter().edits:
            edit.layer.B.copy_(edit.layer.B @ turn)
            edit.layer.A.copy_(turn.T @ edit.layer.A)
    assert cosine(delta_of(first), delta_of(second)) == pytest.approx(1, abs=1e-5)
    own, turned = first.adapter_state(), second.adapter_state()
    alike = cosine(own, turned)
    assert alike is not None and alike < 0.9


def test_the_nearest_of_three() -> None:
    adapters = [adapted("timm_vit", LoRA(rank=2)) for _ in range(3)]
    shaken(adapters[1], seed=7, size=0.01)
    shaken(adapters[2], seed=8, size=0.3)
    table = cosines([delta_of(one) for one in adapters])
    assert [nearest_of(row, number) for number, row in enumerate(table)][:2] == [1, 0]
    assert nearest_of([None, 1.0], 1) is None
    assert cosine({"a": torch.ones(2)}, {"a": torch.ones(3)}) is None and cosine({}, {"a": torch.ones(2)}) is None
    assert cosine({"a": torch.ones(2)}, {"b": torch.ones(2)}) == 0


def test_what_cannot_be_merged_has_its_own_tensors() -> None:
    tuned = adapted("timm_vit", VPTDeep(tokens=2))
    with pytest.raises(CannotMerge):
        weight_changes(tuned)
    rows = summary_of_tensors(tuned.adapter_state())
    assert sum(row.share for row in rows) == pytest.approx(1)
    head = next(row for row in rows if row.place == "head")
    state = tuned.adapter_state()
    expected = (state["head.weight"].square().sum() + state["head.bias"].square().sum()).sqrt()
    assert head.norm == pytest.approx(float(expected), rel=1e-5) and head.parameters == 5 * 48 + 5


def test_differences_of_files(tmp_path: Path) -> None:
    tuned = adapted("timm_vit", LoRA(rank=2))
    one = read(tuned.save(tmp_path / "a.safetensors", labels=list("abcde")))
    assert manifest_differences(one[0], one[0]) == [] and tensor_differences(one[1], one[1]) == []
    with torch.no_grad():
        tuned.head.bias.mul_(2)
    other = read(tuned.save(tmp_path / "b.safetensors", labels=list("abcdx")))
    fields = {row.field: (row.first, row.second) for row in manifest_differences(one[0], other[0])}
    assert fields["labels"] == (list("abcde"), list("abcdx")) and "seal" not in fields and "probe" not in fields
    (row,) = tensor_differences(one[1], other[1])
    assert row.tensor == "head.bias" and row.relative == pytest.approx(1) and row.cosine == pytest.approx(1)
    third = read(adapted("timm_vit", LoRA(rank=3)).save(tmp_path / "c.safetensors"))
    shapes = {row.tensor: (row.first, row.second) for row in tensor_differences(one[1], third[1])}
    assert shapes["blocks.0.attn.q.parallel.A"] == ((2, 48), (3, 48))
