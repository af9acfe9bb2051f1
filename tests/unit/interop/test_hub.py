"""The real client of the Hub pushes and pulls adapters, against a small Hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import vpeft
from tests.unit.interop.adapters import adapted, backbone, images
from tests.unit.interop.hub_stand_in import Hub, running
from vpeft.injection.adapter_file import BadAdapterFile
from vpeft.interop.hub import HubError, adapter_path, pull, push
from vpeft.interop.model_card import model_card
from vpeft.methods import LoRA

pytest.importorskip("huggingface_hub")


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, str]]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with running() as (hub, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield hub, address


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return adapted("timm_vit", LoRA(rank=2)).save(
        tmp_path / "a.safetensors", labels=["a|b", "c", "d", "e", "f"], scores={"val_top1": 0.75}
    )


def test_there_and_back(there: tuple[Hub, str], file: Path, tmp_path: Path) -> None:
    hub, address = there
    push(file, "someone/leaves", endpoint=address, token="hf_secret")
    assert hub.tokens and set(hub.tokens) == {"Bearer hf_secret"} and not hub.private
    held = hub.repositories["someone/leaves"][-1]
    assert set(held) == {"adapter.safetensors", "README.md"} and held["adapter.safetensors"] == file.read_bytes()
    found = pull("hf:someone/leaves", endpoint=address)
    assert found.read_bytes() == file.read_bytes()
    x = images(backbone("timm_vit"))
    a, b = (vpeft.load(backbone("timm_vit"), path).eval() for path in (found, file))
    assert torch.equal(a(x), b(x))


def test_a_second_push_is_a_commit_and_revisions_are_kept(there: tuple[Hub, str], file: Path, tmp_path: Path) -> None:
    hub, address = there
    push(file, "someone/leaves", endpoint=address, private=True)
    first = hub.commit_id("someone/leaves")
    other = adapted("timm_vit", LoRA(rank=3)).save(tmp_path / "b.safetensors")
    push(other, "someone/leaves", endpoint=address)
    assert hub.private == {"someone/leaves"} and len(hub.repositories["someone/leaves"]) == 2
    assert pull("someone/leaves", endpoint=address).read_bytes() == other.read_bytes()
    assert pull(f"someone/leaves@{first}", endpoint=address).read_bytes() == file.read_bytes()


def test_a_path_or_a_repository(there: tuple[Hub, str], file: Path) -> None:
    _, address = there
    push(file, "someone/leaves", endpoint=address)
    assert adapter_path(file) == file and adapter_path(Path("hf:someone/leaves")).read_bytes() == file.read_bytes()


def test_refusals(there: tuple[Hub, str], file: Path) -> None:
    hub, address = there
    with pytest.raises(HubError, match="Write it as USER/NAME"):
        push(file, "leaves", endpoint=address)
    with pytest.raises(HubError, match=r"someone/none gives no adapter\.safetensors"):
        pull("hf:someone/none", endpoint=address)
    hub.repositories["someone/model"] = [{"model.safetensors": b"x"}]
    with pytest.raises(HubError, match=r"gives no adapter\.safetensors"):
        pull("someone/model", endpoint=address)
    hub.repositories["someone/model"].append({"adapter.safetensors": b"x" * 40})
    with pytest.raises(BadAdapterFile):
        pull("someone/model", endpoint=address)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadAdapterFile):
        push(file, "someone/leaves", endpoint=address)
    assert "someone/leaves" not in hub.repositories


def test_the_card_says_what_the_manifest_says(file: Path) -> None:
    card = model_card(vpeft.read_manifest(file), "someone/leaves")
    _, head, body = card.split("---\n", 2)
    stated = yaml.safe_load(head)
    assert stated["library_name"] == "vpeft" and stated["tags"] == ["vpeft", "lora"]
    assert stated["pipeline_tag"] == "image-classification"
    for said in ("| val_top1 | 0.75 |", "| rank | 2 |", r"a\|b, c, d, e, f", "hf:someone/leaves"):
        assert said in body, said
