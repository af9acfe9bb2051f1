"""The lock file of CI agrees with pyproject.toml, and what was not audited is not called clean."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def locked(path: Path) -> dict[str, tuple[list[str], int]]:
    """Of each package the versions that a lock file pins, and how many hashes it has for them."""
    found: dict[str, tuple[list[str], int]] = {}
    for entry in re.split(r"\n(?=\S)", path.read_text()):
        match = re.match(r"([\w.-]+)(?:\[[\w,]+\])?==([\w.+!-]+)", entry)
        if match:
            versions, hashes = found.get(canonicalize_name(match[1]), ([], 0))
            found[canonicalize_name(match[1])] = [*versions, match[2]], hashes + entry.count("--hash=sha256:")
    return found


def wanted() -> list[Requirement]:
    """What `pip install -e .[dev]` asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras, todo, found = project["optional-dependencies"], [*project["dependencies"], "vpeft[dev]"], []
    while todo:
        one = Requirement(todo.pop())
        if one.name == project["name"]:
            todo += [line for extra in one.extras for line in extras[extra]]
        else:
            found.append(one)
    return found


def test_the_lock_file_has_every_package_in_a_version_that_fits_and_with_hashes() -> None:
    pins = locked(ROOT / "requirements" / "ci.txt")
    assert len(pins) > 80
    for one in wanted():
        versions, _ = pins.get(canonicalize_name(one.name), ([], 0))
        fits = any(one.specifier.contains(version, prereleases=True) for version in versions)
        assert fits, f"{one} is not in requirements/ci.txt (it pins {versions}): run `make lock`"
    assert all(hashes > 0 for _, hashes in pins.values())


def test_the_tools_are_locked_too() -> None:
    pins = locked(ROOT / "requirements" / "tools.txt")
    lines = (ROOT / "requirements" / "tools.in").read_text().splitlines()
    asked = [Requirement(line) for line in lines if not line.startswith("#")]
    assert len(asked) == 7
    for one in asked:
        assert any(one.specifier.contains(version) for version in pins[canonicalize_name(one.name)][0])
    assert all(hashes > 0 for _, hashes in pins.values())


@pytest.mark.parametrize("name", ["ci.txt", "tools.txt"])
def test_no_registry_stands_in_a_lock_file(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    assert "://" not in text and "index-url" not in text and "/tmp" not in text


@pytest.fixture(scope="module")
def audit() -> Any:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "tools" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KNOWN: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
UNKNOWN: dict[str, Any] = {"name": "b", "skip_reason": "not found"}
BROKEN: dict[str, Any] = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}


@pytest.mark.parametrize(
    ("packages", "code", "says"),
    [
        ([KNOWN], 0, "No vulnerability is known of the 1 packages"),
        ([KNOWN, UNKNOWN], 3, "knows nothing of 1 of 2 packages: b"),
        ([UNKNOWN], 3, "NOTHING WAS CHECKED"),
        ([KNOWN, UNKNOWN, BROKEN], 1, "c 2: CVE-1, mended in 3"),
    ],
)
def test_what_was_not_looked_up_is_not_called_clean(
    audit: Any, packages: list[dict[str, Any]], code: int, says: str
) -> None:
    found, lines = audit.verdict({"dependencies": packages})
    assert found == code and says in " ".join(lines)


def test_a_service_that_does_not_answer_is_said(audit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = tmp_path / "pip-audit"
    command.write_text(f"#!{sys.executable}\nimport sys\nprint('no route to host', file=sys.stderr)\nsys.exit(1)\n")
    command.chmod(0o755)
    assert audit.main(str(command), "lock.txt") == 3
    assert "NOTHING WAS CHECKED. The vulnerability service did not answer: no route to host" in capsys.readouterr().out
