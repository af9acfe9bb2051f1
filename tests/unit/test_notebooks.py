"""The notebooks: their form, and that they run from the first cell to the last in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
named = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook: Path, kind: str) -> list[str]:
    """The texts of the cells of one kind."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["compare_methods", "own_images", "serve"]


@named
def test_a_notebook_keeps_no_outputs_and_no_path_of_a_machine(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")
    whole = json.loads(text)
    assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5)
    code = [cell for cell in whole["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    identities = [cell["id"] for cell in whole["cells"]]
    assert len(set(identities)) == len(identities)
    here = (f"{ROOT}/", f"{tempfile.gettempdir()}/", "/home/", "C:\\", "file://")
    assert not any(word in text for word in here)
    assert cells(notebook, "markdown")[0].startswith("# ")


@named
def test_the_cells_are_plain_python(notebook: Path) -> None:
    for number, cell in enumerate(cells(notebook, "code")):
        compile(cell, f"{notebook.name}, cell {number}", "exec")


@pytest.mark.slow
@named
def test_a_notebook_runs_in_an_empty_folder(notebook: Path, tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join(cells(notebook, "code")), encoding="utf-8")
    settings = {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    # A window that does not exist is no fault of the notebook.
    quiet = ["-W", "error", "-W", "ignore:FigureCanvasAgg is non-interactive"]
    done = subprocess.run(
        [sys.executable, *quiet, str(script)],
        cwd=tmp_path,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
