"""Whatever the bytes are, a reader gives a value or raises a `VpeftError`: random bytes, changed files and JSON."""

from __future__ import annotations

import json
import string
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes

import vpeft
from tests.hostile.make_files import RECIPE
from vpeft.backbones.own_model import read_anatomy
from vpeft.backbones.weights import read_weights
from vpeft.guarded import check_value, parse_json, parse_tensor_header, parse_toml
from vpeft.injection.adapter_file import KEY, Manifest, read, sealed_bytes
from vpeft.method_spec import parse
from vpeft.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vpeft.training.recipe import Recipe

OFTEN = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def only_ours(reader: Callable[..., Any], *given: Any) -> Any:
    """What the reader gives; None where it raises a `VpeftError`. Anything else fails the test."""
    try:
        return reader(*given)
    except vpeft.VpeftError:
        return None


READERS: dict[str, Callable[[Path], Any]] = {
    "a.safetensors": read,
    "c.safetensors": read_checkpoint,
    "w.safetensors": read_weights,
    "w.pth": read_weights,
    "w.npz": read_weights,
    "r.toml": Recipe.from_toml,
    "n.toml": read_anatomy,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound file for each reader."""
    import io

    import numpy as np

    from tests.hostile.mutations import saved

    folder = tmp_path_factory.mktemp("sound")
    write_checkpoint(folder / "c", Checkpoint({"model": {"w": torch.arange(8.0)}}, {"epoch": 3}))
    pth, npz = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.zeros(3)}, pth)
    np.savez(npz, w=np.zeros(3))
    return {
        "a.safetensors": saved(folder, "lora").read_bytes(),
        "c.safetensors": (folder / "c").read_bytes(),
        "w.safetensors": to_bytes({"w": torch.zeros(3)}),
        "w.pth": pth.getvalue(),
        "w.npz": npz.getvalue(),
        "r.toml": RECIPE.encode(),
        "n.toml": b'blocks = "layers"\nattn = "attn"\nimage_size = [32, 32]\n',
    }


@pytest.mark.parametrize("name", READERS)
@OFTEN
@given(data=st.binary(max_size=400))
def test_random_bytes(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    only_ours(READERS[name], tmp_path / name)


@pytest.mark.parametrize("name", READERS)
@OFTEN
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6)), min_size=1, max_size=4))
def test_changed_files(name: str, changes: list[tuple[float, bytes]], sound: dict[str, bytes], tmp_path: Path) -> None:
    data = bytearray(sound[name])
    for share, piece in changes:
        at = int(share * len(data))
        data[at : at + max(1, len(piece))] = piece
    (tmp_path / name).write_bytes(data)
    found = only_ours(READERS[name], tmp_path / name)
    if name[0] == "a" and bytes(data) != sound[name] and found is not None:
        raise AssertionError("a changed adapter file was accepted")


@OFTEN
@given(end=st.floats(0, 1, exclude_max=True))
def test_cut_files(end: float, sound: dict[str, bytes], tmp_path: Path) -> None:
    for name, reader in READERS.items():
        if name.endswith(".safetensors"):
            (tmp_path / name).write_bytes(sound[name][: int(end * len(sound[name]))])
            with pytest.raises(vpeft.VpeftError):
                reader(tmp_path / name)


@OFTEN
@given(manifest=PLAIN)
def test_any_manifest(manifest: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(to_bytes({"w": torch.zeros(2)}, metadata={KEY: json.dumps(manifest)}))
    assert only_ours(read, path) is None


@OFTEN
@given(changes=st.dictionaries(st.sampled_from(sorted(Manifest.model_fields)), PLAIN))
def test_any_value_in_a_sealed_manifest(changes: dict[str, Any], sound: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(sound["a.safetensors"])
    manifest, tensors = read(path)
    try:
        data = sealed_bytes({**manifest.model_dump(mode="json"), **changes}, tensors)
    except (vpeft.VpeftError, UnicodeEncodeError):
        return  # nothing that a file can hold
    path.write_bytes(data)
    only_ours(read, path)


@OFTEN
@given(table=PLAIN, size=st.integers(0, 64))
def test_any_table_of_tensors(table: Any, size: int) -> None:
    try:
        said = json.dumps(table).encode()
    except ValueError:
        return
    only_ours(parse_tensor_header, struct.pack("<Q", len(said)) + said + bytes(size), "It", vpeft.VpeftError)


@OFTEN
@given(value=PLAIN)
def test_json_is_read_as_the_standard_library_reads_it(value: Any) -> None:
    text = json.dumps(value)
    found = only_ours(parse_json, text, "It", vpeft.VpeftError)
    try:
        check_value(value)
    except ValueError:
        assert found is None
    else:
        assert json.dumps(found) == text


@OFTEN
@given(text=st.text(max_size=200) | st.text(alphabet='[]{}=.,"ab1#\n\\', max_size=200))
def test_any_text_as_json_toml_or_method(text: str) -> None:
    for reader in (parse_json, parse_toml):
        only_ours(reader, text, "It", vpeft.VpeftError)
    only_ours(parse, text)


@OFTEN
@given(text=st.text(alphabet=string.ascii_letters + '()[]{}=,+"._ 01-', max_size=60))
def test_any_method_in_a_recipe(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.replace('"lora"', json.dumps(f"lora({text})")))
    only_ours(Recipe.from_toml, tmp_path / "r.toml")


@OFTEN
@given(changes=st.dictionaries(st.sampled_from(sorted(Recipe.model_fields)), PLAIN))
def test_any_value_in_a_recipe(changes: dict[str, Any]) -> None:
    import tomllib

    only_ours(Recipe.from_mapping, {**tomllib.loads(RECIPE), **changes})


def test_one_flipped_bit_anywhere_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, Checkpoint({"model": {"w": torch.arange(8.0)}}, {"epoch": 3, "name": "a"}))
    whole, sound = path.read_bytes(), read_checkpoint(path)
    for at in range(len(whole)):
        for bit in (1, 32):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            found = only_ours(read_checkpoint, path)
            if found is not None:  # a space in the header's padding is no content
                assert found.facts == sound.facts and torch.equal(
                    found.tensors["model"]["w"], sound.tensors["model"]["w"]
                )
                assert list(found.tensors) == ["model"] and whole[at : at + 1] == b" "
