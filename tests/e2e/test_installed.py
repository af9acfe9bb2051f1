"""The wheel in a bare environment, without extras and with each extra alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.installed import ROOT, Environment, NotInstalled, build, project

pytest.importorskip("hatchling", reason="the extra dev is not installed")
pytestmark = pytest.mark.slow

# Extras of people who work on vpeft itself.
OWN = {"dev", "docs", "test"}


def asked_for() -> dict[str, set[str]]:
    """For each extra the modules that the code asks for in its name: `need_extra("av", "video")`."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "need_extra":
                given = [one.value for one in node.args if isinstance(one, ast.Constant)]
                if len(given) == 2:
                    found.setdefault(str(given[1]), set()).add(str(given[0]))
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    wheel = build("wheel", tmp_path_factory.mktemp("wheel"))
    return Environment(tmp_path_factory.mktemp("bare"), wheel)


def test_without_extras_the_main_job_works_and_what_needs_an_extra_names_it(bare: Environment, tmp_path: Path) -> None:
    bare.link()
    code = f"""
import sys
import vpeft
from vpeft.cli import main
from vpeft.errors import MissingExtra, need_extra

assert "site-packages" in vpeft.__file__, vpeft.__file__
for name in vpeft.__all__:
    getattr(vpeft, name)
for extra, modules in {asked_for()!r}.items():
    for module in modules:
        try:
            need_extra(module, extra)
        except MissingExtra as error:
            assert f'pip install "vpeft[{{extra}}]"' in str(error), error
        else:
            assert module == "huggingface_hub", module  # timm needs it
sys.exit(main(["doctor"]))
"""
    done = bare.run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All is well." in done.stdout and "extra video" in done.stdout


def test_every_extra_that_the_code_names_is_one() -> None:
    assert set(asked_for()) <= set(project()["optional-dependencies"])


@pytest.mark.parametrize("extra", sorted(set(project()["optional-dependencies"]) - OWN))
def test_an_extra_alone_brings_what_the_code_asks_for_in_its_name(
    bare: Environment, tmp_path: Path, extra: str
) -> None:
    modules = asked_for().get(extra)
    assert modules or extra == "retrieval", f"nothing asks for the extra {extra}"
    try:
        bare.link(extra)
    except NotInstalled as error:
        pytest.skip(f"{error} is not installed here")
    code = f"""
from vpeft.errors import need_extra
for module in {sorted(modules or {"pytorch_metric_learning"})!r}:
    need_extra(module, {extra!r})
"""
    done = bare.run("-W", "ignore", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
