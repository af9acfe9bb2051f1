"""The documentation site: its links, its navigation, its reference, and the check of what was built."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site() -> ModuleType:
    return _tool("docs_site")


PLACES = {
    "README.md": "index.md",
    "docs/README.md": "pages.md",
    "docs/methods.md": "methods.md",
    "docs/counts.md": "counts.md",
    "docs/images/a.png": "images/a.png",
    "examples/a.py": "source/examples/a.py",
}


@pytest.mark.parametrize(
    ("page", "before", "after"),
    [
        ("README.md", "[a](docs/counts.md#b) ![p](docs/images/a.png)", "[a](counts.md#b) ![p](images/a.png)"),
        ("docs/counts.md", "[all](README.md), [home](../README.md)", "[all](pages.md), [home](index.md)"),
        ("docs/counts.md", "[lora](methods.md#lora)", "[lora](methods/lora.md)"),
        ("docs/counts.md", "[how](methods.md#asking)", "[how](methods.md#asking)"),
        ("docs/methods.md", "[`lora`](#lora) [how](#asking)", "[`lora`](methods/lora.md) [how](#asking)"),
        ("docs/counts.md", "[a file](../examples/a.py)", "[a file](source/examples/a.py)"),
        ("examples/a.py", "[pages](../docs/README.md)", "[pages](../../pages.md)"),
        ("docs/counts.md", "all [examples](../examples)", "all examples"),
        ("docs/counts.md", "[gone](nowhere.md)", "[gone](nowhere.md)"),
        ("docs/counts.md", "[out](https://arxiv.org/abs/1) [here](#x)", "[out](https://arxiv.org/abs/1) [here](#x)"),
        ("docs/counts.md", "```\n[a](README.md)\n```\n[a](README.md)", "```\n[a](README.md)\n```\n[a](pages.md)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(site: ModuleType, page: str, before: str, after: str) -> None:
    assert site.with_links_of_the_site(before, page, PLACES, ["lora"]) == after


def test_a_file_that_a_page_links_to_is_copied_with_what_it_links_to(
    site: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "ROOT", tmp_path)
    for path, text in {
        "docs/a.md": "[b](../more/b.md) [folder](../more) [known](known.md)",
        "docs/known.md": "",
        "more/b.md": "[c](c.py)",
        "more/c.py": "",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    copied = site.copied(["docs/a.md"], ["docs/a.md", "docs/known.md"])
    assert copied == {"more/b.md": "source/more/b.md", "more/c.py": "source/more/c.py"}


def test_a_page_that_no_section_names_is_in_the_last_one(site: ModuleType) -> None:
    pages = ["index.md", "methods.md", "brand_new.md", "changelog.md"]
    made = {
        name: listed
        for part in site.navigation(pages, ["lora"], ["reference/index.md"])
        for name, listed in part.items()
    }
    assert made["More"] == ["changelog.md", "brand_new.md"]
    assert made["Methods"] == ["methods.md", "methods/published.md", "methods/lora.md"]
    assert made["Reference"] == ["reference/index.md"] and made["vpeft"] == "index.md"
    assert "Tasks" not in made  # none of its pages is there


def test_every_page_of_the_repository_is_in_the_navigation_once(site: ModuleType) -> None:
    pages = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"]
    listed = [name for part in site.navigation(pages, [], []) for names in part.values() for name in names]
    assert sorted(name for name in listed if name in pages) == sorted(pages)


def test_the_reference_has_every_public_name(site: ModuleType) -> None:
    import vpeft

    listed = {name.rpartition(".")[2] for names in site.public_names().values() for name in names}
    # Modules whose members have pages of their own, and the version.
    others = {"layers", "methods", "suites", "tasks", "__version__"}
    assert set(vpeft.__all__) - others <= listed
    assert {"SemanticSegmentation", "make_learner", "pareto_front"} <= listed
    pages = site.reference_pages()
    assert "::: vpeft.injection.tune.tune" in pages["reference/injection.md"]
    assert "[`tune`](injection.md#vpeft.injection.tune.tune)" in pages["reference/index.md"]


def test_settings_stand_on_the_pages_of_the_methods_alone(site: ModuleType) -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    short = site.without_settings(text)
    assert "### lora" in text and "### lora" not in short and "## By their properties" in short


def _built(folder: Path, **pages: str) -> Path:
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text)
    return folder


def test_the_check_of_a_built_site_finds_dead_links_and_what_comes_from_elsewhere(tmp_path: Path) -> None:
    faults = _tool("site_check").faults
    sound = '<a href="b.html#there">b</a> <a href="https://arxiv.org">paper</a> <img src="p.png"> <a href="#x" id="x">'
    (tmp_path / "p.png").write_bytes(b"")
    site = _built(tmp_path, a=sound, b='<h2 id="there">b</h2>')
    assert faults(site) == []
    _built(
        tmp_path,
        a='<a href="c.html"> <a href="b.html#gone"> <a href="../outside.html"> <img src="//cdn.example/p.png">'
        '<script src="https://cdn.example/s.js"></script> <link rel="stylesheet" href="https://fonts.example/f">',
    )
    (tmp_path / "s.css").write_text("@font-face{src:url(https://fonts.example/f.woff2)}")
    assert [fault.partition(", ")[0] for fault in faults(site)] == [
        "a.html loads //cdn.example/p.png",
        "a.html loads https://cdn.example/s.js",
        "a.html loads https://fonts.example/f",
        "a.html links to c.html",
        "a.html links to b.html#gone",
        "a.html links to ../outside.html",
        "s.css loads https://fonts.example/f.woff2",
    ]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_needs_no_other_host(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    mkdocs = shutil.which("mkdocs", path=str(Path(sys.executable).parent)) or "mkdocs"
    out = tmp_path / "site"
    done = subprocess.run(
        [mkdocs, "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert _tool("site_check").faults(out) == []
    from vpeft.methods import names

    assert all((out / "methods" / f"{name}.html").is_file() for name in names())
    assert (out / "search" / "search_index.js").stat().st_size > 100_000
