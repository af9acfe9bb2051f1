"""The design's rules that no linter knows: who may name whom, how long a file may be, one word for a name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vpeft.backbones.describe import families
from vpeft.methods import all_methods

SOURCE = Path(__file__).parents[2] / "src" / "vpeft"
NAMELESS = ("injection", "training", "acceleration", "backbones", "layers")


def _code(path: Path) -> str:
    """A file without its comments and docstrings: prose may name a paper."""
    text = re.sub(r'"""[\s\S]*?"""', "", path.read_text())
    return re.sub(r"#.*", "", text)


@pytest.mark.parametrize("folder", NAMELESS)
def test_no_method_is_named_outside_its_file(folder: str) -> None:
    words = set(all_methods()) | {kind.__name__ for kind in all_methods().values()}
    words -= {"Adapter", "adapter", "last"}  # also the word for every attached thing, and a word
    pattern = re.compile(rf"\b({'|'.join(sorted(words))})\b")
    found = {
        f"{path.relative_to(SOURCE)}: {match.group()}"
        for path in (SOURCE / folder).rglob("*.py")
        for match in pattern.finditer(_code(path))
    }
    assert not found, sorted(found)


def test_no_backbone_is_named_in_a_method_or_in_injection() -> None:
    words = [*families(), "VisionTransformer", "SwinTransformer", "ConvNeXt", "timm", "transformers", "torchvision"]
    pattern = re.compile(rf"\b({'|'.join(words)})\b")
    found = {
        f"{path.relative_to(SOURCE)}: {match.group()}"
        for folder in ("methods", "injection")
        for path in (SOURCE / folder).rglob("*.py")
        for match in pattern.finditer(_code(path))
    }
    assert not found, sorted(found)


def test_a_method_is_one_short_file_of_its_own_name() -> None:
    for name, kind in all_methods().items():
        assert kind.__module__ == f"vpeft.methods.{name}", f"{name} lives in {kind.__module__}"
        assert kind.__doc__, name
        assert kind.family, name
        lacking = [key for key, field in kind.model_fields.items() if not field.description]
        assert not lacking, f"{name}: hyper-parameters without a sentence: {lacking}"


def test_no_file_is_a_drawer() -> None:
    for path in SOURCE.rglob("*.py"):
        assert not re.search(r"utils|helpers|common|manager|^base_", path.stem), path
