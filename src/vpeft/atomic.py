"""Files that are either the old one or the new one, never half of it, whatever is killed when.

A file is written beside its place under a name that nobody can guess, held by a lock, brought to the disk, and renamed.
What a killed process left behind has no lock on it any more and is removed by the next write of the same file.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import VpeftError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed
    fcntl = None

ENDING = ".partial"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# What a place has that no write of ours can mend: it is a folder, a link to itself, protected, or its name is too long.
_IN_THE_WAY = frozenset(
    {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS}
)
# How the safetensors library tells the number of an error of the system.
_NUMBER = re.compile(r"os error (\d+)")


class CannotWrite(VpeftError):
    """A file cannot be written where it was asked for."""


class DiskFull(CannotWrite):
    """A folder has no room, the user's share of it is used up, or a file would be larger than files may be."""


def replace_file(path: Path, write: Callable[[Path], None], *, kept: str = "") -> None:
    """Let `write` make a file beside `path`, bring it to the disk, and put it in `path`'s place in one step.

    Args:
        path: the file. A link in its place is replaced, and what it points to stays as it is.
        write: writes into the empty file that it is given.
        kept: a sentence for the message that the disk is full, on what is still there.

    Raises:
        DiskFull: with the folder's name; the half-written file is removed, and what was there before is untouched.
        CannotWrite: a folder, a protected one, or an impossible name is in the way.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        fresh, number = _new_file(path)
        try:
            write(fresh)
            with fresh.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
            os.close(number)
    except Exception as error:
        if is_full(error):
            raise disk_full(path.parent, f"{path.name} could not be written", kept, error) from None
        if isinstance(error, OSError) and error.errno in _IN_THE_WAY:
            raise CannotWrite(f"{path} cannot be written: {error.strerror}. Name another file.") from None
        raise


def sweep(path: Path) -> None:
    """Remove what killed processes left half-written of the file or folder `path`."""
    start = f".{path.name}."
    with suppress(OSError), os.scandir(path.parent) as entries:
        left = [Path(entry.path) for entry in entries if entry.name.startswith(start) and entry.name.endswith(ENDING)]
        for one in left:
            _remove_if_abandoned(one)


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room for a file: on the disk, or because files may not be so large."""
    return _number(error) in FULL | {errno.EFBIG}


def disk_full(folder: Path, what: str, kept: str = "", error: BaseException | None = None) -> DiskFull:
    """The error for a folder that is full, or, where `error` says so, that takes no file of this size."""
    kept = kept or "What was there before is untouched."
    if error is not None and _number(error) == errno.EFBIG:
        return DiskFull(
            f"A file in {folder} is larger than the disk or a limit of this process allows: {what}. {kept}"
            " Raise the limit (ulimit -f), or name another folder."
        )
    return DiskFull(f"The disk of {folder} is full: {what}. {kept} Make room.")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` atomically."""
    replace_file(path, lambda fresh: _write(fresh, data))


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as JSON; NaN and infinity, which JSON has not, are an error."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def new_folder(path: Path) -> tuple[Path, int]:
    """A half-written folder for `path`, and a descriptor that holds its lock until it is closed."""
    while True:
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}{ENDING}")
        fresh.mkdir(parents=True)
        try:
            number = os.open(fresh, os.O_RDONLY)
        except PermissionError:  # Windows opens no folders
            return fresh, -1
        except FileNotFoundError:
            continue
        if _ours(number, fresh):
            return fresh, number


def _new_file(path: Path) -> tuple[Path, int]:
    """An empty file of its own beside `path`, and a descriptor that holds its lock."""
    while True:
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}{ENDING}")
        # O_EXCL: the file is new, and no link is followed
        number = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o666)
        if _ours(number, fresh):
            return fresh, number


def _ours(number: int, path: Path) -> bool:
    """Take the lock of what was just made; False, and closed, where a sweep was quicker."""
    try:
        if _lock(number) is not False and os.path.samestat(os.fstat(number), os.stat(path)):
            return True
    except FileNotFoundError:
        pass
    os.close(number)
    return False


def _remove_if_abandoned(path: Path) -> None:
    """Remove what is half-written, a file or a folder, if its writer no longer holds the lock."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(number).st_mode
        if _lock(number) is True and stat.S_ISDIR(mode):
            shutil.rmtree(path, ignore_errors=True)
        elif _lock(number) is True and stat.S_ISREG(mode):
            path.unlink(missing_ok=True)
    finally:
        os.close(number)


def _lock(number: int) -> bool | None:
    """Take the lock of what is open; False where somebody else has it, None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _number(error: BaseException) -> int | None:
    """The system's number of an error; None where it has none."""
    if isinstance(error, OSError):
        return error.errno
    told = _NUMBER.search(str(error))
    return None if told is None else int(told[1])
