"""`vpeft serve` says what is missing before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from vpeft.cli import main
from vpeft.cli.failure import MISTAKE


def test_a_folder_that_does_not_exist_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path / "nothere"), "--backbone", "pocket_vit"]) == MISTAKE
    assert "There is no folder" in capsys.readouterr().err


def test_an_empty_folder_needs_the_name_of_a_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path)]) == MISTAKE
    assert "--backbone NAME" in capsys.readouterr().err
