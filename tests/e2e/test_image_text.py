"""Whole image-text models on the command line: zero-shot, trained by name, other classes, pairs; two processes."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch.nn import functional as F

from tests.image_text_models import saved_clip
from vpeft.batch import Batch
from vpeft.cli import main
from vpeft.tasks.contrastive import Contrastive

pytestmark = pytest.mark.slow
TASK = "classification_by_name(templates=['a photo of a {}.', 'the {}'])"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny CLIP, and coloured pictures of two classes and of two other ones."""
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("clip")
    saved_clip(root / "model")
    rng = np.random.default_rng(0)
    shades = {"cat": (200, 20, 20), "dog": (20, 20, 200), "red": (250, 200, 10), "blue": (10, 200, 30)}
    for name, shade in shades.items():
        where = root / ("base" if name in ("cat", "dog") else "new") / name
        where.mkdir(parents=True)
        for number in range(12):
            pixels = np.clip(np.asarray(shade) + rng.integers(-20, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(where / f"{number}.png")
    return root


def run(*words: str) -> None:
    """A command that must succeed."""
    assert main([*words]) == 0


def test_names_alone_classify_and_a_trained_adapter_serves_other_names(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = f"hf:{folder / 'model'}", tmp_path / "run"
    run("predict", str(folder / "base"), "--names", "cat,dog", "--backbone", model, "--format", "json")
    said = json.loads(capsys.readouterr().out)
    assert len(said) == 24 and {row["label"] for row in said[0]["predictions"]} == {"cat", "dog"}
    run(
        "train", "--backbone", f"host::{model}", "--task", TASK, "--data", str(folder / "base"), "--method",
        "image:lora(rank=2)+text:bitfit", "--epochs", "6", "--lr", "0.01", "--out", str(out), "--json",
    )  # fmt: skip
    summary = json.loads(capsys.readouterr().out)
    assert summary["task"] == "classification_by_name" and summary["test_top1"] > 0.6
    recipe = (out / "recipe.toml").read_text()
    assert 'tower = "image"' in recipe and 'tower = "text"' in recipe
    adapter = str(out / "adapter.safetensors")
    run("predict", adapter, str(folder / "base" / "cat" / "0.png"), "--format", "json")
    assert {row["label"] for row in json.loads(capsys.readouterr().out)[0]["predictions"]} == {"cat", "dog"}
    run("predict", adapter, str(folder / "new" / "red" / "0.png"), "--names", "red,blue,ant", "--format", "json")
    assert {row["label"] for row in json.loads(capsys.readouterr().out)[0]["predictions"]} == {"red", "blue", "ant"}
    run("evaluate", adapter, "--data", str(folder / "new"), "--new-classes", "--json")
    scores = json.loads(capsys.readouterr().out)
    assert scores["count"] == 24 and "top1" in scores["values"]
    assert main(["predict", str(folder / "base"), "--names", "cat", "--backbone", model]) != 0
    assert "names 1 of at least two classes" in capsys.readouterr().err
    run("train", str(out / "recipe.toml"), "--out", str(tmp_path / "again"), "--json")  # its recipe means the same
    again = json.loads(capsys.readouterr().out)
    assert again["test_top1"] == summary["test_top1"]


def test_pairs_are_learnt_and_retrieved(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((folder / "base").rglob("*.png"))
    lines = [f"{file.relative_to(folder)},a photo of the {file.parent.name}" for file in files]
    (folder / "captions.csv").write_text("path,caption\n" + "\n".join(lines) + "\n")
    run(
        "train", "--backbone", f"host::hf:{folder / 'model'}", "--task", "contrastive", "--data",
        str(folder / "captions.csv"), "--method", "text:lora(rank=2)", "--epochs", "3", "--out", str(tmp_path / "run"),
        "--json",
    )  # fmt: skip
    summary = json.loads(capsys.readouterr().out)
    assert summary["metric"] == "mean_recall" and 0 <= summary["test_text_r1"] <= summary["test_text_r10"] <= 1


def _part(rank: int, port: int, loss: str, found: Any) -> None:
    """One of two processes: the gradient of its half of the rows."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        found[rank] = _gradient(loss, rank)
    finally:
        dist.destroy_process_group()


def _gradient(loss: str, rank: int | None) -> torch.Tensor:
    torch.manual_seed(0)
    weight, rows = torch.randn(6, 6, requires_grad=True), torch.randn(2, 8, 6)
    captions = list("abcdefga")
    if rank is not None:
        rows, captions = rows[:, 4 * rank : 4 * rank + 4], captions[4 * rank : 4 * rank + 4]
    seen, read = (F.normalize(one @ weight, dim=1) for one in rows)
    outputs = {"image": seen, "text": read, "scale": torch.tensor(5.0), "bias": torch.tensor(-1.0)}
    parts = Contrastive(loss=loss).loss(outputs, Batch(None, [(one,) for one in captions], size=len(captions)))
    torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    if rank is not None:
        dist.all_reduce(weight.grad)
        weight.grad /= 2
    return weight.grad.clone()


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_two_processes_compare_all_pairs_and_have_the_gradient_of_one(loss: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.Manager() as manager:
        found = manager.dict()
        mp.spawn(_part, (port, loss, found), nprocs=2)
        halves = [found[0], found[1]]
    alone = _gradient(loss, None)
    assert all(torch.allclose(half, alone, atol=1e-5) for half in halves)
