"""Many records in one compressed file: JSON lines, one record each, sorted by key; the same records, the same bytes.

For keeping and passing on: 936 files of a benchmark are one file of a hundredth of their size. Records are kept as they
were written, in the format of their time.
"""

from __future__ import annotations

import json
import lzma
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpeft.atomic import replace_file
from vpeft.errors import VpeftError
from vpeft.guarded import MEBI, parse_json, read_bytes

NAME = "records.jsonl.xz"
# A table of 936 records has 0.3 MiB, and 2.9 MiB unpacked; a bomb of xz is some thousand times larger unpacked.
PACKED_BYTES = 256 * MEBI
EXPANSION = 200
AT_LEAST = 16 * MEBI
# What unpacking may take beside the text: the strongest setting of xz, which `write_table` uses, needs 65 MiB.
UNPACKER_BYTES = 80 * MEBI
_KEY = re.compile(r"[\w-]{1,80}")


class BadTable(VpeftError):
    """A table of records that cannot be read."""


def read_table(path: Path) -> dict[str, dict[str, Any]]:
    """The records in a table by key, as they were written; none if there is no such file.

    Raises:
        BadTable: it is no table, is damaged, or unpacks to more than records can.
    """
    if not os.path.lexists(path):
        return {}
    advice = "Restore the file from where you have it; a table is written whole or not at all."
    packed = read_bytes(path, str(path), BadTable, PACKED_BYTES)
    try:
        text = _unpacked(packed, AT_LEAST + EXPANSION * len(packed)).decode("utf-8")
    except (lzma.LZMAError, ValueError, MemoryError) as error:
        raise BadTable(f"{path} is not a table of records ({error}). {advice}") from None
    found: dict[str, dict[str, Any]] = {}
    # Not splitlines: a text in a record may hold other separators.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        try:
            record = parse_json(line, f"{path}, line {number},", BadTable, nan="none")
        except BadTable as error:
            raise BadTable(f"{error} {advice}") from None
        key = record.get("key") if isinstance(record, dict) else None
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise BadTable(f"{path}, line {number}, is not a record: it has no key. {advice}")
        if key in found:
            raise BadTable(f"{path}, line {number}: the run {key} is there twice. {advice}")
        found[key] = record
    return found


def write_table(path: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Write records, by key, as the table at `path`, in the place of the one before it; whole or not at all.

    Raises:
        BadTable: the records would not be read back as they are.
        DiskFull: the table before is untouched.
    """
    lines = (
        json.dumps(records[key], ensure_ascii=False, allow_nan=False, separators=(",", ":")) for key in sorted(records)
    )
    packed = lzma.compress("".join(f"{line}\n" for line in lines).encode("utf-8"), preset=9)

    def write(fresh: Path) -> None:
        fresh.write_bytes(packed)
        # The files that the records came from may be removed next.
        if read_table(fresh) != records:
            raise BadTable(f"{path} was not written: it would not have been read back as it was given.")

    replace_file(path, write)


def _unpacked(packed: bytes, limit: int) -> bytes:
    """The text of an xz file, of at most `limit` bytes.

    Raises:
        ValueError: it has more, ends early, or something follows it.
    """
    unpacker = lzma.LZMADecompressor(memlimit=UNPACKER_BYTES)
    text = unpacker.decompress(packed, limit + 1)
    if len(text) > limit:
        raise ValueError(f"its {len(packed)} bytes unpack to more than {limit / MEBI:.0f} MiB")
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("it is not whole" if not unpacker.eof else "something follows its end")
    return text
