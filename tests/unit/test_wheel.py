"""What is installed: the wheel has every file of the package, and what is said of the project is sound."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.installed import ROOT, build, project

pytest.importorskip("hatchling", reason="the extra dev is not installed")


def tracked(folder: str) -> set[str]:
    """The files that git has under a folder and that are there."""
    done = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("this is no clone: git does not say which files belong to it")
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel")))


def test_the_wheel_has_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    inside, ours = set(wheel.namelist()), {name.removeprefix("src/") for name in tracked("src/vpeft")}
    assert not ours - inside
    kinds = {Path(name).suffix for name in ours}
    assert {".py", ".toml", ".json", ".csv", ".html", ".css", ".js", ".safetensors"} <= kinds
    assert "vpeft/py.typed" in inside


def test_the_wheel_has_nothing_else_but_what_is_said_of_it(wheel: zipfile.ZipFile) -> None:
    outside = [name for name in wheel.namelist() if not name.startswith("vpeft/")]
    assert all(re.match(r"vpeft-[\w.]+\.dist-info/", name) for name in outside)
    assert any(name.endswith("/licenses/LICENSE") for name in outside)
    assert not [name for name in wheel.namelist() if "__pycache__" in name or name.endswith(".pyc")]


def test_the_archive_of_the_sources_has_what_the_tests_and_the_docs_need(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("src/vpeft", "tests", "docs", "examples", "tools", "requirements"):
        assert not tracked(folder) - inside, folder
    assert {"pyproject.toml", "Makefile", "mkdocs.yml", "CITATION.cff", "README.md", "LICENSE"} <= inside


def test_the_citation_is_of_this_version_and_licence() -> None:
    """Its form was checked with cffconvert; these are the members that CFF 1.2.0 requires, and those that change."""
    from vpeft import __version__

    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found["cff-version"] == "1.2.0" and found["type"] == "software"
    assert found["title"] == "vpeft" and found["message"] and found["authors"]
    assert (found["version"], found["license"]) == (__version__, project()["license"])


def test_the_project_names_no_address_that_is_not_there() -> None:
    """The project has no home on the web yet; an address that does not answer is worse than none."""
    assert "urls" not in project()
