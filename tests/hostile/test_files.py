"""Every file of the corpus is refused with one sentence, changes nothing and runs nothing."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import vpeft
from tests.hostile.make_files import CORPUS, record
from tests.hostile.mutations import base, saved
from vpeft.backbones.own_model import read_anatomy
from vpeft.backbones.weights import load_weights, read_weights
from vpeft.bench.ledger import Ledger, LedgerError
from vpeft.bench.record_table import NAME, read_table
from vpeft.cli.loaded import open_adapter
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.injection.adapter_file import read, read_manifest, sealed_bytes
from vpeft.safe_text import visible
from vpeft.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
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


def _record(path: Path) -> None:
    """As the only record of a ledger, where it has the name of its key."""
    with TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        runs.mkdir()
        shutil.copy(path, runs / f"{record()['key']}.json")
        list(Ledger(folder))


def _table(path: Path) -> None:
    with TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder) / NAME)
        list(Ledger(folder))


def _list(path: Path) -> None:
    open_data(DataConfig(source=str(path)))


READERS: dict[str, Callable[[Path], Any]] = {
    "list": _list,
    "record": _record,
    "table": _table,
    "adapter": _adapter,
    "recipe": _recipe,
    "weights": _weights,
    "anatomy": read_anatomy,
    "checkpoint": read_checkpoint,
}


def test_what_the_hostile_records_are_made_from_is_sound(tmp_path: Path) -> None:
    (tmp_path / "record_sound.json").write_text(json.dumps(record()))
    (tmp_path / "table_sound.xz").write_bytes(lzma.compress(json.dumps(record()).encode() + b"\n"))
    _record(tmp_path / "record_sound.json")
    _table(tmp_path / "table_sound.xz")


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
    if name.startswith("list_"):
        said = visible(said)  # names of images stand in messages as they are, and the console shows what is in them
    assert 10 < len(said) < 3000
    assert all(letter.isprintable() or letter == "\n" for letter in said), "a control character would reach a terminal"
    assert [path.name for path in tmp_path.iterdir()] == [name], "something was run or left"


@pytest.mark.parametrize(
    "reader",
    [read, read_manifest, read_weights, read_anatomy, read_checkpoint, Recipe.from_toml, _adapter, _list, read_table],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".toml", ".pth", ".npz", ".csv", ".parquet", ""])
def test_folders_pipes_links_and_nothing_are_refused(
    reader: Callable[[Path], Any], suffix: str, tmp_path: Path
) -> None:
    folder, pipe, link = (tmp_path / f"{name}{suffix}" for name in ("folder", "pipe", "link"))
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to(link.name)  # to itself
    odd = (tmp_path / ("x" * 300 + suffix), tmp_path / f"a\0b{suffix}", Path(f"/dev/zero{suffix}"))
    for path in (folder, pipe, link, tmp_path / f"nothing{suffix}", *odd):
        if reader is read_table and not os.path.lexists(path):
            assert read_table(path) == {}, "a ledger without a table"
            continue
        with pytest.raises(vpeft.VpeftError):
            reader(path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_something_else_in_the_place_of_a_record_is_named(kind: str, tmp_path: Path) -> None:
    ledger, key = Ledger(tmp_path), record()["key"]
    ledger.runs.mkdir()
    path = ledger.file(key)
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(path.name)}[kind]()
    for act in (lambda: list(ledger), lambda: ledger.get(key), ledger.pack):
        with pytest.raises(LedgerError, match=f"{key}.json cannot be read"):
            act()


def test_what_was_read_stays_when_its_file_is_written_anew(tmp_path: Path) -> None:
    """A tensor in a mapped file would change after it was checked, and end the process when the file is cut."""
    weights, adapter, checkpoint = (tmp_path / f"{name}.safetensors" for name in ("weights", "adapter", "checkpoint"))
    numbers = torch.arange(20_000.0)
    save_file({"w": numbers}, weights)
    shutil.copy(saved(tmp_path, "lora"), adapter)
    write_checkpoint(checkpoint, Checkpoint({"model": {"w": numbers}}, {"epoch": 3}))
    expected = {name: value.clone() for name, value in read(adapter)[1].items()}
    found = read_weights(weights)["w"], read(adapter)[1], read_checkpoint(checkpoint).tensors["model"]["w"]
    for path in (weights, adapter, checkpoint):
        size = path.stat().st_size
        with path.open("rb+") as file:
            file.seek(size // 2)
            file.write(bytes(size // 2))
            file.flush()
            os.fsync(file.fileno())
    assert torch.equal(found[0], numbers) and torch.equal(found[2], numbers)
    assert all(torch.equal(found[1][name], value) for name, value in expected.items())


def test_the_checksum_of_weights_is_that_of_the_bytes_that_were_read(tmp_path: Path) -> None:
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pth"):
        state = torch.nn.Linear(3, 2).state_dict()
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
        expected = hashlib.sha256(path.read_bytes()).hexdigest()
        assert load_weights(torch.nn.Linear(3, 2), path).sha256 == expected


def test_a_manifest_that_the_format_cannot_hold_is_ours_to_say() -> None:
    with pytest.raises(vpeft.VpeftError, match="cannot be written as JSON: .*header too large"):
        sealed_bytes({"extra": "x" * 101_000_000}, {})


def test_weights_that_change_between_their_check_and_their_reading_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, state = tmp_path / "w.safetensors", vpeft.create_backbone("pocket_vit").state_dict()
    save_file(state, path)
    model = vpeft.create_backbone("pocket_vit", weights=path)
    tuned = vpeft.tune(model, vpeft.methods.LoRA(rank=2), num_classes=2, verify=False, show=False)
    adapter = tuned.save(tmp_path / "a.safetensors", labels=["a", "b"])
    assert open_adapter(adapter, device="cpu").labels == ["a", "b"]
    checked = hashlib.sha256(path.read_bytes()).hexdigest()
    save_file({name: value + 1 for name, value in state.items()}, path)
    monkeypatch.setattr("vpeft.cli.loaded.file_digest", lambda file: checked)
    with pytest.raises(vpeft.VpeftError, match="w.safetensors changed while it was read"):
        open_adapter(adapter, device="cpu")
