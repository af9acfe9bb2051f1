"""Predicted memory against what is kept, byte by byte."""

from __future__ import annotations

import json
from typing import Literal

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

import vpeft
from tests.contract.matrix import cell_or_refusal
from tests.families import EVERY
from tests.models import FAMILIES, tiny_vit
from vpeft.acceleration.apply import accelerate
from vpeft.backbones.create import create_backbone
from vpeft.cli import main
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import all_methods, get
from vpeft.task import Task, get_task
from vpeft.training.memory import SavedForBackward, saved_bytes
from vpeft.training.memory_plan import CannotPlan, largest, measure_memory, plan_memory

# Three times as many tokens as the other tests have, so that a wrong guess at the attention would show.
SIZE = {"img_size": 64, "patch_size": 8}
Precision = Literal["fp32", "bf16"]


def autocast(precision: Precision) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")


def kept_by(tuned: TunedModel, batch: int, precision: Precision) -> int:
    side = tuned.description.facts.image_size[0]
    with autocast(precision):
        return saved_bytes(tuned, torch.randn(batch, 3, side, side))


@pytest.mark.parametrize("name", ["lora", "ssf", "vpt_deep", "bitfit", "full_finetuning", "linear_probe", "convpass"])
def test_predicted_activations_are_those_that_are_kept(name: str) -> None:
    method = get(name)()
    real = vpeft.tune(tiny_vit(**SIZE), method, num_classes=3, show=False, verify=False).train()
    with torch.device("meta"):
        model = type(real.backbone)(**SIZE, embed_dim=48, depth=3, num_heads=3, num_classes=0)
        twin = vpeft.tune(model, method, num_classes=3, show=False, verify=False).eval()
    tensors = [*twin.parameters(), *twin.buffers()]
    for precision in ("fp32", "bf16"):
        plan = plan_memory(twin, 5, precision=precision)  # type: ignore[arg-type]
        assert plan.activations == pytest.approx(kept_by(real, 5, precision), rel=0.02)  # type: ignore[arg-type]
    plan = plan_memory(twin, 5)
    assert plan.weights == sum(p.numel() * 4 for p in (*real.parameters(), *real.buffers()))
    assert plan.optimiser == 2 * plan.gradients == 8 * sum(p.numel() for _, p in real.trainable())
    assert not twin.training
    assert all(one is other for one, other in zip(tensors, (*twin.parameters(), *twin.buffers()), strict=True))
    assert plan.largest_batch(plan.total) == 5
    assert plan.largest_batch(plan.total - plan.per_image) == 4
    assert plan.largest_batch(0) == 0
    assert plan.with_batch(9).activations == pytest.approx(plan_memory(twin, 9).activations, rel=0.02)


@pytest.mark.parametrize(
    ("name", "family", "precision", "acceleration"),
    [
        ("lora", "timm_vit", "fp32", "auto"),
        ("lora", "timm_vit", "bf16", "auto,low_memory"),
        ("vpt_deep", "timm_vit", "fp32", "auto,low_memory"),
        ("bitfit", "timm_swin", "bf16", "recompute_blocks"),
        ("ssf", "timm_convnext", "fp32", "auto,recompute_blocks"),
        ("lora", "hf_clip", "fp32", "recompute_blocks"),
    ],
)
def test_with_accelerations_it_is_what_they_leave(
    name: str, family: str, precision: Precision, acceleration: str
) -> None:
    cell, _ = cell_or_refusal(name, family)
    assert cell is not None
    tuned = cell.tuned().train()
    plan = plan_memory(tuned, 6, precision=precision, acceleration=acceleration)
    made = accelerate(tuned, acceleration, autocast=lambda: autocast(precision), precision=precision)
    used = [outcome.name for outcome in made.outcomes if outcome.applied]
    assert plan.accelerations == used and used
    side = tuned.description.facts.image_size[0]
    images = torch.randn(6, 3, side, side)
    with autocast(precision), SavedForBackward(tuned, [images]) as saved:
        tuned(images)
    with autocast(precision):
        task = get_task("classification")()
        measured = measure_memory(tuned, (images[0], 0), 6, task=task, precision=precision, accelerations=used)
    made.close()
    assert plan.activations == pytest.approx(saved.bytes, rel=0.02)
    assert measured.activations == pytest.approx(saved.bytes, rel=0.05)
    assert measured.weights == plan.weights


CLASSES = tuple(f"class {number}" for number in range(20))


def kept_by_step(tuned: TunedModel, task: Task, sample: object, count: int) -> int:
    """What a forward pass and its loss keep, counted here: storages by their address, each once."""
    batch = task.collate([sample] * count)
    there = {one.untyped_storage().data_ptr() for one in (*tuned.parameters(), *tuned.buffers(), *batch)}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = task.loss(task.run(tuned, batch), batch)
        sum(losses.values())
        return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("head", ["linear_map", "upernet(channels=64)"])
@pytest.mark.parametrize("size", [128, pytest.param(256, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["pocket_vit", "swin_tiny_patch4_window7_224"])
def test_a_head_for_maps_is_planned_with_its_loss(name: str, size: int, head: str) -> None:
    task = get_task("semantic_segmentation")(labels=CLASSES, head=head)
    model = create_backbone(name, pretrained=False, image_size=(size, size))
    tuned = vpeft.tune(model, get("lora")(), task=task, show=False, verify=False).train()
    sample = (torch.randn(3, size, size), torch.randint(0, len(CLASSES), (size, size)))
    kept = kept_by_step(tuned, task, sample, 3)
    plan = plan_memory(tuned, 3, task=task, sample=sample)
    assert plan.activations == pytest.approx(kept, rel=0.02)
    measured = measure_memory(tuned, sample, 3, task=task, precision="fp32", accelerations=[])
    assert measured.activations == pytest.approx(kept, rel=0.02)
    # One number for each class and pixel, which the loss keeps in single precision, is more than a tenth here.
    alone = plan_memory(tuned, 3).activations
    assert kept - alone >= 3 * len(CLASSES) * size**2 * 4


def test_a_head_that_looks_at_values_is_measured_and_not_planned() -> None:
    task = get_task("detection")(labels=CLASSES[:2], head="faster_rcnn(channels=16, hidden=16, proposals=20, rois=8)")
    tuned = vpeft.tune(tiny_vit(img_size=64), get("lora")(), task=task, show=False, verify=False).train()
    target = {
        "boxes": torch.tensor([[4.0, 4.0, 30.0, 40.0]]),
        "labels": torch.tensor([1]),
        "crowd": torch.tensor([False]),
        "size": torch.tensor([64, 64]),
        "original": torch.tensor([64, 64]),
    }
    sample = (torch.randn(3, 64, 64), target)
    with pytest.raises(CannotPlan, match="Set fit_memory"):
        plan_memory(tuned, 2, task=task, sample=sample)
    measured = measure_memory(tuned, sample, 4, task=task, precision="fp32", accelerations=[])
    assert measured.activations > measured.per_image > 0
    assert not any(isinstance(one, FakeTensor) for one in (*tuned.parameters(), *tuned.buffers()))


def test_the_largest_sample_is_measured() -> None:
    sizes = [(8, 8), (8, 12), (4, 4)]
    assert largest([(torch.zeros(3, *size), 0) for size in sizes])[0].shape == (3, 8, 12)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, "hf_vit", "hf_clip", "torchvision_vit", "timm_eva", "timm_resnet"])
def test_every_method_is_predicted_within_a_tenth(family: str) -> None:
    if family not in EVERY:
        pytest.skip("its library is not installed")
    wrong, looked_at = [], 0
    for name in all_methods():
        cell, _ = cell_or_refusal(name, family)
        if cell is None:
            continue
        tuned = cell.tuned().train()
        for precision in ("fp32", "bf16"):
            kept = kept_by(tuned, 5, precision)  # type: ignore[arg-type]
            told = plan_memory(tuned, 5, precision=precision).activations  # type: ignore[arg-type]
            looked_at += 1
            if told != pytest.approx(kept, rel=0.1):
                wrong.append((name, precision, kept, told))
    assert looked_at > 20
    assert not wrong


def test_explain_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "lora", "--batch", "64", "--precision", "bf16", "--fit-memory", "30MB", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["memory"]
    assert (told["batch"], told["precision"]) == (64, "bf16") and told["total"] > told["activations"] > 0
    totals = [told["total"], *(told["with"][name]["total"] for name in told["with"])]
    # "auto" saves time and may keep 16-bit copies of frozen weights; what follows it saves memory.
    assert totals[1:] == sorted(totals[1:], reverse=True) and len(totals) == 4 and totals[2] < totals[0]
    assert told["fits"]["total"] <= 30 * 10**6 < told["total"] and told["fits"]["accumulate"] >= 1
    assert main(["explain", "lora", "--fit-memory", "lots"]) == 1
    assert "'lots' is not a size of memory" in capsys.readouterr().err
