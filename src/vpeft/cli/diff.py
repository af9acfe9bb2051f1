"""`vpeft diff A B`: what differs between two adapter files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.flags import Switch
from vpeft.injection.adapter_file import read
from vpeft.interop.adapter_difference import TensorDifference, manifest_differences, tensor_differences
from vpeft.interop.hub import adapter_path


def diff(
    first: Path,
    second: Path,
    /,
    *,
    top: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 20,
    json: Switch = False,
) -> None:
    """Show what differs between two adapter files: settings, labels, scores, and the tensors, largest change first.

    Parameters
    ----------
    first, second:
        Adapter files, or hf:USER/NAME.
    top:
        Tensors to print; JSON has all.
    json:
        Print JSON.
    """
    (one, its), (other, others) = (read(adapter_path(path)) for path in (first, second))
    fields, tensors = manifest_differences(one, other), tensor_differences(its, others)
    if json:
        show.as_json({"fields": [asdict(row) for row in fields], "tensors": [asdict(row) for row in tensors]})
        return
    out = show.console()
    if not fields and not tensors:
        out.print(Text("They do not differ."))
        return
    if fields:
        rows = [(row.field, _short(row.first), _short(row.second)) for row in fields]
        out.print(show.table(("field", str(first), str(second)), rows))
        out.print(Text())
    if not tensors:
        out.print(Text(f"The {len(its)} tensors are equal."))
        return
    ordered = sorted(tensors, key=lambda row: -(float("inf") if row.relative is None else row.relative))
    out.print(show.table(("tensor", "difference", "cosine"), map(_row, ordered[:top])))
    same = len(its.keys() & others.keys()) - sum(row.first is not None and row.second is not None for row in tensors)
    more = f"; {len(ordered) - top} more differ, --top shows them" if len(ordered) > top else ""
    out.print(Text(f"{same} tensors are equal{more}."))


def _row(row: TensorDifference) -> tuple[str, str, str]:
    if row.first is None or row.second is None:
        return row.tensor, "only in the second" if row.first is None else "only in the first", ""
    if row.first != row.second:
        return row.tensor, f"{_shape(row.first)} and {_shape(row.second)}", ""
    change = "" if row.relative is None else f"{row.relative:.2%}"
    return row.tensor, change, "" if row.cosine is None else f"{row.cosine:.3f}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _short(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
