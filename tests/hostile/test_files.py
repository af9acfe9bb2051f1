"""Every file of the corpus is refused with one sentence, changes nothing and runs nothing."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vpeft
from tests.hostile.make_files import CORPUS
from tests.hostile.mutations import base
from vpeft.backbones.own_model import read_anatomy
from vpeft.backbones.weights import load_weights, read_weights
from vpeft.cli.loaded import open_adapter
from vpeft.injection.adapter_file import read, read_manifest
from vpeft.training.checkpoint import read_checkpoint
from vpeft.training.recipe import Recipe
from vpeft.training.run import run_recipe

with zipfile.ZipFile(CORPUS) as archive:
    FILES = sorted(archive.namelist())


def _adapter(path: Path) -> None:
    model = base()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        # what names a backbone is hostile to the command that makes it
        open_adapter(path, device="cpu") if path.name.startswith("adapter_origin") else vpeft.load(model, path)
    finally:
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def _recipe(path: Path) -> None:
    run_recipe(Recipe.from_toml(path), progress=False, show=False)


def _weights(path: Path) -> None:
    load_weights(torch.nn.Linear(2, 2), path)


READERS: dict[str, Callable[[Path], Any]] = {
    "adapter": _adapter,
    "recipe": _recipe,
    "weights": _weights,
    "anatomy": read_anatomy,
    "checkpoint": read_checkpoint,
}


def test_there_is_a_corpus_for_every_reader() -> None:
    assert {name.partition("_")[0] for name in FILES} == set(READERS)
    with zipfile.ZipFile(CORPUS) as archive:
        assert all(entry.file_size < 70_000 for entry in archive.infolist())


@pytest.mark.parametrize("name", FILES)
def test_it_is_refused_with_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with zipfile.ZipFile(CORPUS) as archive:
        archive.extract(name, tmp_path)
    with pytest.raises(vpeft.VpeftError) as raised:
        READERS[name.partition("_")[0]](tmp_path / name)
    said = str(raised.value)
    assert 10 < len(said) < 3000
    assert all(letter.isprintable() or letter == "\n" for letter in said), "a control character would reach a terminal"
    assert [path.name for path in tmp_path.iterdir()] == [name], "something was run or left"


@pytest.mark.parametrize(
    "reader", [read, read_manifest, read_weights, read_anatomy, read_checkpoint, Recipe.from_toml, _adapter]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".toml", ".pth", ".npz", ""])
def test_folders_pipes_links_and_nothing_are_refused(
    reader: Callable[[Path], Any], suffix: str, tmp_path: Path
) -> None:
    import os

    folder, pipe, link = (tmp_path / f"{name}{suffix}" for name in ("folder", "pipe", "link"))
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to(link.name)  # to itself
    odd = (tmp_path / ("x" * 300 + suffix), tmp_path / f"a\0b{suffix}", Path(f"/dev/zero{suffix}"))
    for path in (folder, pipe, link, tmp_path / f"nothing{suffix}", *odd):
        with pytest.raises(vpeft.VpeftError):
            reader(path)
