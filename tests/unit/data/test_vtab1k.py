"""VTAB-1k: copies are proved, faults are named and counted, and images are found in full sets."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpeft.cli import main
from vpeft.data.problems import DataError
from vpeft.data.vtab1k.facts import FACTS, GROUPS
from vpeft.data.vtab1k.gather import HUB, download, from_archive
from vpeft.data.vtab1k.proof import Proof, prove
from vpeft.data.vtab1k.search import find_task_in, full_set

from .vtab1k_copy import SIZES, SMALL, pixels, write_copy, zipped

# What the faults of `test_each_fault_is_named_and_counted` are.
KINDS = {
    "count": 1,
    "repeated": 2,
    "outside": 1,
    "label": 1,
    "missing": 1,
    "unreadable": 1,
    "whole": 3,  # one is missing, one too many, one has another label
    "changed": 1,
    "other": 2,  # the name that leads out, and the label
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    write_copy(tmp_path / "copy", {"cifar": 0, "kitti": 100})
    return tmp_path / "copy"


def kinds(proof: Proof, task: str = "cifar") -> Counter[str]:
    (found,) = [one for one in proof.tasks if one.task == task]
    return Counter(fault.kind for fault in found.faults)


def test_the_facts_are_those_of_the_benchmark() -> None:
    assert len(FACTS) == 19
    assert Counter(GROUPS.values()) == {"natural": 7, "specialised": 4, "structured": 8}
    assert {(facts.train, facts.val) for facts in FACTS.values()} == {(800, 200)}
    natural = [(100, 10000), (102, 6084), (47, 1880), (102, 6149), (37, 3669), (10, 26032), (397, 21750)]
    specialised = [(2, 32768), (10, 5400), (45, 6300), (5, 42670)]
    structured = [(8, 15000), (6, 15000), (6, 22735), (4, 711), (16, 73728), (16, 73728), (18, 12150), (9, 12150)]
    stated = [(facts.classes, facts.test) for facts in FACTS.values()]
    assert stated == natural + specialised + structured, "in the order of every published table"


def test_a_whole_copy_is_proved_and_its_digests_are_kept(tmp_path: Path) -> None:
    write_copy(tmp_path, dict.fromkeys(FACTS, 0))
    proof = prove(tmp_path, facts=SMALL)
    assert proof.proved and len(proof.tasks) == 19
    for task in proof.tasks:
        assert task.counts == SIZES and task.distinct == 12 and not task.compared
        rows = (tmp_path / task.task / "digests.tsv").read_text().splitlines()
        assert len(rows) == 1 + 18
    again = prove(tmp_path, facts=SMALL)
    assert again.proved and all(task.compared for task in again.tasks)
    assert [one.digests for one in again.tasks] == [one.digests for one in proof.tasks]


def test_each_fault_is_named_and_counted(copy: Path) -> None:
    assert prove(copy, ["cifar", "kitti"], facts=SMALL).proved
    cifar = copy / "cifar"
    (cifar / "images/train800/000003.jpg").unlink()
    (cifar / "images/test/000001.jpg").write_bytes(b"no image")
    shutil.copy(cifar / "images/test/000002.jpg", cifar / "images/test/000003.jpg")
    with (cifar / "val200.txt").open("a") as lines:
        lines.write("images/val200/000000.jpg 0\n../../secret.jpg 1\nimages/val200/000001.jpg 100\n")
    proof = prove(copy, ["cifar", "kitti"], facts=SMALL)
    assert kinds(proof) == KINDS
    said = "\n".join(proof.sentences())
    assert "cifar: 1 images are listed and not there: train800/images/train800/000003.jpg" in said
    assert "cifar: 1 images cannot be read: test/images/test/000001.jpg" in said
    assert "cifar: 1 images differ from the stated digests: test/images/test/000003.jpg" in said
    assert "val200 (7, published: 4)" in said
    assert "test/images/test/000003.jpg = test/images/test/000002.jpg" in said
    assert kinds(proof, "kitti") == {}, "the other task has no fault"


def test_another_copy_is_compared_with(copy: Path, tmp_path: Path) -> None:
    prove(copy, ["cifar"], facts=SMALL)
    other = tmp_path / "other"
    write_copy(other, {"cifar": 0})
    assert prove(other, ["cifar"], lists=copy, facts=SMALL).proved
    (other / "cifar/digests.tsv").unlink()
    Image.fromarray(pixels("cifar", 77)).save(other / "cifar/images/val200/000002.jpg")
    lines = (other / "cifar/test.txt").read_text().splitlines()
    lines[0] = lines[0][:-1] + "1"
    (other / "cifar/test.txt").write_text("\n".join(lines))
    proof = prove(other, ["cifar"], lists=copy, facts=SMALL)
    assert kinds(proof) == {"whole": 2, "changed": 1, "other": 1}
    assert not (other / "cifar/digests.tsv").exists(), "digests of a faulty copy are not kept"


def test_folders_may_have_the_other_names_in_use(copy: Path) -> None:
    (copy / "cifar").rename(copy / "cifar100")
    (copy / "kitti").rename(copy / "other")
    done: list[str] = []
    proof = prove(copy.parent, ["cifar100"], facts=SMALL, proved=lambda task: done.append(task.task))
    assert proof.proved and done == ["cifar"]
    assert (copy / "cifar100/digests.tsv").is_file()


def test_tasks_and_lists_that_are_not_there_are_faults(copy: Path, tmp_path: Path) -> None:
    (copy / "cifar/test.txt").unlink()
    proof = prove(copy, ["cifar", "svhn"], facts=SMALL)
    assert kinds(proof) == {"no_list": 1}
    assert kinds(proof, "svhn") == {"no_task": 1}
    with pytest.raises(DataError, match="holds no task of VTAB-1k"):
        prove(tmp_path / "nowhere_at_all", facts=SMALL)
    with pytest.raises(DataError, match="Did you mean 'cifar'"):
        prove(copy, ["cifra"])


def test_images_are_found_in_full_sets_by_what_they_hold(copy: Path, tmp_path: Path) -> None:
    """By their file, by their pixels, by their pixels as NOAH's script codes them, and near them."""
    prove(copy, ["cifar"], facts=SMALL)
    full = tmp_path / "full"
    full.mkdir()
    source = copy / "cifar/images"
    for number in range(40):
        path = full / f"{(number * 7) % 40:05d}"  # another order and other names
        image = Image.fromarray(pixels("cifar", number))
        if number < 3:
            shutil.copy(source / f"train800/{number:06d}.jpg", path.with_suffix(".jpg"))
        elif number < 5:
            Image.open(source / f"train800/{number:06d}.jpg").save(path.with_suffix(".png"))
        elif number < 8:
            Image.open(source / f"train800/{number:06d}.jpg").save(path.with_suffix(".jpg"), quality=99)
        else:
            image.save(path.with_suffix(".png"))
    found = find_task_in(full_set(str(full)), copy, "cifar", tmp_path / "found")
    assert found.looked_at == 40 and not found.faults
    assert found.found == {"file": 3, "pixels": 2, "near": 3, "jpeg": 10}
    proof = prove(tmp_path / "found", ["cifar"], facts=SMALL)
    assert proof.proved
    # The originals were found, not their copies: these pixels have seen no JPEG.
    test = np.asarray(Image.open(tmp_path / "found/cifar/images/test/000004.png"))
    assert np.array_equal(test, pixels("cifar", 16))
    labels = [line.split()[1] for line in (tmp_path / "found/cifar/test.txt").read_text().splitlines()]
    assert labels == [str(number % 2) for number in range(12, 18)]


def test_missing_and_ambiguous_images_are_named(copy: Path, tmp_path: Path) -> None:
    prove(copy, ["cifar"], facts=SMALL)
    full = tmp_path / "full"
    full.mkdir()
    for number in range(1, 18):
        Image.fromarray(pixels("cifar", number)).save(full / f"{number}.png")
    (full / "17.png").unlink()
    first = Image.open(copy / "cifar/images/train800/000000.jpg")
    for quality in (95, 99):  # two different images that are as near as each other
        first.save(full / f"near{quality}.jpg", quality=quality)
    found = find_task_in(full_set(str(full)), copy, "cifar", tmp_path / "found")
    assert [(fault.split, fault.name, fault.detail) for fault in found.faults] == [
        ("train800", "images/train800/000000.jpg", "2 images of the full set are alike"),
        ("test", "images/test/000005.jpg", "in no image of the full set"),
    ]
    assert kinds(prove(tmp_path / "found", ["cifar"], facts=SMALL)) == {"count": 2}


def test_a_full_set_may_be_arrays(copy: Path, tmp_path: Path) -> None:
    prove(copy, ["cifar"], facts=SMALL)
    images = np.stack([pixels("cifar", number) for number in range(30)])
    np.savez(tmp_path / "full.npz", images=images, labels=np.arange(30) % 5)
    found = find_task_in(full_set(str(tmp_path / "full.npz")), copy, "cifar", tmp_path / "found")
    assert found.found == {"jpeg": 18} and not found.faults


def test_the_command_unpacks_proves_and_finds_faults(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FACTS, "kitti", SMALL["kitti"])
    archived(copy, tmp_path, SIZES, 12, capsys)


@pytest.mark.slow
def test_the_command_proves_real_numbers_and_finds_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """KITTI in its real numbers: 800, 200 and 711 images."""
    real = {"train800": 800, "val200": 200, "test": 711}
    write_copy(tmp_path / "copy", {"kitti": 0}, real, classes=4)
    archived(tmp_path / "copy", tmp_path, real, 1000, capsys)


def archived(
    copy: Path, tmp_path: Path, sizes: Mapping[str, int], distinct: int, capsys: pytest.CaptureFixture[str]
) -> None:
    zipped(copy, tmp_path / "vtab-1k.zip")
    made = str(tmp_path / "made")
    ask = ["--from", "archive", "--source", str(tmp_path / "vtab-1k.zip"), "--tasks", "kitti", "--json"]
    assert main(["data", "vtab1k", made, *ask]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["proved"] is True
    assert told["tasks"][0]["counts"] == sizes and told["tasks"][0]["distinct"] == distinct
    last = f"images/test/{sizes['test'] - 1:06d}.jpg"
    (tmp_path / "made/vtab-1k/kitti" / last).unlink()
    assert main(["data", "vtab1k", made, "--tasks", "kitti"]) == 1
    shown = capsys.readouterr().out
    assert "1 faults" in shown and f"test/{last}" in shown
    assert "0 of 1 tasks are proved" in shown


def test_the_command_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--from", "archive"], "needs --source"),
        (["--from", "folder", "--source", str(tmp_path)], "with --lists"),
        (["--full", "cifar", "--lists", str(tmp_path)], "TASK=SOURCE"),
        (["--from", "hub", "--source", "nobody"], "owner/name:file"),
    ):
        assert main(["data", "vtab1k", str(tmp_path / "new"), *words]) == 1
        assert message in capsys.readouterr().err.replace("\n", " ")


class Hub(BaseHTTPRequestHandler):
    """A hub with one file, as far as its client asks."""

    content = b""
    path_of_file = "/datasets/XiN0919/VTAB-1k/resolve/main/vtab-1k.zip"

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(self.content)

    def answer(self, body: bytes) -> None:
        there = self.path == self.path_of_file
        self.send_response(200 if there else 404)
        self.send_header("ETag", '"0123456789abcdef0123456789abcdef01234567"')
        self.send_header("X-Repo-Commit", "f" * 40)
        self.send_header("Content-Length", str(len(self.content) if there else 0))
        self.end_headers()
        if there:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    import huggingface_hub.constants as constants

    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield Hub
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_archive_is_fetched_from_the_hub(
    hub: type[Hub], copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hub's own client, and a hub on this machine."""
    zipped(copy, tmp_path / "vtab-1k.zip")
    hub.content = (tmp_path / "vtab-1k.zip").read_bytes()
    archive = download(HUB, tmp_path / "cache")
    assert archive.read_bytes() == hub.content
    assert from_archive(archive, tmp_path / "made") == 2 * (8 + 4 + 6 + 12 + 4), "images of four lists, and the lists"
    assert prove(tmp_path / "made", ["cifar", "kitti"], facts=SMALL).proved
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(FACTS, "kitti", SMALL["kitti"])
    assert main(["data", "vtab1k", str(tmp_path / "again"), "--from", "hub", "--tasks", "kitti"]) == 0
    assert "1 of 1 tasks are proved" in capsys.readouterr().out
    with pytest.raises(DataError, match="does not give XiN0919/VTAB-1k:other.zip"):
        download("XiN0919/VTAB-1k:other.zip", tmp_path / "cache")
