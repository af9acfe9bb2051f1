"""What the values of a manifest may be: bounds that hold before a model is looked at, and words fit for people.

The same bounds hold when a file is written, so that no file is saved that could not be loaded.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..guarded import FLOATS, WHOLE, TensorEntry, check_value, short

METHODS = 32  # the longest composition of ours has four
HEADS = 256  # of several tasks on one backbone
TENSORS = 200_000  # the deepest backbone with the most wordy method has 4,000
LABELS = 200_000  # ImageNet-22k has 21,841
LABEL_LENGTH = 1_000
WORDS = 100_000  # characters of any other text
PIXELS = 16_384  # of a side of an image
AREA = 4_096 * 4_096
LISTED = 10_000  # values in a list of hyper-parameters
PARTS = 256  # modules that train as they are
NUMBER = 2**53  # whole numbers that a double holds exactly, as JSON readers do


def check_entries(entries: Mapping[str, TensorEntry]) -> None:
    """The table of tensors: count, and types that an adapter has.

    Raises:
        ValueError: with what is wrong.
    """
    if len(entries) > TENSORS:
        raise ValueError(f"it holds {len(entries)} tensors; an adapter has at most {TENSORS}")
    for name, entry in entries.items():
        if entry.kind not in FLOATS | WHOLE:
            raise ValueError(f"the tensor {short(name)} is of the type {entry.kind}, which no adapter has")


def check_manifest(raw: Mapping[str, Any]) -> None:
    """Counts, lengths and ranges of everything that a manifest says, as plain data.

    Raises:
        ValueError: with what is wrong.
    """
    check_value(raw)
    labels = raw.get("labels")
    check_labels(labels if isinstance(labels, list) else ())
    task = raw.get("task")
    fields = task.get("fields") if isinstance(task, dict) else None
    if isinstance(fields, dict):
        check_settings(fields, "task", LABELS)
        if isinstance(fields.get("labels"), (list, tuple)):
            check_labels(fields["labels"])
    methods = raw.get("methods")
    if isinstance(methods, list) and len(methods) > METHODS:
        raise ValueError(f"it names {len(methods)} methods; an adapter has at most {METHODS}")
    parts = raw.get("train")
    if isinstance(parts, list) and (len(parts) > PARTS or len(set(map(str, parts))) != len(parts)):
        raise ValueError(f"it names {len(parts)} modules that train, some of them twice or more than {PARTS}")
    check_settings(methods, "methods")
    check_settings(raw.get("head"), "head")
    _check_heads(raw.get("head"))
    check_preprocessing(raw.get("preprocessing"))
    for owner in ("origin", "anatomy"):
        table = raw.get(owner)
        if isinstance(table, dict):
            check_image_size(table.get("image_size"), f"{owner}.image_size")
    scores = raw.get("scores")
    for name, value in (scores if isinstance(scores, dict) else {}).items():
        if not _finite(value):
            raise ValueError(f"the score {short(name)} is {value!r}, which is no finite number")
    for name in ("name", "backbone", "family", "base_digest", "tensors_digest", "base_license", "base_source"):
        _check_word(raw.get(name), name, 1_000)
    for name, most in (("probe", 16), ("base_probe", 16), ("base_values", 64)):
        numbers = raw.get(name)
        if isinstance(numbers, list) and (len(numbers) > most or not all(map(_finite, numbers))):
            raise ValueError(f"{name} is no list of at most {most} finite numbers")
    rounded = raw.get("base_rounded")
    if isinstance(rounded, dict) and len(rounded) > 16:
        raise ValueError(f"base_rounded names {len(rounded)} precisions; at most 16 are read")


def check_labels(labels: Sequence[Any]) -> None:
    """Names of classes or outputs: words without control characters, each once.

    Raises:
        ValueError: with the label that is wrong and what to do.
    """
    if len(labels) > LABELS:
        raise ValueError(f"there are {len(labels)} labels; at most {LABELS} are read")
    seen: set[str] = set()
    for label in labels:
        if not isinstance(label, str):
            raise ValueError(f"the label {label!r} is no text")
        _check_word(label, "a label", LABEL_LENGTH)
        if label in seen:
            raise ValueError(f"the label {short(label)} is there twice; give every class a name of its own")
        seen.add(label)


def check_preprocessing(stated: Any) -> None:
    """Sizes, means and deviations in the ranges that images have.

    Raises:
        ValueError: with the value that is wrong.
    """
    if not isinstance(stated, Mapping):
        return
    check_image_size(stated.get("size"), "preprocessing.size")
    for name, least in (("mean", -1e6), ("std", 1e-9)):
        numbers = stated.get(name)
        if numbers is not None and not (
            isinstance(numbers, (list, tuple))
            and 1 <= len(numbers) <= 64
            and all(_finite(one) and least <= one <= 1e6 for one in numbers)
        ):
            raise ValueError(f"preprocessing.{name} = {_brief(numbers)} is impossible")
    share = stated.get("crop_pct")
    if share is not None and not (_finite(share) and 0 < share <= 1):
        raise ValueError(f"preprocessing.crop_pct = {_brief(share)} is impossible; it is a share above 0, at most 1")


def check_image_size(size: Any, what: str) -> None:
    """Height and width in pixels, or one number for both.

    Raises:
        ValueError: it is no such size, or a larger one than any backbone takes.
    """
    if size is None:
        return
    sides = size if isinstance(size, (list, tuple)) else [size]
    fits = 1 <= len(sides) <= 2 and all(type(one) is int and 1 <= one <= PIXELS for one in sides)
    if not fits or math.prod([*sides, *sides][:2]) > AREA:
        raise ValueError(
            f"{what} = {_brief(size)} is impossible; it is height and width, together at most {AREA} pixels"
        )


def check_settings(value: Any, where: str, listed: int = LISTED) -> None:
    """Hyper-parameters and settings: bounded lists, texts and whole numbers.

    Raises:
        ValueError: with what is too long or too large.
    """
    if isinstance(value, Mapping):
        for key, one in value.items():
            check_settings(one, f"{where}.{str(key)[:40]}", listed)
    elif isinstance(value, (list, tuple)):
        if len(value) > listed:
            raise ValueError(f"{where} lists {len(value)} values; at most {listed} are read")
        for one in value:
            check_settings(one, where, listed)
    elif isinstance(value, str):
        _check_word(value, where, WORDS)
    elif isinstance(value, int) and abs(value) > NUMBER:
        raise ValueError(f"{where} = {_brief(value)} is too large a number")


def _check_heads(head: Any) -> None:
    several = head.get("several") if isinstance(head, Mapping) else None
    if not isinstance(several, Mapping):
        return
    if len(several) > HEADS:
        raise ValueError(f"it has {len(several)} heads; an adapter has at most {HEADS}")
    for name, one in several.items():
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"{_brief(name)} is no name of a head")
        if isinstance(one, Mapping) and one.get("several") is not None:
            raise ValueError(f"the head {short(name)} is made of several heads itself")


def _check_word(word: Any, what: str, most: int) -> None:
    if not isinstance(word, str):
        return
    if len(word) > most:
        raise ValueError(f"{what} has {len(word)} characters; at most {most} are read")
    odd = next(_controls(word), None)
    if odd is not None:
        raise ValueError(
            f"{what}, {short(word)}, holds the control character U+{ord(odd):04X}, which can change what a terminal"
            " shows; take it out of the name"
        )


def _controls(word: str) -> Iterator[str]:
    """Control characters, halves of surrogate pairs, and marks that turn the direction of writing."""
    turning = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029"
    return (one for one in word if unicodedata.category(one) in ("Cc", "Cs") or one in turning)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
