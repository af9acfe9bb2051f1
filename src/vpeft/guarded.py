"""Reading of files that may be hostile: JSON, TOML and safetensors, with limits that hold before anything is built.

Every reader takes the class of the error that it raises and the words by which a message names the file; no other
exception leaves it, whatever the bytes are. What the values mean is checked by those who read them.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from .errors import VpeftError

_Bytes = TypeVar("_Bytes", bytes, bytearray)

MEBI = 2**20
# Sizes of files that people write by hand: the longest of ours has 4 KiB. tomllib takes a time that grows with the
# square of the length of a dotted key, so this is also a limit of time.
TEXT_BYTES = 256 * 1024
# An adapter file holds a copy of what is trained; a fully tuned ViT-g has 4.5 GiB.
TENSOR_BYTES = 16 * 2**30
# Manifests of ours have 2 to 60 KiB, and the table of tensors about 120 bytes for each tensor.
HEADER_BYTES = 8 * MEBI
DEPTH = 32  # levels of lists and mappings inside each other; ours have 6
ITEMS = 1_000_000  # values in all
DIGITS = 20  # of a whole number; 64 bits have 20

# The types that the format knows, with their bytes; those that torch cannot hold are absent.
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
    "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
# More than DEPTH parts joined by dots; possessive and bounded, so that the search takes a time linear in the text.
_LONG_KEY = re.compile(
    r"""(?<![\w-])(?:(?:[\w-]++|"(?:[^"\\\n]|\\.){0,80}+"|'[^'\n]{0,80}+')[ \t]{0,80}+\.[ \t]{0,80}+)"""
    rf"{{{DEPTH},}}+"
)
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
WHOLE = frozenset({"BOOL", "U8", "I8", "I16", "I32", "I64"})


@dataclass(frozen=True)
class TensorEntry:
    """What the header of a safetensors file says of one tensor: type as the format names it, shape, place."""

    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_bytes(path: str | Path, what: str, error: type[VpeftError], limit: int) -> bytes:
    """`read_buffer` as bytes that cannot be changed."""
    return _read(path, what, error, limit, lambda file, size: file.read(size + 1))


def read_buffer(path: str | Path, what: str, error: type[VpeftError], limit: int) -> bytearray:
    """All bytes of a plain file, read once, so that what is checked is what is used.

    Args:
        path: of the file.
        what: the words that begin a message, for instance "The recipe a.toml".
        error: the class to raise.
        limit: the most bytes that are read.

    Raises:
        error: there is no such file, it is a folder or a device, it cannot be read, or it is larger than `limit`.
    """
    return _read(path, what, error, limit, _into_buffer)


def _into_buffer(file: BinaryIO, size: int) -> bytearray:
    data = bytearray(size)
    view, count = memoryview(data), 0
    while count < size and (read := file.readinto(view[count:])):  # type: ignore[attr-defined]
        count += read
    view.release()
    del data[count:]
    data += file.read(1)
    return data


def _read(
    path: str | Path, what: str, error: type[VpeftError], limit: int, read: Callable[[BinaryIO, int], _Bytes]
) -> _Bytes:
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = read(file, size if size <= limit else 0)  # and one byte more: it may be growing
    except (OSError, ValueError) as problem:
        raise error(f"{what} cannot be read: {_reason(problem)}.") from None
    except MemoryError:
        raise error(f"{what} has {size / MEBI:.0f} MiB, and there is no memory for it.") from None
    if size <= limit and len(data) != size:
        raise error(f"{what} changed while it was read. Wait until it is written, and try again.")
    if size > limit:
        raise error(f"{what} has {size / MEBI:.1f} MiB; at most {limit / MEBI:g} MiB are read.")
    return data


def opened(path: str | Path) -> BinaryIO:
    """A plain file, open for reading; a folder, a device and a pipe are refused without waiting for them.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no plain file, or the name is impossible.
    """
    # O_NONBLOCK: to open a pipe would wait for its writer
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(number).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("it is a folder" if stat.S_ISDIR(mode) else "it is no plain file")
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def text_of(data: bytes, what: str, error: type[VpeftError]) -> str:
    """Bytes as UTF-8 text.

    Raises:
        error: they are none, or hold the character NUL.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{what} is not UTF-8 text: byte {problem.start} is {data[problem.start]:#04x}.") from None
    if "\0" in text:
        raise error(f"{what} is not text: it holds the character NUL.")
    return text


def parse_json(
    data: bytes | str, what: str, error: type[VpeftError], *, nan: Literal["refused", "none"] = "refused"
) -> Any:
    """The value of a JSON document with finite numbers, no key twice, and bounded depth.

    Args:
        data: the document.
        what, error: see `read_bytes`.
        nan: what the words NaN and Infinity are, which Python writes and JSON has not: an error, or None.

    Raises:
        error: it is no such document.
    """
    text = text_of(data, what, error) if isinstance(data, bytes) else data
    constant: Callable[[str], Any] = _no_constant if nan == "refused" else _absent
    try:
        value = json.loads(
            text, object_pairs_hook=_once, parse_constant=constant, parse_int=_whole, parse_float=_finite
        )
        check_value(value)
    except (ValueError, RecursionError, MemoryError) as problem:
        raise error(f"{what} is not usable JSON: {_reason(problem)}.") from None
    return value


def parse_toml(data: bytes | str, what: str, error: type[VpeftError]) -> dict[str, Any]:
    """The tables of a TOML document with finite numbers and bounded depth.

    Raises:
        error: it is no such document.
    """
    text = text_of(data, what, error) if isinstance(data, bytes) else data
    if _LONG_KEY.search(text):
        raise error(f"{what} is not usable TOML: a key has more than {DEPTH} parts.")
    try:
        value = tomllib.loads(text, parse_float=_finite)
        check_value(value)
    except (ValueError, RecursionError, MemoryError) as problem:
        raise error(f"{what} is not valid TOML: {_reason(problem)}.") from None
    return value


def read_json(path: str | Path, what: str, error: type[VpeftError], limit: int = 64 * MEBI) -> Any:
    """`read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, what, error, limit), what, error)


def read_toml(path: str | Path, what: str, error: type[VpeftError], limit: int = TEXT_BYTES) -> dict[str, Any]:
    """`read_bytes` and `parse_toml`."""
    return parse_toml(read_bytes(path, what, error, limit), what, error)


def check_value(value: Any) -> None:
    """Plain data with bounded depth and count, finite numbers and text that UTF-8 can say.

    Raises:
        ValueError: with what is wrong.
    """
    count = 0
    level: list[Any] = [value]
    for _ in range(DEPTH + 1):
        deeper: list[Any] = []
        for one in level:
            count += 1
            if isinstance(one, str):
                _said(one)
            elif isinstance(one, float):
                if not math.isfinite(one):
                    raise ValueError(f"{one} is no finite number")
            elif isinstance(one, int):
                if abs(one) >= 10**DIGITS:
                    raise ValueError(f"a number has more than {DIGITS} digits")
            elif isinstance(one, Mapping):
                for key in one:
                    _said(key)
                deeper.extend(one.values())
            elif isinstance(one, (list, tuple)):
                deeper.extend(one)
        if count + len(deeper) > ITEMS:
            raise ValueError(f"it holds more than {ITEMS} values")
        if not deeper:
            return
        level = deeper
    raise ValueError(f"lists and tables are more than {DEPTH} deep inside each other")


def parse_tensor_header(
    data: bytes | bytearray, what: str, error: type[VpeftError]
) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """Metadata and table of tensors of a safetensors file, checked against the length of the file.

    The format is eight bytes of length (little endian), a JSON header of that length, and the tensors' bytes.

    Raises:
        error: it is no such file, or it is shorter or longer than its header says.
    """
    bad = f"{what} is no complete safetensors file"
    if len(data) < 8:
        raise error(f"{bad} (it has {len(data)} bytes). Get the file again.")
    length = struct.unpack("<Q", data[:8])[0]
    if length > len(data) - 8:
        raise error(f"{bad} (it is shorter than its header says). Get the file again.")
    if length > HEADER_BYTES:
        raise error(f"{bad} (its header has {length / MEBI:.0f} MiB; at most {HEADER_BYTES // MEBI} MiB are read).")
    header = parse_json(bytes(data[8 : 8 + length]), f"{bad}; its header", error)
    if not isinstance(header, dict):
        raise error(f"{bad} (its header is no mapping). Get the file again.")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise error(f"{bad} (its metadata is no mapping of words). Get the file again.")
    try:
        entries = dict(_entries(header))
    except ValueError as problem:
        raise error(f"{bad} ({problem}). Get the file again.") from None
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise error(f"{bad} (the bytes of {short(name)} do not follow on those before). Get the file again.")
        end = entry.end
    if end != len(data) - 8 - length:
        raise error(f"{bad} (the tensors need {end} bytes, and {len(data) - 8 - length} are there). Get it again.")
    return metadata, entries


def short(words: str, most: int = 60) -> str:
    """Foreign words for a message: quoted, without control characters, at most `most` characters."""
    return repr(words if len(words) <= most else f"{words[:most]}...")


def printable(words: str, most: int) -> str:
    """Foreign words in a message: at most `most` characters, and no character that a terminal would obey."""
    cut = words if len(words) <= most else f"{words[:most]}..."
    return "".join(one if one.isprintable() else "?" for one in cut)


def _entries(header: Mapping[str, Any]) -> Iterator[tuple[str, TensorEntry]]:
    for name, said in header.items():
        if not isinstance(said, dict) or set(said) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{short(name)} has no type, shape and place")
        kind, shape, place = said["dtype"], said["shape"], said["data_offsets"]
        if not isinstance(kind, str) or kind not in ITEM_BYTES:
            raise ValueError(f"{short(name)} is of the type {short(str(kind))}, which is not read")
        if not _whole_numbers(shape, 16) or not _whole_numbers(place, 2) or len(place) != 2:
            raise ValueError(f"{short(name)} has an impossible shape or place")
        start, end = place
        if math.prod(shape) * ITEM_BYTES[kind] != end - start:
            raise ValueError(f"the shape of {short(name)} does not fit its bytes")
        if not math.prod(shape) and any(size > 2**31 for size in shape):
            raise ValueError(f"{short(name)} has an impossible shape")
        yield name, TensorEntry(kind, tuple(shape), start, end)


def _whole_numbers(value: Any, most: int) -> bool:
    return (
        isinstance(value, list) and len(value) <= most and all(type(one) is int and 0 <= one < 2**63 for one in value)
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping; a key that is there twice would be read in two ways by two programs."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no finite number")


def _absent(word: str) -> None:
    return None


def _whole(digits: str) -> int:
    if len(digits) > DIGITS + 1:
        raise ValueError(f"a number has more than {DIGITS} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is no finite number")
    return value


def _said(words: Any) -> None:
    if isinstance(words, str) and not words.isascii():
        try:
            words.encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half of a surrogate pair, which UTF-8 cannot say") from None


def _reason(problem: BaseException) -> str:
    if isinstance(problem, RecursionError):
        return "lists and tables are too deep inside each other"
    if isinstance(problem, MemoryError):
        return "there is no memory for it"
    if isinstance(problem, OSError):
        return problem.strerror or str(problem)
    return str(problem).rstrip(".").partition("\n")[0][:200]
