"""The pages of the methods: complete, linked, and their tool notices what is stale."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("tools_method_pages", ROOT / "tools" / "method_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> dict[str, type]:
    """Let the package have these methods alone."""
    from vpeft.methods import all_methods

    here: dict[str, type] = {name: all_methods()[name] for name in names}
    monkeypatch.setattr("vpeft.methods.all_methods", lambda: here)
    monkeypatch.setattr("vpeft.taxonomy.properties.all_methods", lambda: here)
    return here


def test_every_method_has_a_page_and_a_picture_and_links_lead_to_pages(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "lora", "dora", "bitfit")
    files = tool.site_pages()
    methods = {f"methods/{name}{suffix}" for name in ("lora", "dora", "bitfit") for suffix in (".md", ".svg")}
    assert set(files) == methods | {"methods/published.md"}
    lora = files["methods/lora.md"]
    assert "![Where lora acts](lora.svg)" in lora and "[dora](dora.md)" in lora and "(../methods.md)" in lora
    assert "| `rank` | `int` | `8` | R |" in lora and "294,912" in lora
    assert files["methods/lora.svg"].startswith("<svg") and "attn.q" in files["methods/lora.svg"]


def test_a_method_of_which_nothing_is_stored_is_measured(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "bitfit")
    monkeypatch.setattr("vpeft.taxonomy.properties.stored", dict)
    monkeypatch.setattr("vpeft.taxonomy.properties.relative_memory", lambda tuned, backbone: 0.789)
    page = tool.site_pages()["methods/bitfit.md"]
    assert "relative to full fine-tuning | 0.789" in page and "102,912" in page


def test_the_index_lists_every_method_with_a_link_to_its_section(tool: ModuleType) -> None:
    linked = set(re.findall(r"\[(\w+)\]\(#(\w+)\)", tool.index()))
    assert linked == {(name, name) for name in tool.own_methods()}


def test_check_finds_changed_and_missing_files_and_writes_nothing(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = {tmp_path / "same.json": "same", tmp_path / "changed.json": "new", tmp_path / "missing.json": "new"}
    monkeypatch.setattr(tool, "made", lambda measure, keep_memory: fresh)
    for name, text in (("same", "same"), ("changed", "old")):
        (tmp_path / f"{name}.json").write_text(text)
    assert tool.run(["--check"]) == 2
    said = capsys.readouterr().out
    assert all(f"stale: {name}.json" in said for name in ("changed", "missing")) and "same" not in said
    assert (tmp_path / "changed.json").read_text() == "old" and not (tmp_path / "missing.json").exists()
    assert tool.run([]) == 0
    assert all(path.read_text() == text for path, text in fresh.items())
    assert tool.run(["--check"]) == 0


def test_only_writing_measures_what_has_changed(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from vpeft.taxonomy import properties

    kept = {name: dict(properties.stored()[name]) for name in ("bitfit", "ln_tune")}
    kept["ln_tune"] |= {"memory": 0.123}
    kept["bitfit"] |= {"memory": 0.456, "parameters": 1}
    monkeypatch.setattr(properties, "stored", lambda: kept)
    only(monkeypatch, *kept)
    monkeypatch.setattr(properties, "relative_memory", lambda tuned, backbone: 0.789)

    def memory(*, keep: bool, measure: bool = False) -> dict[str, float]:
        stored = json.loads(tool.made(measure=measure, keep_memory=keep)[properties.STORED])
        return {name: stored[name]["memory"] for name in kept}

    assert memory(keep=True) == {"ln_tune": 0.123, "bitfit": 0.456}
    assert memory(keep=False) == {"ln_tune": 0.123, "bitfit": 0.789}
    assert memory(keep=False, measure=True) == {"ln_tune": 0.789, "bitfit": 0.789}


def test_a_method_that_runs_nowhere_has_a_page_without_figures(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vpeft.backbones.points import MissingPlace
    from vpeft.taxonomy import properties

    here = only(monkeypatch, "bitfit", "lora")
    real = properties.on_meta

    def refusing(method: object) -> object:
        if isinstance(method, here["lora"]):
            raise MissingPlace("It wants a text tower.")
        return real(method)  # type: ignore[arg-type]

    monkeypatch.setattr(properties, "on_meta", refusing)
    files = tool.site_pages()
    assert "It wants a text tower." in files["methods/lora.md"] and "`rank`" in files["methods/lora.md"]
    assert "methods/lora.svg" not in files and "methods/bitfit.svg" in files
    stored = tool.made(measure=False, keep_memory=True)[properties.STORED]
    assert '"lora"' not in stored and '"bitfit"' in stored
    monkeypatch.setattr(properties, "stored", lambda: json.loads(stored))
    assert tool.index().partition("## Without figures")[2].partition("##")[0].count("](#lora)") == 1


def test_a_page_has_the_literature_and_says_what_is_not_measured(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora, attnscale = ("\n".join(tool._literature(name)) for name in ("lora", "attnscale"))
    assert "mean of 19 72.25" in lora and "c188fad" in lora and "redraws both factors" in lora
    assert "None that could be read" in attnscale and "No code was published" in attnscale
    results = tmp_path / "results.json"
    monkeypatch.setattr(tool, "POCKET", results)
    assert tool._pocket("lora") == ["## On pocket", "Not measured yet."]
    measured = {
        "full@1": {"count": {"mean": 0.8125, "std": 0.01, "seeds": 3}},
        "smoke@1": {"count": {"mean": 0.7, "std": None, "seeds": 1}},
    }
    results.write_text(json.dumps({"source": "S", "methods": {"lora": measured}}))
    assert "| full@1 | count | 81.2 % ± 1.0 | 3 |" in tool._pocket("lora")[-1]
    assert "| smoke@1 | count | 70.0 % | 1 |" in tool._pocket("lora")[-1]
    assert tool._pocket("ssf") == ["## On pocket", "Not measured yet."]


def test_the_filters_of_the_index_are_what_the_command_line_takes(tool: ModuleType) -> None:
    from vpeft.taxonomy.properties import default_properties

    found = [default_properties(name) for name in ("lora", "lst", "vpt_deep")]
    table = tool._by_property(found)
    lines = {line.split("|")[2].split('"')[1]: line for line in table.splitlines() if "--where" in line}
    assert "lora" in lines["mergeable"] and "lst" not in lines["mergeable"]
    assert "lst" in lines["reach == 'none'"] and "vpt_deep" in lines["'insert_tokens' in verbs"]
