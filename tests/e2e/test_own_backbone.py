"""A backbone that no family knows, from the command line: code of one's own, timm's, transformers', with an anatomy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from vpeft.backbones.trust import NotTrusted
from vpeft.cli import main
from vpeft.cli.loaded import _made_again
from vpeft.errors import VpeftError
from vpeft.injection.adapter_file import read_manifest
from vpeft.training.recipe import Recipe
from vpeft.training.run import run_recipe

# What evaluate leaves out, because the training used it, is a remark.
pytestmark = pytest.mark.filterwarnings("default::vpeft.data.problems.DataWarning")

NET = """
import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.mix = nn.Sequential(self.up, nn.GELU(), self.down)

    def forward(self, x):
        return x + self.mix(self.norm(x))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.cut, self.layers = nn.Conv2d(3, 8, 8, 8), nn.Sequential(Layer(), Layer())

    def forward(self, images):
        return self.layers(self.cut(images).flatten(2).transpose(1, 2)).mean(1)

def text():
    return "no model"
"""
NOUNS = """
blocks = "layers"
norm2 = "norm"
mlp = "mix"
fc1 = "mix.0"
fc2 = "mix.2"
patch = "cut"
image_size = [16, 16]
"""
ADAPTER = "run/adapter.safetensors"


class _Plain(nn.Sequential):
    """A net of timm's register that is in no family."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.pretrained_cfg = {"input_size": (3, 16, 16), "architecture": "own_test_net", "crop_pct": 1.0}


@timm.models.register_model
def own_test_net(pretrained: bool = False, **options: Any) -> Any:
    return _Plain()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a net, its nouns, data, and the run that a command has made of them."""
    here = tmp_path_factory.mktemp("own")
    images = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
    np.savez(here / "data.npz", images=images, labels=np.arange(12) % 3)
    (here / "net.py").write_text(NET, encoding="utf-8")
    (here / "nouns.toml").write_text(NOUNS, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert _train("py:net.py:Net", "run", "--anatomy", "nouns.toml", "--method", "adaptformer") == 0
        yield here


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    capsys.readouterr()


def _train(backbone: str, out: str, *more: str) -> int:
    words = ["train", "--data", "data.npz", "--backbone", backbone, "--epochs", "1", "--batch", "6", "--out", out]
    return main([*words, *more])


def test_the_run_keeps_the_nouns_and_can_be_had_again(capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(ADAPTER)
    assert manifest.family == "own_model" and manifest.anatomy is not None and manifest.anatomy["mlp"] == "mix"
    assert manifest.origin is not None and manifest.origin.name == "py:net.py:Net" and manifest.origin.seed is not None
    record = json.loads(Path("run/run.json").read_text(encoding="utf-8"))
    assert record["recipe"]["anatomy"]["image_size"] == [16, 16]
    assert record["backbone"]["digest"] == manifest.base_digest
    recipe = Recipe.from_toml("run/recipe.toml")
    assert recipe.anatomy is not None and recipe.anatomy.blocks == ("layers",)
    torch.manual_seed(9)
    assert main(["train", "run/recipe.toml", "--out", "again", "--json"]) == 1
    assert "code is not run because a file names it" in capsys.readouterr().err and not Path("again").exists()
    with pytest.raises(NotTrusted, match="trust_code=True"):
        run_recipe(recipe)
    assert main(["train", "run/recipe.toml", "--out", "again", "--json", "--trust-code"]) == 0
    again = read_manifest("again/adapter.safetensors")
    assert again.tensors_digest == manifest.tensors_digest and again.base_digest == manifest.base_digest


def test_code_is_run_only_when_it_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", ADAPTER, "--data", "data.npz"]) == 1
    assert "add --backbone py:net.py:Net" in capsys.readouterr().err
    manifest = read_manifest(ADAPTER)
    for stated, said in (("py:net.py:Net", "code is not run"), ("Net", "does not name the code that creates it")):
        with pytest.raises(VpeftError, match=said):
            _made_again(manifest.model_copy(update={"origin": None, "backbone": stated}), Path(ADAPTER), None, None)
    named = ["--backbone", "py:net.py:Net"]
    assert main(["evaluate", ADAPTER, "--data", "data.npz", *named, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] > 0
    Image.fromarray(np.load("data.npz")["images"][0]).save("one.png")
    assert main(["predict", ADAPTER, "one.png", *named, "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["predictions"]) == 3


def test_explain_says_what_would_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explain", "adaptformer", "--backbone", "py:net.py:Net", "--anatomy", "nouns.toml", "--json"]
    assert main([*words, "--classes", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    recorded = json.loads(Path("run/run.json").read_text(encoding="utf-8"))["plan"]
    assert told["trainable_with_head"] == recorded["trainable_with_head"] > 0
    assert told["properties"]["memory"] > 0


def test_an_undescribed_net_of_timm_is_taken_layer_by_layer(capsys: pytest.CaptureFixture[str]) -> None:
    assert _train("own_test_net", "t", "--no-pretrained", "--method", "bitfit") == 1
    assert "--anatomy generic" in capsys.readouterr().err
    assert _train("own_test_net", "t", "--no-pretrained", "--method", "bitfit", "--anatomy", "generic") == 0
    assert main(["evaluate", "t/adapter.safetensors", "--data", "data.npz"]) == 0  # no code of one's own


@pytest.mark.filterwarnings("ignore:The checkpoint .* has no preprocessor_config")
def test_an_undescribed_checkpoint_of_transformers_is_taken_too(capsys: pytest.CaptureFixture[str]) -> None:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.MobileNetV2Config(depth_multiplier=0.1, min_depth=8, image_size=32)
    transformers.MobileNetV2Model(config).save_pretrained("checkpoint")
    assert _train("hf:checkpoint", "h", "--method", "bitfit") == 1
    assert "docs/own_model.md" in capsys.readouterr().err
    assert _train("hf:checkpoint", "h", "--method", "bitfit", "--anatomy", "generic") == 0
    assert main(["evaluate", "h/adapter.safetensors", "--data", "data.npz"]) == 0
    assert read_manifest("h/adapter.safetensors").preprocessing["size"] == [32, 32]  # type: ignore[index]


@pytest.mark.parametrize(
    ("backbone", "anatomy", "said"),
    [
        ("py:net.py:Net", None, "--anatomy FILE.toml"),
        ("py:net.py:Nett", "generic", "Did you mean 'Net'"),
        ("py:nett.py:Net", "generic", "no file 'nett.py'"),
        ("py:net.py:text", "generic", "gives a str"),
        ("py:net.py", "generic", "FILE.py:NAME"),
        ("py:no_such_package.nets:Net", "generic", "no module 'no_such_package.nets'"),
        ("py:net.py:Net", "none.toml", "No such file"),
        ("py:net.py:Net", "net.py", "not valid TOML"),
    ],
)
def test_mistakes_are_said_in_a_sentence(
    backbone: str, anatomy: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = () if anatomy is None else ("--anatomy", anatomy)
    assert _train(backbone, "never", "--method", "bitfit", *more) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("nouns", "said"), [("fc3 = 'x'", "fc3: Extra"), ("blocks = 'layer'", "Did you mean 'layers'")]
)
def test_wrong_nouns_are_said_in_a_sentence(nouns: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.toml").write_text(nouns, encoding="utf-8")
    assert _train("py:net.py:Net", "never", "--method", "bitfit", "--anatomy", "wrong.toml") == 1
    assert said in capsys.readouterr().err
