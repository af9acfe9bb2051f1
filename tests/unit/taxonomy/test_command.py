"""`vpeft methods`: the filter `--where`, the query `--like`, and what NAME tells of one method's neighbours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vpeft.backbones.points import MissingPlace
from vpeft.cli import main
from vpeft.cli.method_answer import results_of
from vpeft.methods import all_methods
from vpeft.taxonomy import properties
from vpeft.taxonomy.properties import Properties, default_properties
from vpeft.taxonomy.results import stored_results

LEDGER = Path(__file__).resolve().parents[3] / "results" / "pocket"


def names(capsys: pytest.CaptureFixture[str], *arguments: str) -> set[str]:
    assert main(["methods", *arguments, "--json"]) == 0
    own = {name for name, kind in all_methods().items() if kind.__module__.startswith("vpeft.")}
    return own & {one["name"] for one in json.loads(capsys.readouterr().out)}  # other tests register methods too


def test_the_filter_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    every = names(capsys)
    merging, others = (names(capsys, "--where", text) for text in ("mergeable", "not mergeable"))
    assert {"lora", "bitfit"} <= merging and {"adaptformer", "vpt_deep"} <= others
    on_towers = {"coop", "cocoop", "maple"}  # their properties are those of no single backbone
    assert merging | others == every - on_towers and not merging & others
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


WISH = "merges, no latency, under 0.5 % parameters, good on structured"


def test_a_query_chooses_and_says_how_it_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--like", WISH, "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found, "no method fits the query that the documents show"
    results = stored_results()
    for name, one in found.items():
        assert one["mergeable"] and not one["latency"] and one["share"] < 0.005
        standing = results.standing(name, "structured")
        assert standing is not None and standing.rank <= -(-standing.among // 3)
        assert one["standings"]["structured"]["rank"] == standing.rank
    assert main(["methods", "--like", WISH]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert 'Read as --where "mergeable and not latency and share < 0.005".' in out
    assert "upper third" in out and "were not measured there:" in out and all(name in out for name in found)


def test_a_query_joins_the_filter_and_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert names(capsys, "--like", "merges", "--where", "family == 'adapter'") >= {"repadapter"}
    assert names(capsys, "--like", "merges", "--where", "family == 'adapter'") <= names(capsys, "--where", "mergeable")
    assert names(capsys, "lora", "--like", "merges") == {"lora"} and not names(capsys, "lora", "--like", "tokens")


def test_where_nothing_fits_the_nearest_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--like", "merges, tokens"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "0 of " in out and "These miss one wish:" in out and "(tokens)" in out


def test_an_unknown_wish_is_a_sentence_with_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--like", "merges, fast"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "does not know 'fast'" in said and "latency" in said and "structured" in said


def test_results_of_a_ledger_take_the_place_of_the_stored_ones(capsys: pytest.CaptureFixture[str]) -> None:
    stored, found = stored_results(), results_of(LEDGER)
    ours = {table.protocol: table for table in stored.tables}
    theirs = {table.protocol: table for table in found.tables if table.protocol in ours}
    assert set(theirs) == set(ours) and set(found.names) == set(stored.names)
    for protocol, table in theirs.items():
        assert table.tasks == ours[protocol].tasks and table.scores.keys() == ours[protocol].scores.keys()
        for method, scores in table.scores.items():
            assert scores == pytest.approx(ours[protocol].scores[method], abs=1e-4)
    assert main(["methods", "--like", "good on structured", "--ledger", str(LEDGER)]) == 0
    assert str(LEDGER) in capsys.readouterr().out.replace("\n", "")
    assert main(["methods", "--like", "merges", "--ledger", "nowhere"]) == 1
    assert "There is no ledger" in capsys.readouterr().err


def test_one_method_is_shown_with_its_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "vera"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for part in ("Vector-based Random Matrix", "Builds on: lora", "Built on it: randlora", "vera: LoRA whose two"):
        assert part in out, part
    assert main(["methods", "lora", "--json"]) == 0
    (lora,) = json.loads(capsys.readouterr().out)
    assert lora["title"].startswith("LoRA:") and lora["builds_on"] == [] and "dora" in lora["built_on_it"]
    assert lora["near"] and all(one["likeness"] >= 0.6 and one["difference"] for one in lora["near"])


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
