"""The commands about files and other libraries, on the backbone that ships with vpeft."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vpeft
from tests.unit.interop.adapters import shaken
from vpeft.cli import main
from vpeft.methods import LoRA, VPTDeep


def saved(folder: Path, name: str, method: vpeft.Method, seed: int = 2) -> Path:
    torch.manual_seed(1)
    tuned = vpeft.tune(vpeft.create_backbone("pocket_vit"), method, num_classes=3, verify=False)
    shaken(tuned, seed)
    return tuned.save(folder / f"{name}.safetensors", labels=["a", "b", "c"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "lora": saved(folder, "lora", LoRA(rank=2)),
        "other": saved(folder, "other", LoRA(rank=2), seed=5),
        "prompts": saved(folder, "prompts", VPTDeep(tokens=2)),
    }


def told(words: list[str | Path], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def test_verify(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads(told(["verify", files["lora"], "--json"], capsys))
    assert said["sealed"] and said["error"] <= 1e-6
    assert "The file is whole." in told(["verify", files["prompts"], "--file-only"], capsys)
    data = bytearray(files["lora"].read_bytes())
    data[-3] ^= 1
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(data)
    assert "its seal differs" in told(["verify", broken], capsys, code=1)
    assert "There is no adapter file" in told(["verify", tmp_path / "none.safetensors"], capsys, code=1)


def test_inspect(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads(told(["inspect", files["lora"], files["other"], "--json"], capsys))
    assert said["cosines_of"] == "changes" and said["cosines"][0][1] == pytest.approx(said["cosines"][1][0])
    assert abs(said["cosines"][0][1]) < 0.9 and said["adapters"][0]["nearest"] == str(files["other"])
    assert {row["place"] for row in said["adapters"][0]["places"]} == {
        f"blocks.{number}.attn.qkv.weight" for number in range(6)
    }
    mixed = json.loads(told(["inspect", files["lora"], files["prompts"], "--json"], capsys))
    assert mixed["cosines_of"] == "tensors" and mixed["adapters"][1]["of"] == "own tensors"
    assert "head" in told(["inspect", files["prompts"], "--file-only"], capsys)
    assert "No file was named" in told(["inspect"], capsys, code=1)


def test_diff(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert "They do not differ." in told(["diff", files["lora"], files["lora"]], capsys)
    said = json.loads(told(["diff", files["lora"], files["prompts"], "--json"], capsys))
    assert {"methods.0.name", "parameters"} <= {row["field"] for row in said["fields"]}
    assert {row["tensor"] for row in said["tensors"] if row["second"] is None} == {
        f"blocks.{number}.attn.{part}.parallel.{factor}" for number in range(6) for part in "qv" for factor in "AB"
    }


def test_export_to_a_checkpoint(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads(told(["export", files["lora"], tmp_path / "out", "--to", "backbone", "--json"], capsys))
    assert said["library"] == "timm" and said["error"] <= 1e-5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224" and config["label_names"] == ["a", "b", "c"]
    assert "not an empty folder" in told(["export", files["lora"], tmp_path / "out", "--to", "backbone"], capsys, 1)
    assert "--energy is for --to peft" in told(
        ["export", files["lora"], tmp_path / "b", "--to", "onnx", "--energy", "1"], capsys, 1
    )


def test_to_peft_and_back(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    folder, out = tmp_path / "peft", tmp_path / "back.safetensors"
    assert json.loads(told(["export", files["lora"], folder, "--to", "peft", "--json"], capsys))["whole"] == ["head"]
    words = ["import", folder, "--backbone", "pocket_vit", "--out", out, "--labels"]
    assert "2 labels were given" in told([*words, "a,b"], capsys, code=1) and not out.exists()
    assert json.loads(told([*words, "a,b,c", "--json"], capsys))["kind"] == "LORA"
    a, b = (vpeft.load(vpeft.create_backbone("pocket_vit"), path).eval() for path in (files["lora"], out))
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(a(x), b(x), atol=1e-5) and b.manifest.labels == ["a", "b", "c"]


def test_track(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    words = [
        "train",
        "--data",
        "digits",
        "--data.per-class",
        "2",
        "--backbone",
        "pocket_vit",
        "--method",
        "linear_probe",
    ]
    told([*words, "--epochs", "2", "--out", "run", "--track", "tensorboard", "--json"], capsys)
    events = EventAccumulator(str(tmp_path / "run" / "track"))
    events.Reload()
    assert [one.step for one in events.Scalars("train/loss")] == [1, 2] and events.Scalars("test/top1")
    assert "There is no tracker 'tensor'" in told([*words, "--out", "b", "--track", "tensor"], capsys, code=1)
