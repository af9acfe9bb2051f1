"""The Trainer of transformers trains, saves, reloads the best and resumes; its checkpoints hold the adapter alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import vpeft
from tests.unit.interop.adapters import backbone
from vpeft.interop import hf
from vpeft.methods import LoRA

transformers = pytest.importorskip("transformers")


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Images of two kinds that are told apart by their mean."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(count)
        self.labels = torch.arange(count) % 2
        self.images = (
            torch.randn(count, 3, 32, 32, generator=generator) * 0.3 + (self.labels - 0.5)[:, None, None, None]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def tuned() -> vpeft.TunedModel:
    torch.manual_seed(1)
    task = vpeft.get_task("classification")(labels=("dark", "bright"))
    return vpeft.tune(backbone("timm_vit"), LoRA(rank=2), task=task, verify=False)


def trainer(model: torch.nn.Module, folder: Path, **more: Any) -> Any:
    chosen = {
        "per_device_train_batch_size": 8, "learning_rate": 0.02, "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2, "logging_steps": 2,
        "load_best_model_at_end": True, "metric_for_best_model": "accuracy", "max_steps": 6, "seed": 3,
    }  # fmt: skip
    settings = transformers.TrainingArguments(output_dir=str(folder), **{**chosen, **more})
    return transformers.Trainer(
        model,
        settings,
        train_dataset=Rows(32),
        eval_dataset=Rows(16),
        compute_metrics=lambda given: {"accuracy": float((given[0].argmax(-1) == given[1]).mean())},
    )


def test_trains_saves_and_loads_the_best(tmp_path: Path) -> None:
    model = hf.wrap(tuned())
    frozen = {key: value.clone() for key, value in model.tuned.backbone.state_dict().items()}
    before = trainer(model, tmp_path / "before").evaluate()["eval_loss"]
    run = trainer(model, tmp_path / "run")
    run.train()
    assert run.evaluate()["eval_loss"] < before and run.evaluate()["eval_accuracy"] >= 0.9
    held = load_file(tmp_path / "run" / "checkpoint-6" / "model.safetensors")
    assert set(held) == set(model.tuned.adapter_state())
    best = load_file(Path(run.state.best_model_checkpoint) / "model.safetensors")
    assert all(torch.equal(value, best[key]) for key, value in model.tuned.adapter_state().items())
    assert all(torch.equal(value, frozen[key]) for key, value in model.tuned.backbone.state_dict().items())
    path = model.tuned.save(tmp_path / "a.safetensors")
    again = vpeft.load(backbone("timm_vit"), path).eval()
    x = Rows(4).images
    assert torch.allclose(again(x), model.eval()(x)["logits"], atol=1e-6)


def test_resumes_bit_by_bit(tmp_path: Path) -> None:
    """Six steps at once, and four steps with two more from their checkpoint."""
    options = {"load_best_model_at_end": False, "eval_strategy": "no", "lr_scheduler_type": "constant"}
    whole = hf.wrap(tuned())
    trainer(whole, tmp_path / "whole", **options).train()
    part = hf.wrap(tuned())
    trainer(part, tmp_path / "part", **options, max_steps=4).train()
    rest = hf.wrap(tuned())
    trainer(rest, tmp_path / "part", **options).train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-4"))
    for key, value in whole.tuned.adapter_state().items():
        assert torch.equal(value, rest.tuned.adapter_state()[key]), key


def test_the_loss_is_the_tasks(tmp_path: Path) -> None:
    model = hf.wrap(tuned()).eval()
    rows = Rows(4)
    out = model(rows.images, rows.labels)
    expected = torch.nn.functional.cross_entropy(model.tuned(rows.images), rows.labels)
    assert torch.allclose(out["loss"], expected) and set(model(rows.images)) == {"logits"}


def test_refusals() -> None:
    pairs = vpeft.get_task("same_or_different")()
    with pytest.raises(hf.NotTrainable, match="2 images"):
        hf.wrap(tuned(), pairs)
    with pytest.raises(vpeft.VpeftError, match="classificatio"):
        hf.wrap(tuned(), "classificatoin")
    model = tuned()
    model.detach()
    with pytest.raises(hf.NotTrainable, match="trains an adapter"):
        hf.wrap(model)
    with pytest.raises(vpeft.VpeftError, match="do not fit this adapter"):
        hf.wrap(tuned()).load_state_dict({"a": torch.zeros(1)})
