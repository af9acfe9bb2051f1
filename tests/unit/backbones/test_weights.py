"""Weights from files and state dicts: read as data, compared with the model, loaded whole or refused with a list."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import vpeft
from tests.models import tiny_vit
from vpeft.backbones.create import NoWeights
from vpeft.backbones.origin import origin_of
from vpeft.backbones.positions import ResizedPositions
from vpeft.backbones.weights import BadWeights, load_weights, read_weights


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(0)
    return tiny_vit()


def _files(model: nn.Module, folder: Path) -> list[Path]:
    state = model.state_dict()
    save_file(state, folder / "a.safetensors")
    torch.save(state, folder / "b.pth")
    torch.save({"epoch": 3, "state_dict": state}, folder / "c.pt")
    np.savez(folder / "d.npz", **{key: value.numpy() for key, value in state.items()})
    return sorted(folder.iterdir())


def test_every_kind_of_file_is_loaded_to_the_bit(source: nn.Module, tmp_path: Path) -> None:
    for path in _files(source, tmp_path):
        model = tiny_vit()
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        report = load_weights(model, path)
        assert len(report.loaded) == len(source.state_dict()), path.name
        assert all(value.equal(source.state_dict()[key]) for key, value in model.state_dict().items()), path.name


def test_a_prefix_picks_one_of_several_models(source: nn.Module) -> None:
    whole = {"student": {f"net.{key}": torch.zeros_like(value) for key, value in source.state_dict().items()}}
    whole["teacher"] = {f"net.{key}": value for key, value in source.state_dict().items()}
    model = tiny_vit()
    load_weights(model, whole, prefix="teacher.net.")
    assert all(value.equal(source.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(BadWeights, match=r"No key .* starts with 'tutor\.'.*student, teacher"):
        read_weights(whole, "tutor.")
    wrapped = {f"module.{key}": value for key, value in source.state_dict().items()}
    with pytest.raises(BadWeights, match=r"Every key starts with 'module'; try prefix='module\.'"):
        load_weights(model, wrapped)


def test_a_prefix_is_found_inside_the_wrapper_of_a_training_checkpoint(source: nn.Module, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth", "module.").keys() == source.state_dict().keys()
    with pytest.raises(BadWeights, match=r"No key of .* starts with 'net\.'"):
        read_weights(tmp_path / "w.pth", "net.")


def test_weights_that_cannot_be_downloaded_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known\nand much more")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(NoWeights, match=r"of test_vit are not in the cache.*service not known Give a file.*--weights"):
        vpeft.create_backbone("test_vit")
    with pytest.raises(ConnectionError):
        vpeft.create_backbone("test_vit", pretrained=False)


def test_differences_are_listed_and_refused_unless_asked(source: nn.Module) -> None:
    state = dict(source.state_dict())
    state["blocks.0.norm1.weight"] = torch.ones(7)
    state["extra.weight"] = torch.ones(2)
    del state["norm.bias"]
    model: Any = tiny_vit()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        BadWeights,
        match=r"Missing: norm\.bias\. Unknown to the model: extra\.weight\. Of another shape: blocks\.0\.norm1\.weight"
        r" \(7,\), the model has \(48,\).*allow 'missing', 'unexpected', 'shape'",
    ):
        load_weights(model, state)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    with pytest.raises(BadWeights, match="norm1.*allow 'shape'"):
        load_weights(model, state, allow=("missing", "unexpected"))
    report = load_weights(model, state, allow=("missing", "unexpected", "shape"))
    assert [note.partition(":")[0] for note in report.notes] == [
        "Allowed, missing",
        "Allowed, unexpected",
        "Allowed, shape",
    ]
    assert model.norm.bias.equal(before["norm.bias"])
    with pytest.raises(BadWeights, match="no difference 'keys'"):
        load_weights(model, state, allow=("keys",))  # type: ignore[arg-type]


class Stranger:
    """A class of ours inside a pickle."""

    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("code that a pickle runs",))


def test_what_is_no_plain_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Stranger()}, tmp_path / "code.pth")
    with pytest.raises(BadWeights, match="could run code.*weights only.*safetensors"):
        read_weights(tmp_path / "code.pth")
    assert "code that a pickle runs" not in capsys.readouterr().out
    np.savez(tmp_path / "objects.npz", a=np.array([Stranger()], dtype=object))
    (tmp_path / "half.safetensors").write_bytes(b"\x08")
    (tmp_path / "text.csv").write_text("a,b")
    (tmp_path / "torn.pth").write_bytes(pickle.dumps({}, protocol=2)[:-1])
    torch.save({"epoch": 1}, tmp_path / "none.pth")
    for name, words in {
        "objects.npz": "cannot be read as weights",
        "half.safetensors": "no complete safetensors file",
        "text.csv": r"ending '\.csv'; weights come as \.safetensors",
        "torn.pth": "objects|cannot be read|could run code",
        "none.pth": "holds no tensors",
        "absent.pth": "no file of weights",
    }.items():
        with pytest.raises(BadWeights, match=words):
            read_weights(tmp_path / name)


def test_positions_are_resized_and_it_is_said() -> None:
    small: Any = tiny_vit()
    large: Any = tiny_vit(img_size=64)
    with pytest.warns(ResizedPositions, match=r"were resized from \(1, 17, 48\) to \(1, 65, 48\)"):
        report = load_weights(large, small.state_dict())
    assert len(report.notes) == 1
    wanted = timm.layers.pos_embed.resample_abs_pos_embed(small.pos_embed, [8, 8], [4, 4], num_prefix_tokens=1)
    assert torch.allclose(large.pos_embed, wanted, atol=1e-6)
    wide: Any = tiny_vit(img_size=(32, 64))
    with pytest.warns(ResizedPositions):
        load_weights(wide, small.state_dict(), grid=(4, 8))
    wanted = timm.layers.pos_embed.resample_abs_pos_embed(small.pos_embed, [4, 8], [4, 4], num_prefix_tokens=1)
    assert torch.allclose(wide.pos_embed, wanted, atol=1e-6)


def test_create_backbone_takes_a_file_and_remembers_it(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = timm.create_model("test_vit", num_classes=5, depth=1)
    state = {f"net.{key}": value for key, value in trained.state_dict().items()}
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    with pytest.raises(BadWeights, match="Missing: blocks.1"):
        vpeft.create_backbone("test_vit", weights=path, prefix="net.")
    model = vpeft.create_backbone("test_vit", weights=path, prefix="net.", allow=("missing",))
    assert all(model.state_dict()[key].equal(value) for key, value in trained.state_dict().items() if "head" not in key)
    origin = origin_of(model)
    assert origin is not None
    assert (origin.weights, origin.pretrained, origin.prefix, origin.allow) == (str(path), False, "net.", ("missing",))
    assert any("no classifier: head.bias, head.weight" in note for note in origin.notes)


def test_create_backbone_for_another_image_size() -> None:
    with pytest.warns(ResizedPositions, match=r"pocket_vit"):
        model = vpeft.create_backbone("pocket_vit", image_size=80)
    assert vpeft.describe(model).facts.image_size == (80, 80)
    assert model(torch.zeros(1, 3, 80, 80)).shape == (1, model.num_features)
    net = vpeft.create_backbone("resnet10t", pretrained=False, image_size=96)
    assert net(torch.zeros(1, 3, 96, 96)).shape == (1, net.num_features)
