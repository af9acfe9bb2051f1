"""Many records in one compressed file: JSON lines, one record each, sorted by key; the same records, the same bytes.

For keeping and passing on: 936 files of a benchmark are one file of a hundredth of their size. Records are kept as they
were written, in the format of their time.
"""

from __future__ import annotations

import json
import lzma
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpeft.errors import VpeftError

NAME = "records.jsonl.xz"


class BadTable(VpeftError):
    """A table of records that cannot be read."""


def read_table(path: Path) -> dict[str, dict[str, Any]]:
    """The records in a table by key, as they were written; none if there is no such file. Raises BadTable."""
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        return {}
    advice = "Restore the file from where you have it; a table is written whole or not at all."
    try:
        text = lzma.decompress(packed).decode("utf-8")
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise BadTable(f"{path} is not a table of records ({error}). {advice}") from error
    found: dict[str, dict[str, Any]] = {}
    # Not splitlines: a text in a record may hold other separators.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadTable(f"{path}, line {number}, is not JSON ({error}). {advice}") from error
        key = record.get("key") if isinstance(record, dict) else None
        if not isinstance(key, str):
            raise BadTable(f"{path}, line {number}, is not a record: it has no key. {advice}")
        if key in found:
            raise BadTable(f"{path}, line {number}: the run {key} is there twice. {advice}")
        found[key] = record
    return found


def write_table(path: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Write records, by key, as the table at `path`, in the place of the one before it; whole or not at all."""
    lines = (json.dumps(records[key], ensure_ascii=False, separators=(",", ":")) for key in sorted(records))
    packed = lzma.compress("".join(f"{line}\n" for line in lines).encode("utf-8"), preset=9)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("wb") as stream:
            stream.write(packed)
            stream.flush()
            os.fsync(stream.fileno())
        # The files that the records came from may be removed next.
        if read_table(draft) != records:
            raise BadTable(f"{path} was not written: it would not have been read back as it was given.")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
