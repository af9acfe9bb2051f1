"""A bare environment with a built wheel and exactly the packages that one extra brings, without downloads.

The packages are links to those of the environment that runs the tests, so an import of anything else fails.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


class NotInstalled(Exception):
    """The environment that runs the tests lacks a package, so it cannot be linked."""


def build(kind: str, folder: Path) -> Path:
    """Build the `wheel` or the `sdist` of the working tree with the build backend, without isolation."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.iterdir()
    return made


def project() -> dict[str, dict[str, list[str]]]:
    """The table `project` of pyproject.toml."""
    found: dict[str, dict[str, list[str]]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    return found


def packages_of(extras: Iterable[str]) -> set[str]:
    """The names of the packages that `pip install "vpeft[EXTRAS]"` brings, with what they need themselves.

    Raises:
        NotInstalled: one of them is not in this environment.
    """
    own = project()
    todo = [Requirement(line) for line in own["dependencies"]]
    todo += [Requirement(f"vpeft[{extra}]") for extra in extras]
    seen: set[tuple[str, frozenset[str]]] = set()
    found: set[str] = set()
    while todo:
        one = todo.pop()
        name, wanted = canonicalize_name(one.name), frozenset(one.extras)
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        if name == "vpeft":
            todo += [Requirement(line) for extra in wanted for line in own["optional-dependencies"][extra]]
            continue
        found.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError as error:
            raise NotInstalled(name) from error
        for line in lines:
            needs = Requirement(line)
            if needs.marker is None or any(needs.marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                todo.append(needs)
    return found


class Environment:
    """A virtual environment without pip that has the wheel, and the linked packages of some extras."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        self.packages = next((folder / "lib").glob("python*/site-packages"))
        install = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        install += ["--python", str(self.python), "install", "--no-deps", "--no-index", str(wheel)]
        subprocess.run(install, check=True)
        self._linked: list[Path] = []

    def link(self, *extras: str) -> None:
        """Let the environment have the packages of these extras and no others.

        Raises:
            NotInstalled: a package is not in the environment that runs the tests.
        """
        names = packages_of(extras)
        for path in self._linked:
            path.unlink()
        self._linked = []
        for name in names:
            for file in importlib.metadata.files(name) or []:
                top = file.parts[0]
                if top in ("..", "__pycache__") or top.endswith(".pth"):
                    continue
                link = self.packages / top
                if not link.exists():
                    link.symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
                    self._linked.append(link)

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python with these arguments, away from the repository."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [str(self.python), *arguments], cwd=cwd, env=plain, capture_output=True, text=True, timeout=300, check=False
        )
