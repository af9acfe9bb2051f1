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


ISSUE = """
    adapter adaptformer sct bitfit u_tuning vpt_shallow vpt_deep prefix_tuning ssf lora noah fact_tt fact_tk
    repadapter hydra lst dtl dtl_plus hst gps last snf bapat ln_tune lorand e3va mona
    full_finetuning linear_probe partial_k mlp_head visual_prompting_pixel side_tuning
    vfpt synqt ssl ssb mpc attnscale dra petal patt vpetl_unified vptsp_g
"""


def test_every_method_of_the_survey_s_benchmark_and_around_it_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """V-PEFT Bench's 25 (FacT and DTL in both forms), the baselines, and the papers around the survey."""
    assert set(ISSUE.split()) <= names(capsys)
    assert len(ISSUE.split()) == 44


def test_explain_tells_what_the_page_tells(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "lst", "--backbone", "vit_base_patch16_224"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    stored = default_properties("lst")
    for part in ("g_i = sigmoid(a_i / T)", "2,376,492", "Recipe", "Traps", "OUTPUT of block", "c188fad", "71.70"):
        assert part in out, part
    assert f"relative to full fine-tuning {stored.memory:.3f}" in out
    assert main(["explain", "linear_probe", "--backbone", "pocket_vit", "--linear-probe.batch-norm", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["properties"]["memory"] < 0.05 and told["properties"]["backbone"] == "pocket_vit"
    assert told["recipe"] and told["traps"] and told["published"][0]["source"]
