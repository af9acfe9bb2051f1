"""The folder is the truth: names, files that change, and both forms of an adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from tests.unit.serving.fleet import made
from vpeft.data.preprocessing import Preprocessing
from vpeft.methods import get
from vpeft.serving.catalogue import Catalogue, UnknownAdapter


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made(tmp_path_factory.mktemp("one"), "lora", get("lora")(rank=2)).read_bytes()


def test_only_usable_names_are_adapters(tmp_path: Path, file: bytes) -> None:
    for name in ("good.safetensors", "a b.safetensors", ".hidden.safetensors", "notes.txt", "x" * 101 + ".safetensors"):
        (tmp_path / name).write_bytes(file)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "adapter.safetensors").write_bytes(file)
    (tmp_path / "empty").mkdir()
    catalogue = Catalogue(tmp_path, Preprocessing())
    assert catalogue.names() == ["good", "run"]
    assert catalogue.card("run").facts["methods"] == ["lora"]
    for name in ("a b", "..", "../good", "good.safetensors", "", "\0", "empty"):
        with pytest.raises(UnknownAdapter):
            catalogue.stamp(name)


def test_both_forms_of_one_name_are_one_adapter(tmp_path: Path, file: bytes) -> None:
    (tmp_path / "a").mkdir()
    inside, flat = tmp_path / "a" / "adapter.safetensors", tmp_path / "a.safetensors"
    catalogue = Catalogue(tmp_path, Preprocessing())
    inside.write_bytes(file)
    catalogue.keep("a", file)
    assert inside.is_file() and not flat.exists()
    flat.write_bytes(file)
    assert catalogue.names() == ["a"] and catalogue.stamp("a").path == flat
    catalogue.remove("a")
    assert not catalogue.has("a") and not inside.exists() and not flat.exists()


def test_a_card_is_of_one_state_of_the_file(tmp_path: Path, file: bytes) -> None:
    catalogue = Catalogue(tmp_path, Preprocessing())
    catalogue.keep("a", file)
    first = catalogue.card("a")
    assert catalogue.card("a") is first
    catalogue.keep("a", file)
    assert catalogue.card("a") is not first and catalogue.card("a").stamp != first.stamp
