"""`vpeft train` in the processes of a launcher."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import free_port, in_processes
from vpeft.cli import main
from vpeft.injection.adapter_file import read_manifest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
WORDS = ["--data", "digits", "--data.per-class", "6", "--backbone", "pocket_vit", "--method", "lora", "--epochs", "1"]
FILES = ["adapter.safetensors", "checkpoint.safetensors", "recipe.toml", "result.json", "run.json"]


def command(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([*words])
    return code, out.getvalue(), err.getvalue()


def test_one_process_talks_and_writes(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        return command("train", *WORDS, "--out", str(tmp_path / "run"), "--json")

    first, second = in_processes(2, tmp_path / "work", work)
    assert first[0] == second[0] == 0, first
    assert second[1] == second[2] == ""
    said = json.loads(first[1])
    assert said["adapter"] == str(tmp_path / "run" / "adapter.safetensors")
    assert set(FILES) <= {path.name for path in (tmp_path / "run").iterdir()}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["state"] == "done" and record["processes"] == 2
    code, out, _ = command("train", *WORDS, "--out", str(tmp_path / "alone"), "--json")
    alone = json.loads(out)
    assert code == 0
    assert said["test_top1"] == pytest.approx(alone["test_top1"], abs=0.05)
    scores = [read_manifest(tmp_path / run / "adapter.safetensors").scores for run in ("run", "alone")]
    assert scores[0].keys() == scores[1].keys()


def test_other_commands_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words in (["bench"], ["search"], ["predict", "a", "b"]):
        code, _, err = command(*words)
        assert code == 1
        assert "only `vpeft train` with one recipe shares its work" in " ".join(err.split())


@pytest.mark.slow
def test_accelerate_launch(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", str(free_port()), "-m", "vpeft", "train", *WORDS, "--out", str(tmp_path / "run")]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        launch,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("adapter:") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2
