"""The ledger: a folder with one JSON file per run, named by the run's key.

```
ledger/runs/<key>.json      the records: all that a report reads, all that need be kept or sent to another machine
ledger/.leases/             who is doing what at this moment; may be deleted when nothing runs
ledger/.work/<key>/         checkpoints of runs under way
```

A file is replaced whole or not at all, so a process killed at any instant leaves either the old record or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from vpeft.bench.lease import BEAT, SILENCE, Lease, Leases, locked
from vpeft.bench.record import READABLE, RunRecord, State
from vpeft.errors import VpeftError


class LedgerError(VpeftError):
    """A ledger, or a record in it, that cannot be read."""


class LostLease(VpeftError):
    """A run whose lease went to another process while it ran; its result is dropped."""


class Ledger:
    """The run records under one folder. Opening it does not create it; the first write does."""

    def __init__(self, path: Path | str, *, beat: float = BEAT, silence: float = SILENCE) -> None:
        self.path = Path(path)
        self.runs = self.path / "runs"
        self._leases = Leases(self.path / ".leases", beat, silence)

    def file(self, key: str) -> Path:
        """Where the record of `key` lies, or would lie."""
        return self.runs / f"{key}.json"

    def work(self, key: str) -> Path:
        """A folder for the checkpoints of `key`, made if absent."""
        folder = self.path / ".work" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clear_work(self, key: str) -> None:
        """Remove the checkpoints of `key`, which is finished."""
        shutil.rmtree(self.path / ".work" / key, ignore_errors=True)

    def get(self, key: str) -> RunRecord | None:
        """The record of `key`, or None. Raises LedgerError for a file that is not a record."""
        path = self.file(key)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return _parse(text, path)

    def __iter__(self) -> Iterator[RunRecord]:
        """All records, by key. Raises LedgerError for a file that is not a record."""
        if not self.runs.is_dir():
            return
        for path in sorted(self.runs.glob("*.json")):
            record = _parse(path.read_text(encoding="utf-8"), path)
            if record.key != path.stem:
                raise LedgerError(f"{path} holds the run {record.key}. A record's file is named by its key: rename it.")
            yield record

    def __len__(self) -> int:
        return sum(1 for _ in self.runs.glob("*.json")) if self.runs.is_dir() else 0

    def states(self) -> Counter[State]:
        """How many records are in each state."""
        return Counter(record.state for record in self)

    def claim(self, key: str) -> Lease | None:
        """The sole right to carry out `key`, or None while another live process has it. Use it in `with`."""
        return self._leases.take(key)

    def claimed(self, key: str) -> bool:
        """Whether a live process is carrying out `key`."""
        return self._leases.taken(key)

    def write(self, record: RunRecord, lease: Lease) -> Path:
        """Put a record in the place of the one before it. Raises LostLease if the lease is another's by now."""
        draft = self._draft(record)
        with locked(self._leases.guard):
            if not lease.held():
                draft.unlink()
                raise LostLease(
                    f"The run {record.key} was taken over by another process, because this one was silent for too "
                    "long. Its result is dropped here; the other process will write it."
                )
            return draft.replace(self.file(record.key))

    def plan(self, record: RunRecord) -> bool:
        """Write a planned record unless the run has a record already; whether it was written."""
        if record.state is not State.planned:
            raise ValueError(f"a record to plan is planned, not {record.state.value}")
        path = self.file(record.key)
        # Under the lock, so that a run begun by another process meanwhile is not overwritten.
        with locked(self._leases.guard):
            if path.exists():
                return False
            self._draft(record).replace(path)
        return True

    def _draft(self, record: RunRecord) -> Path:
        self.runs.mkdir(parents=True, exist_ok=True)
        draft = self.runs / f".{record.key}.{uuid.uuid4().hex}"
        with draft.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        return draft


def open_ledger(path: Path | str) -> Ledger:
    """The ledger at `path`, which must exist and hold at least one record. Raises LedgerError."""
    ledger = Ledger(path)
    if not ledger.path.is_dir():
        raise LedgerError(f"There is no ledger at {path}. Make one with: vpeft bench --out {path}")
    if not len(ledger):
        raise LedgerError(
            f"{path} holds no run records (it has no runs/*.json). Make some with: vpeft bench --out {path}"
        )
    return ledger


def _parse(text: str, path: Path) -> RunRecord:
    advice = "Remove the file to have the run made again."
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise LedgerError(f"{path} is not JSON ({error}). {advice}") from error
    version = found.get("format") if isinstance(found, dict) else None
    if version not in READABLE:
        raise LedgerError(
            f"{path} has record format {version!r}; this vpeft reads the formats "
            f"{' and '.join(map(str, READABLE))}. Upgrade vpeft. {advice}"
        )
    try:
        return RunRecord.model_validate(found)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}".lstrip(": ") for item in error.errors()
        )
        raise LedgerError(f"{path} is not a run record of this version: {problems}. {advice}") from error
