"""`vpeft methods --where`: the filter on the command line."""

from __future__ import annotations

import json

import pytest

from vpeft.backbones.points import MissingPlace
from vpeft.cli import main
from vpeft.methods import all_methods
from vpeft.taxonomy import properties
from vpeft.taxonomy.properties import Properties, default_properties


def names(capsys: pytest.CaptureFixture[str], *arguments: str) -> set[str]:
    assert main(["methods", *arguments, "--json"]) == 0
    own = {name for name, kind in all_methods().items() if kind.__module__.startswith("vpeft.")}
    return own & {one["name"] for one in json.loads(capsys.readouterr().out)}  # other tests register methods too


def test_the_filter_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    every = names(capsys)
    merging, others = (names(capsys, "--where", text) for text in ("mergeable", "not mergeable"))
    assert {"lora", "bitfit"} <= merging and {"adaptformer", "vpt_deep"} <= others
    assert merging | others == every and not merging & others
    assert names(capsys, "--where", "family == 'side' and memory < 0.5 and reach == 'none'") >= {"lst", "last"}
    assert names(capsys, "lora", "--where", "not mergeable") == set()


def test_the_table_says_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--where", "name == 'lora'"]) == 0
    out = capsys.readouterr().out
    assert "294,912" in out and "1 of " in out
    assert main(["methods", "--where", "memory < 0"]) == 0
    assert "0 of " in capsys.readouterr().out


def test_a_mistake_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--where", "memoryy < 1"]) == 1
    assert "Did you mean 'memory'" in capsys.readouterr().err


def test_a_method_that_runs_nowhere_here_is_listed_and_never_chosen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def partly(name: str) -> Properties:
        if name == "lora":
            raise MissingPlace("no place for it")
        return default_properties(name)

    monkeypatch.setattr(properties, "default_properties", partly)
    assert main(["methods", "--json"]) == 0
    assert {one["name"]: one["properties"] for one in json.loads(capsys.readouterr().out)}["lora"] is None
    chosen = names(capsys, "--where", "mergeable or not mergeable")
    assert "lora" not in chosen and "adaptformer" in chosen
