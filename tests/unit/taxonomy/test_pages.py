"""The pages of the methods: complete, linked, and their tool notices what is stale."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = ROOT / "docs" / "methods"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("tools_method_pages", ROOT / "tools" / "method_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PAGES", tmp_path / "pages")
    return module


def test_links_lead_somewhere() -> None:
    pages = sorted(PAGES.glob("*.md"))
    assert pages
    for page in pages:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_index_lists_every_page() -> None:
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    for page in PAGES.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index


def test_check_finds_changed_missing_and_left_over_files_and_writes_nothing(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = tmp_path / "pages"
    fresh = {pages / "same.md": "same", pages / "changed.md": "new", pages / "missing.md": "new"}
    monkeypatch.setattr(tool, "made", lambda measure, keep_memory: fresh)
    pages.mkdir()
    for name, text in (("same", "same"), ("changed", "old"), ("left", "x")):
        (pages / f"{name}.md").write_text(text)
    assert tool.run(["--check"]) == 3
    said = capsys.readouterr().out
    assert all(f"stale: pages/{name}.md" in said for name in ("changed", "missing", "left")) and "same.md" not in said
    assert (pages / "changed.md").read_text() == "old" and not (pages / "missing.md").exists()
    assert tool.run([]) == 0
    assert sorted(path.name for path in pages.iterdir()) == ["changed.md", "missing.md", "same.md"]
    assert (pages / "changed.md").read_text() == "new"
    assert tool.run(["--check"]) == 0


def test_only_writing_measures_what_has_changed(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from vpeft.methods import all_methods
    from vpeft.taxonomy import properties

    kept = {name: dict(properties.stored()[name]) for name in ("bitfit", "ln_tune")}
    kept["ln_tune"] |= {"memory": 0.123}
    kept["bitfit"] |= {"memory": 0.456, "parameters": 1}
    monkeypatch.setattr(properties, "stored", lambda: kept)
    here = {name: all_methods()[name] for name in kept}
    monkeypatch.setattr("vpeft.methods.all_methods", lambda: here)
    monkeypatch.setattr(properties, "relative_memory", lambda tuned, backbone: 0.789)

    def memory(*, keep: bool, measure: bool = False) -> dict[str, str]:
        files = tool.made(measure=measure, keep_memory=keep)
        pages = {name: files[tool.PAGES / f"{name}.md"] for name in kept}
        return {name: re.findall(r"full fine-tuning \| ([0-9.]+)", text)[0] for name, text in pages.items()}

    assert memory(keep=True) == {"ln_tune": "0.123", "bitfit": "0.456"}
    assert memory(keep=False) == {"ln_tune": "0.123", "bitfit": "0.789"}
    assert memory(keep=False, measure=True) == {"ln_tune": "0.789", "bitfit": "0.789"}


def test_a_method_that_runs_nowhere_has_a_page_without_figures(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vpeft.backbones.points import MissingPlace
    from vpeft.methods import all_methods
    from vpeft.taxonomy import properties

    here = {name: all_methods()[name] for name in ("bitfit", "lora")}
    real = properties.on_meta

    def refusing(method: object) -> object:
        if isinstance(method, here["lora"]):
            raise MissingPlace("It wants a text tower.")
        return real(method)  # type: ignore[arg-type]

    monkeypatch.setattr("vpeft.methods.all_methods", lambda: here)
    monkeypatch.setattr(properties, "on_meta", refusing)
    files = tool.made(measure=False, keep_memory=True)
    assert "It wants a text tower." in files[tool.PAGES / "lora.md"] and "`rank`" in files[tool.PAGES / "lora.md"]
    assert tool.PAGES / "lora.svg" not in files and tool.PAGES / "bitfit.svg" in files
    assert "## Without figures" in files[tool.PAGES / "README.md"]
    assert '"lora"' not in files[properties.STORED] and '"bitfit"' in files[properties.STORED]


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
