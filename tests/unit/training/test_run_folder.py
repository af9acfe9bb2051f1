"""The folder of a run: one training at a time, and refused before any work where it cannot be written."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

import vpeft
from tests.unit.training.material import Patches, tuned_vit
from vpeft.training.run_folder import LOCK, SeveralProcesses, UnusableFolder, own_folders, refuse_several_processes

HOLDER = """
import sys
from pathlib import Path
from vpeft.training.run_folder import own_folders
with own_folders(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_kept_out_and_a_killed_one_is_not_waited_for(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UnusableFolder, match="Another training writes into"):
            vpeft.fit(tuned_vit(), Patches(8), epochs=1, out=out, progress=False)
        assert not (out / "result.json").exists()
        holder.kill()
    vpeft.fit(tuned_vit(), Patches(8), epochs=1, out=out, progress=False)
    assert (out / "result.json").exists() and not (out / LOCK).exists()


def test_another_thread_is_kept_out_and_an_inner_call_is_not(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def other() -> None:
        try:
            with own_folders(tmp_path / "run"):
                pass
        except UnusableFolder as error:
            errors.append(error)

    with own_folders(tmp_path / "run"), own_folders(tmp_path / "." / "run", None):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(errors) == 1


def test_folders_that_stay_empty_are_removed_and_others_stay(tmp_path: Path) -> None:
    with own_folders(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    (tmp_path / "c").mkdir()
    with own_folders(tmp_path / "c" / "d"):
        (tmp_path / "c" / "d" / "kept").touch()
    assert [path.name for path in (tmp_path / "c" / "d").iterdir()] == ["kept"]


@pytest.mark.parametrize("out", ["file", "file/inner", "/proc/x"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    with pytest.raises(UnusableFolder, match="Name another one"):
        vpeft.fit(tuned_vit(), Patches(8), epochs=1, out=out, progress=False)
    assert Path("file").read_text() == "x"


def test_a_folder_whose_name_holds_a_zero_byte() -> None:
    with pytest.raises(vpeft.VpeftError, match=r"`out` must be a path, or None, and 'a\\x00b' was given"):
        vpeft.fit(tuned_vit(), Patches(8), epochs=1, out="a\0b", progress=False)


def test_a_launcher_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    refuse_several_processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SeveralProcesses, match="started this run 2 times"):
        refuse_several_processes()
