"""The docs: generated parts are fresh, every snippet is a file, every example runs."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").iterdir())
# Needs a network, makes an environment, or is for several machines: run by hand, by `make demo` and by `make test`
# instead; the cluster's commands by tests/unit/bench/test_ray_executor.py.
NOT_RUN = {"install.sh", "cluster.sh"}


def _docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tools_docs", ROOT / "tools" / "docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_stale_part_is_made_anew_and_hand_written_text_is_kept() -> None:
    docs = _docs()
    text = "before\n<!-- generated: file examples/first_adapter.py save -->\nold\n<!-- end -->\nafter\n"
    fresh = docs.rendered(text)
    assert fresh.startswith("before\n<!-- generated: file examples/first_adapter.py save -->\n```python\ntuned.save(")
    assert fresh.endswith("```\n<!-- end -->\nafter\n")
    assert docs.rendered(fresh) == fresh


@pytest.mark.parametrize("what", ["nonsense", "file examples/first_adapter.py nonsense"])
def test_a_part_that_cannot_be_made_is_named(what: str) -> None:
    with pytest.raises(SystemExit, match="nonsense"):
        _docs().rendered(f"<!-- generated: {what} -->\n<!-- end -->")


def test_code_on_the_pages_comes_from_files() -> None:
    docs = _docs()
    for page in docs.pages():
        text = page.read_text(encoding="utf-8")
        outside = re.sub(r"<!-- generated: .+? -->.*?<!-- end -->", "", text, flags=re.DOTALL)
        assert not re.search(r"^```(python|bash|sh|toml)", outside, re.MULTILINE), f"{page.name} has code of its own"


def test_pages_link_to_what_exists() -> None:
    for page in _docs().pages():
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@cache
def _anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as repository browsers make them."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_to_a_place_on_a_page_find_a_heading_there() -> None:
    assert _anchors("# A page: `one_two`, and\n```\n# no heading\n```\n") == {"a-page-one_two-and"}
    seen = 0
    for page in _docs().pages():
        text = page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*\.md|)#([^)]+)\)", text):
            there = text if not target else (page.parent / target).read_text(encoding="utf-8")
            assert anchor in _anchors(there), f"{page.name} links to {target}#{anchor}"
            seen += 1
    assert seen > 100  # of the methods alone


def test_every_example_is_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in _docs().pages())
    for example in EXAMPLES:
        assert f"examples/{example.name}" in text, f"{example.name} is shown nowhere"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to run in, with the files that examples read, and the registry of methods as it was after."""
    from vpeft import method as registry
    from vpeft.method import all_methods

    for name in ("recipe.toml", "own_model.py", "own_model.toml"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    known = dict(all_methods())
    yield tmp_path
    registry._METHODS.clear()
    registry._METHODS.update(known)


@pytest.mark.slow
@pytest.mark.parametrize("example", [p for p in EXAMPLES if p.suffix == ".py"], ids=lambda p: p.name)
def test_python_example_runs(example: Path, elsewhere: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runpy.run_path(str(example), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize(
    "example", [p for p in EXAMPLES if p.suffix == ".sh" and p.name not in NOT_RUN], ids=lambda p: p.name
)
def test_shell_example_runs(example: Path, elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    shims = tmp_path_factory.mktemp("bin")
    shim = shims / "vpeft"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vpeft.cli "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    launcher = shims / "torchrun"
    launcher.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run --standalone "$@"\n', encoding="utf-8"
    )
    launcher.chmod(0o755)
    python = shims / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    path = {"PATH": f"{shims}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        ["bash", str(example)], env={**os.environ, **path}, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
