"""Unpacking of zip and tar archives that may be hostile: nothing is written outside of the folder, or beyond limits.

Python's own `extractall` trusts sizes that the archive states. Here each member is judged by its name and kind before
a byte is written, and bytes are counted while they are unpacked. The folder appears in its place when all is done, so
an archive that is refused leaves nothing behind.
"""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from vpeft.atomic import new_folder
from vpeft.data.problems import DataError
from vpeft.guarded import printable

GIBI = 2**30
_CHUNK = 2**20
_LONGEST_NAME = 1024
# Windows reads these as devices wherever they are, with any ending.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})
# Long names and remarks of a tar archive are read into memory before anything else is known of a member.
_LONGEST_HEADER = 2**20
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)


class BadArchive(DataError):
    """The archive is refused: it would write elsewhere, holds links or devices, is too large, or is damaged."""


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold.

    Attributes:
        members: files and folders. The published archive of VTAB-1k holds about 480,000.
        total_bytes: of all files together, unpacked.
        file_bytes: of one file, unpacked.
        ratio: unpacked bytes for each packed byte, counted once `small` bytes are unpacked; images barely shrink.
        small: bytes that any archive may give, whatever its ratio.
    """

    members: int = 2_000_000
    total_bytes: int = 200 * GIBI
    file_bytes: int = 8 * GIBI
    ratio: float = 100.0
    small: int = 64 * 2**20


_LIMITS = ArchiveLimits()


class _BoundedHeader(tarfile.TarInfo):
    """A member whose extended header is small."""

    def _proc_member(self, file: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(file)  # type: ignore[misc,no-any-return]


@dataclass(frozen=True)
class _Member:
    """One entry: its cleaned path, its stated size, and how its bytes are opened; a folder has no `open`."""

    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]] | None


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive, or a tar archive, plain or compressed."""
    return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


def unpack(archive: Path, folder: Path, limits: ArchiveLimits = _LIMITS) -> int:
    """Unpack a zip or tar archive into a folder that does not exist yet.

    Args:
        archive: the file; tar may be compressed with gzip, bzip2 or xz.
        folder: made here, in one step at the end.
        limits: what the archive may hold.

    Returns:
        The number of files.

    Raises:
        BadArchive: a name is absolute, leads out of the folder, is there twice, or is one that Windows keeps for a
            device; a member is a link, a device or a pipe; a limit is passed; it is encrypted or damaged.
        DataError: there is no such archive, or the folder exists.
    """
    if not archive.is_file():
        raise DataError(f"There is no archive {archive}.")
    if folder.exists():
        raise DataError(f"{folder} exists already. Name a new folder for what is unpacked, or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, lock = new_folder(folder)
    try:
        with closing(_members(archive, limits)) as members:
            count = _write_all(members, fresh, archive, limits)
        os.replace(fresh, folder)
    except _DAMAGE as error:
        said = printable(str(error), 200)
        raise BadArchive(f"{archive.name} cannot be unpacked: {type(error).__name__}: {said}. Get it again.") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if lock >= 0:
            os.close(lock)
    return count


def _write_all(members: Iterable[_Member], folder: Path, archive: Path, limits: ArchiveLimits) -> int:
    packed = max(1, archive.stat().st_size)
    seen: set[str] = set()
    total = files = 0
    for number, member in enumerate(members, start=1):
        if number > limits.members:
            raise BadArchive(f"{archive.name} holds more than {limits.members} files and folders.")
        shown = printable(str(member.path), 100)
        if member.open is None:
            folder.joinpath(member.path).mkdir(parents=True, exist_ok=True)
            continue
        # Two names that differ in case only are one file on some disks.
        key = str(member.path).casefold()
        if key in seen:
            raise BadArchive(f"{archive.name} holds {shown} twice.")
        seen.add(key)
        target = folder.joinpath(member.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        left = min(limits.file_bytes, limits.total_bytes - total)
        # "x": a file that is in the way is an error, and no link is followed since none was made.
        with member.open() as source, target.open("xb") as out:
            done = 0
            while chunk := source.read(_CHUNK):
                done += len(chunk)
                if done > left:
                    raise BadArchive(f"{archive.name}: {shown} unpacks to more than {left} bytes, which is the limit.")
                if total + done > max(limits.small, limits.ratio * packed):
                    raise BadArchive(
                        f"{archive.name} unpacks to more than {limits.ratio:g} times its size; images do not shrink so"
                        " far, so this is a bomb."
                    )
                out.write(chunk)
        if done != member.size:
            raise BadArchive(f"{archive.name}: {shown} has {done} bytes and states {member.size}. Get it again.")
        total += done
        files += 1
    return files


def _members(archive: Path, limits: ArchiveLimits) -> Generator[_Member]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            yield from _of_zip(archive, limits, packed)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive, tarinfo=_BoundedHeader) as taped:
            yield from _of_tar(archive, taped)
    else:
        raise BadArchive(f"{archive.name} is neither a zip nor a tar archive.")


def _of_zip(archive: Path, limits: ArchiveLimits, file: zipfile.ZipFile) -> Iterator[_Member]:
    entries = file.infolist()
    if len(entries) > limits.members:
        raise BadArchive(f"{archive.name} holds more than {limits.members} files and folders.")
    for entry in entries:
        # The raw name: `filename` ends at a NUL, and has other separators replaced.
        path = _inside(archive, entry.orig_filename)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise BadArchive(f"{archive.name}: {printable(str(path), 100)} is a link or a device.")
        if entry.flag_bits & 1:
            raise BadArchive(f"{archive.name}: {printable(str(path), 100)} is encrypted.")
        if entry.is_dir() or kind == stat.S_IFDIR:
            yield _Member(path, 0, None)
        else:
            yield _Member(path, entry.file_size, partial(file.open, entry))


def _of_tar(archive: Path, file: tarfile.TarFile) -> Iterator[_Member]:
    for entry in file:
        path = _inside(archive, entry.name)
        if entry.isdir():
            yield _Member(path, 0, None)
        elif entry.isreg() and not entry.issparse():
            yield _Member(path, entry.size, partial(_opened, file, entry))
        else:
            raise BadArchive(f"{archive.name}: {printable(str(path), 100)} is a link, a device or a sparse file.")


def _opened(file: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    found = file.extractfile(entry)
    assert found is not None  # a plain file has bytes
    return found


def _inside(archive: Path, name: str) -> PurePosixPath:
    """The path of a member below the folder. Raises BadArchive for one that leads elsewhere."""
    shown = printable(name, 100)
    path = PurePosixPath(name)
    bad = (
        not name
        or len(name) > _LONGEST_NAME
        or "\0" in name
        or "\\" in name
        or path.is_absolute()
        or ".." in path.parts
        or any(":" in part or part.split(".")[0].strip().lower() in _DEVICES for part in path.parts)
    )
    if bad:
        raise BadArchive(f"{archive.name} holds the name {shown!r}, which does not stay inside of its folder.")
    return path
