"""Files are the old one or the new one; leftovers go, links are not followed, and a full disk is named."""

from __future__ import annotations

import errno
import os
import resource
import secrets
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.unit.bench.test_ledger import a_record
from tests.unit.training.material import Patches, same, tuned_vit, weights
from vpeft.acceleration.prefix_store import Spec, Store
from vpeft.atomic import CannotWrite, DiskFull, replace_file, write_json, write_text
from vpeft.bench.ledger import Ledger
from vpeft.bench.record_table import read_table, write_table
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.export import export_folder
from vpeft.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vpeft.training.fit import fit
from vpeft.training.loop import CHECKPOINT
from vpeft.training.optimisation import Optimisation
from vpeft.training.result import EpochRecord


def test_the_new_file_takes_the_place_of_the_old_one_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_text(path, "old")
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}\n' and list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((_plain(tmp_path)).stat().st_mode)


def _plain(folder: Path) -> Path:
    (folder / "plain").write_text("")
    return folder / "plain"


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_text(path, "old")

    def fails(fresh: Path) -> None:
        fresh.write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        replace_file(path, fails)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_half_written_file_has_a_name_that_nobody_can_guess_and_follows_no_link(tmp_path: Path) -> None:
    path, elsewhere, names = tmp_path / "a", tmp_path / "elsewhere", set[str]()
    elsewhere.write_text("mine")
    path.symlink_to(elsewhere)

    def noted(fresh: Path) -> None:
        names.add(fresh.name)
        assert fresh.parent == path.parent and not fresh.is_symlink()
        fresh.write_text("new")

    for _ in range(3):
        replace_file(path, noted)
    assert len(names) == 3 and str(os.getpid()) not in {name.split(".")[2] for name in names}
    assert elsewhere.read_text() == "mine" and not path.is_symlink() and path.read_text() == "new"


KILLED = """
import sys, time
from pathlib import Path
from vpeft.atomic import replace_file
def write(fresh):
    fresh.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
replace_file(Path(sys.argv[1]), write)
"""


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        write_text(path, "mine")
        assert len(list(tmp_path.glob(".a.*.partial"))) == 1, "it is being written"
        writer.kill()
    (tmp_path / ".a.older.partial").write_text("half")
    (tmp_path / ".b.other.partial").write_text("of another file")
    write_text(path, "again")
    assert sorted(one.name for one in tmp_path.iterdir()) == [".b.other.partial", "a"]


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from vpeft.atomic import write_text\n"
        "for n in range(60): write_text(Path(sys.argv[1]), sys.argv[2] * 20_000)"
    )
    path = tmp_path / "a"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "xyz"]
    assert [one.wait(60) for one in writers] == [0, 0, 0]
    assert path.read_text() in {letter * 20_000 for letter in "xyz"} and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_with_what_is_still_good(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, Checkpoint({"model": {"w": torch.ones(3)}}, {"epoch": 1}))

    def full(fresh: Path) -> None:
        fresh.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFull, match=rf"The disk of {tmp_path} is full: .* The previous checkpoint is intact"):
        replace_file(path, full, kept="The previous checkpoint is intact: go on.")
    assert read_checkpoint(path).facts == {"epoch": 1} and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.name != "posix":
        pytest.skip("there is no mount")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("this user may not mount a disk")
    yield folder
    for _ in range(20):
        if subprocess.run(["umount", str(folder)], capture_output=True).returncode == 0:
            break
        time.sleep(0.1)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """No file of this process may be longer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_may_not_be_so_large_is_said_with_what_is_still_good(tmp_path: Path) -> None:
    path, table = tmp_path / "checkpoint.safetensors", tmp_path / "records.jsonl.xz"
    write_checkpoint(path, Checkpoint({"model": {"w": torch.ones(1000)}}, {"epoch": 1}))
    write_table(table, {"a": {"key": "a"}})
    random = secrets.token_hex(40_000)
    with no_file_above(20_000):
        with pytest.raises(DiskFull, match=r"A file in .* is larger than .* allows: .* The previous checkpoint is int"):
            write_checkpoint(path, Checkpoint({"model": {"w": torch.ones(20_000)}}, {"epoch": 2}))
        with pytest.raises(DiskFull, match="What was there before is untouched"):
            write_table(table, {"a": {"key": "a", "more": random}})
        with pytest.raises(DiskFull, match="What was there before is untouched"):
            write_text(tmp_path / "text", random)
        with pytest.raises(DiskFull, match="cached outputs of the frozen part need"):
            Store.on_disk(tmp_path / "cache", 1000, [Spec((2000,), torch.float32)], {"weights": "a"})
    assert read_checkpoint(path).facts == {"epoch": 1} and read_table(table) == {"a": {"key": "a"}}
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["cache", path.name, table.name]


def test_an_export_without_room_leaves_nothing_and_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    for number in range(12):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(folder / f"{number}.png")
    (tmp_path / ".out.0123456789abcdef.partial").mkdir()
    datasets = open_data(DataConfig(source=str(tmp_path / "images")))
    with no_file_above(50), pytest.raises(DiskFull, match="out could not be written. Nothing was left there"):
        export_folder(datasets, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["images"]
    assert (export_folder(datasets, tmp_path / "out") / "data.json").is_file()


@pytest.mark.parametrize("place", ["folder", "below a file", "long", "protected"])
def test_a_place_that_takes_no_file_is_one_sentence(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    paths = {"folder": tmp_path / "folder", "below a file": tmp_path / "file" / "a", "long": tmp_path / ("a" * 240)}
    with pytest.raises(CannotWrite, match="cannot be written: .*Name another file"):
        write_text(paths.get(place, Path("/proc/version/a")), "new")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]


def test_a_training_goes_on_bit_equal_once_there_is_room(tmp_path: Path) -> None:
    """The disk takes no checkpoint from the third epoch on; afterwards the same run goes on from the last one."""
    settings = Optimisation(epochs=5, batch=8, lr=3e-3)

    def trained(out: Path | None, after_epoch: Callable[[Any, EpochRecord], None] | None = None) -> dict[str, Any]:
        tuned = tuned_vit()
        fit(tuned, Patches(20), None, optimisation=settings, out=out, progress=False, after_epoch=after_epoch)
        return weights(tuned)

    expected, limit, size = trained(None), ExitStack(), list[int]()

    def full(tuned: Any, record: EpochRecord) -> None:
        if record.epoch == 3:
            size.append((tmp_path / "run" / CHECKPOINT).stat().st_size)
            limit.enter_context(no_file_above(size[0] // 2))

    with limit, pytest.raises(DiskFull, match="The previous checkpoint is intact: the same command continues from it"):
        trained(tmp_path / "run", full)
    assert size and not list((tmp_path / "run").glob(".*.partial"))
    reached = read_checkpoint(tmp_path / "run" / CHECKPOINT).facts["state"]["step"]
    assert 0 < reached < 15
    assert same(trained(tmp_path / "run"), expected)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    path = small_disk / "checkpoint.safetensors"
    write_checkpoint(path, Checkpoint({"model": {"w": torch.ones(1000)}}, {"epoch": 1}))
    with pytest.raises(DiskFull, match="The previous checkpoint is intact"):
        write_checkpoint(path, Checkpoint({"model": {"w": torch.ones(2_000_000)}}, {"epoch": 2}))
    assert read_checkpoint(path).facts == {"epoch": 1} and list(small_disk.iterdir()) == [path]
    with pytest.raises(DiskFull, match=r"cached outputs of the frozen part need .* MiB"):
        Store.on_disk(small_disk, 1000, [Spec((2000,), torch.float32)], {"weights": "a"})
    assert list(small_disk.iterdir()) == [path]
    store = Store.on_disk(small_disk, 100, [Spec((2000,), torch.float32)], {"weights": "a"})
    try:  # something else fills the disk: the room of the rows is theirs
        with (small_disk / "other").open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
    except OSError:
        pass
    store.put(0, [torch.ones(100, 2000)])
    assert float(store.arrays[0].sum()) == 200_000
    # the ledger of a benchmark says it, too, and keeps what it has
    ledger, record = Ledger(small_disk / "ledger"), a_record()
    for act in (lambda: ledger.plan(record), lambda: ledger.claim("k")):
        with pytest.raises(DiskFull, match=rf"The disk of {small_disk}.* is full"):
            act()
    store.discard()
    assert ledger.plan(record) and list(ledger) == [record]
