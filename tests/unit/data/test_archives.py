"""Archives stay in their folder, whatever they hold."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from vpeft.data.archives import ArchiveLimits, BadArchive, is_archive, unpack
from vpeft.data.problems import DataError

BAD_NAMES = (
    "../out.txt",
    "a/../../out.txt",
    "/tmp/out.txt",
    "a\\..\\..\\out.txt",
    "C:/out.txt",
    "a/nul.txt",
    "x" * 2000,
)


def zip_of(path: Path, *members: tuple[str, bytes, int]) -> Path:
    """A zip archive of (name, bytes, file mode)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data, mode in members:
            entry = zipfile.ZipInfo(name)
            entry.filename = name  # as it is: the constructor replaces some characters
            entry.external_attr = mode << 16
            out.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return path


def tar_of(path: Path, *members: tarfile.TarInfo, data: bytes = b"x") -> Path:
    with tarfile.open(path, "w") as out:
        for entry in members:
            entry.size = len(data) if entry.isreg() else 0
            out.addfile(entry, io.BytesIO(data) if entry.isreg() else None)
    return path


def tar_entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


def refused(archive: Path, limits: ArchiveLimits = ArchiveLimits()) -> str:  # noqa: B008
    """The message of the refusal; nothing is left, inside or outside of the folder."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(BadArchive) as caught:
        unpack(archive, archive.parent / "out", limits)
    assert sorted(archive.parent.rglob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_files_and_folders_are_unpacked(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "in" / "deep"
    source.mkdir(parents=True)
    (source / "a.txt").write_bytes(b"hello" * 1000)
    archive = tmp_path / f"file.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as out:
            out.write(source, "deep")
            out.write(source / "a.txt", "deep/a.txt")
    else:
        with tarfile.open(archive, f"w:{kind.partition('.')[2]}") as tape:  # type: ignore[call-overload]
            tape.add(source, "deep")
    assert is_archive(archive)
    assert unpack(archive, tmp_path / "out") == 1
    assert (tmp_path / "out/deep/a.txt").read_bytes() == b"hello" * 1000
    with pytest.raises(DataError, match="exists already"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    good = ("good.txt", b"x", 0)
    assert "does not stay inside" in refused(zip_of(tmp_path / "a.zip", good, (name, b"x", 0)))
    assert "does not stay inside" in refused(tar_of(tmp_path / "a.tar", tar_entry("good.txt"), tar_entry(name)))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_devices_and_pipes_of_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    assert "a link, a device" in refused(tar_of(tmp_path / "a.tar", tar_entry("a", kind, "/etc/passwd")))


def test_a_link_and_a_file_below_it_are_refused(tmp_path: Path) -> None:
    """The usual way out: a link to a folder outside, then a file in it."""
    tar = tar_of(tmp_path / "a.tar", tar_entry("a", tarfile.SYMTYPE, str(tmp_path)), tar_entry("a/out.txt"))
    assert "a link, a device" in refused(tar)
    target = str(tmp_path).encode()
    archive = zip_of(tmp_path / "a.zip", ("a", target, stat.S_IFLNK | 0o777), ("a/out.txt", b"x", 0))
    assert "is a link" in refused(archive)


def test_one_file_twice_and_a_file_for_a_folder_are_refused(tmp_path: Path) -> None:
    assert "twice" in refused(tar_of(tmp_path / "a.tar", tar_entry("a.txt"), tar_entry("A.TXT")))
    assert "cannot be unpacked" in refused(tar_of(tmp_path / "b.tar", tar_entry("a"), tar_entry("a/b")))


def test_bombs_are_refused_while_they_unpack(tmp_path: Path) -> None:
    limits = ArchiveLimits(ratio=50, small=2**20)
    archive = zip_of(tmp_path / "a.zip", ("a", bytes(2**24), 0))
    assert archive.stat().st_size < 2**15
    assert "a bomb" in refused(archive, limits)
    assert "a bomb" in refused(tar_gz(tmp_path / "a.tar.gz", 2**24), limits)
    assert "more than 1048576 bytes" in refused(archive, ArchiveLimits(file_bytes=2**20))
    many = zip_of(tmp_path / "many.zip", *((f"{number}", b"", 0) for number in range(11)))
    assert "more than 10 files" in refused(many, ArchiveLimits(members=10))


def tar_gz(path: Path, size: int) -> Path:
    entry = tarfile.TarInfo("a")
    entry.size = size
    with tarfile.open(path, "w:gz") as out:
        out.addfile(entry, io.BytesIO(bytes(size)))
    return path


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("././@PaxHeader")
    entry.type, entry.size = tarfile.XHDTYPE, 2**30
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(entry.tobuf() + bytes(2**16)))
    assert refused(tmp_path / "a.tar.gz")


def test_a_size_that_is_a_lie_an_encrypted_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", ("a", b"0123456789" * 100, 0))
    data = bytearray(archive.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    lie = data.copy()
    lie[central + 24 : central + 28] = struct.pack("<I", 10)
    archive.write_bytes(lie)
    assert refused(archive)
    encrypted = data.copy()
    encrypted[central + 8] |= 1
    archive.write_bytes(encrypted)
    assert "encrypted" in refused(archive)
    damaged = data.copy()
    damaged[40] ^= 0xFF
    archive.write_bytes(damaged)
    assert "Get it again" in refused(archive)
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(tar_gz(tmp_path / "whole.tar.gz", 2**20).read_bytes()[:-200])
    assert "Get it again" in refused(cut)
    other = tmp_path / "a.txt"
    other.write_text("no archive")
    assert "neither a zip nor a tar" in refused(other)
