"""The ledger: a folder of records, one for each run. New ones are JSON files, old ones may be packed into one table.

```
ledger/runs/<key>.json      records, each named by its key
ledger/records.jsonl.xz     packed records; a file of the same key in runs/ takes the place of one here
ledger/.leases/             who is doing what at this moment; may be deleted when nothing runs
ledger/.work/<key>/         checkpoints of runs under way
```

Both together are all that a report reads and all that need be kept or sent to another machine. `pack` moves the records
of finished runs from files into the table. A file is replaced whole or not at all, so a process killed at any instant
leaves either the old record or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vpeft.atomic import disk_full, is_full, write_text
from vpeft.bench.lease import BEAT, SILENCE, Lease, Leases, locked
from vpeft.bench.record import READABLE, RunRecord, State
from vpeft.bench.record_table import NAME, BadTable, read_table, write_table
from vpeft.errors import VpeftError
from vpeft.guarded import MEBI, parse_json, printable, read_bytes

# Of one record: ours have 3 KiB, of which the epochs are the most.
RECORD_BYTES = 64 * MEBI
_ADVICE = "Remove the file to have the run made again."


class LedgerError(VpeftError):
    """A ledger, or a record in it, that cannot be read."""


class LostLease(VpeftError):
    """A run whose lease went to another process while it ran; its result is dropped."""


class Ledger:
    """The run records under one folder. Opening it does not create it; the first write does."""

    def __init__(self, path: Path | str, *, beat: float = BEAT, silence: float = SILENCE) -> None:
        self.path = Path(path)
        self.runs = self.path / "runs"
        self.table = self.path / NAME
        self._packed: dict[str, dict[str, Any]] = {}
        self._packed_of: tuple[int, int, int] | None = None
        self._leases = Leases(self.path / ".leases", beat, silence)

    def file(self, key: str) -> Path:
        """Where the record of `key` is written."""
        return self.runs / f"{key}.json"

    def place(self, key: str) -> Path:
        """The file that holds the record of `key`: its own, or the table."""
        own = self.file(key)
        return self.table if not own.exists() and key in self._table() else own

    def work(self, key: str) -> Path:
        """A folder for the checkpoints of `key`, made if absent."""
        folder = self.path / ".work" / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_full(error):
                raise disk_full(self.path, "the folder of a run cannot be made") from None
            raise LedgerError(f"{folder} cannot be made: {error.strerror}. Name another folder.") from None
        return folder

    def clear_work(self, key: str) -> None:
        """Remove the checkpoints of `key`, which is finished."""
        shutil.rmtree(self.path / ".work" / key, ignore_errors=True)

    def get(self, key: str) -> RunRecord | None:
        """The record of `key`, or None. Raises LedgerError for a file that is not a record."""
        path = self.file(key)
        if os.path.lexists(path):
            try:
                return _record(_read(path), str(path))
            except LedgerError:
                if os.path.lexists(path):
                    raise
        # The file first: `pack` writes the table before it removes files.
        packed = self._table().get(key)
        return None if packed is None else _record(packed, f"{self.table}, the run {key},")

    def __iter__(self) -> Iterator[RunRecord]:
        """All records, by key. Raises LedgerError for a file that is not a record."""
        for key in sorted(self._keys()):
            record = self.get(key)
            if record is None:
                continue
            if record.key != key:
                where = self.file(key)
                raise LedgerError(
                    f"{where} holds the run {record.key}. A record's file is named by its key: rename it."
                )
            yield record

    def __len__(self) -> int:
        return len(self._keys())

    def _keys(self) -> set[str]:
        # The files first, for the same reason as in `get`.
        files = {path.stem for path in self.runs.glob("*.json")} if self.runs.is_dir() else set()
        return files | set(self._table())

    def _table(self) -> dict[str, dict[str, Any]]:
        """The packed records as they were written, by key; read anew when the table was replaced."""
        try:
            stat = self.table.stat()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise LedgerError(f"{self.table} cannot be read: {error.strerror}.") from None
        now = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if now != self._packed_of:
            try:
                self._packed, self._packed_of = read_table(self.table), now
            except BadTable as error:
                raise LedgerError(str(error)) from error
        return self._packed

    def pack(self) -> int:
        """Move the records of finished runs from files into the table; how many.

        The other records stay files: they are still being worked on. Safe while a benchmark runs. Raises LedgerError
        for a file that is not a record; then nothing was moved.
        """
        moved: dict[str, dict[str, Any]] = {}
        # Under the lock, so that no record is replaced between reading and removing its file.
        with locked(self._leases.guard):
            for path in sorted(self.runs.glob("*.json")):
                found = _read(path)
                record = _record(found, str(path))
                if record.key != path.stem:
                    raise LedgerError(f"{path} holds the run {record.key}. Rename it, then pack.")
                if record.state.finished:
                    moved[record.key] = found
            if moved:
                write_table(self.table, {**self._table(), **moved})
                for key in moved:
                    self.file(key).unlink()
        return len(moved)

    def states(self) -> Counter[State]:
        """How many records are in each state."""
        return Counter(record.state for record in self)

    def claim(self, key: str) -> Lease | None:
        """The sole right to carry out `key`, or None while another live process has it. Use it in `with`."""
        return self._leases.take(key)

    def claimed(self, key: str) -> bool:
        """Whether a live process is carrying out `key`; the claim of a dead one is removed."""
        return self._leases.taken(key)

    def write(self, record: RunRecord, lease: Lease) -> Path:
        """Put a record in the place of the one before it.

        Raises:
            LostLease: the lease is another's by now.
            LedgerError: the record could not be read back, for instance since a score is no number.
            DiskFull: the record before is untouched.
        """
        text, path = _text(record), self.file(record.key)
        with locked(self._leases.guard):
            if not lease.held():
                raise LostLease(
                    f"The run {record.key} was taken over by another process, because this one was silent for too "
                    "long. Its result is dropped here; the other process will write it."
                )
            write_text(path, text)
        return path

    def plan(self, record: RunRecord) -> bool:
        """Write a planned record unless the run has a record already; whether it was written."""
        if record.state is not State.planned:
            raise ValueError(f"a record to plan is planned, not {record.state.value}")
        path = self.file(record.key)
        # Under the lock, so that a run begun by another process meanwhile is not overwritten.
        with locked(self._leases.guard):
            if os.path.lexists(path) or record.key in self._table():
                return False
            write_text(path, _text(record))
        return True


def open_ledger(path: Path | str) -> Ledger:
    """The ledger at `path`, which must exist and hold at least one record. Raises LedgerError."""
    ledger = Ledger(path)
    if not ledger.path.is_dir():
        raise LedgerError(f"There is no ledger at {path}. Make one with: vpeft bench --out {path}")
    if not len(ledger):
        raise LedgerError(
            f"{path} holds no run records (neither runs/*.json nor {NAME}). Make some with: vpeft bench --out {path}"
        )
    return ledger


def _text(record: RunRecord) -> str:
    """A record as its file holds it: checked once more, since a copy with other values was not."""
    checked = _record(record.model_dump(mode="json"), f"The record of the run {record.key}")
    return json.dumps(checked.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _read(path: Path) -> Any:
    """The JSON in a file of a record; what Python writes for "not a number" is None."""
    try:
        data = read_bytes(path, str(path), LedgerError, RECORD_BYTES)
        return parse_json(data, str(path), LedgerError, nan="none")
    except LedgerError as error:
        raise LedgerError(f"{error} {_ADVICE}") from None


def _record(found: Any, where: str) -> RunRecord:
    version = found.get("format") if isinstance(found, dict) else None
    if type(version) is not int or version not in READABLE:
        raise LedgerError(
            f"{where} has record format {printable(repr(version), 40)}; this vpeft reads the formats "
            f"{' and '.join(map(str, READABLE))}. Upgrade vpeft. {_ADVICE}"
        )
    try:
        return RunRecord.model_validate(found)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}".lstrip(": ") for item in error.errors()[:8]
        )
    except VpeftError as error:
        problems = str(error)
    raise LedgerError(f"{where} is not a run record of this version: {printable(problems, 800)}. {_ADVICE}")
