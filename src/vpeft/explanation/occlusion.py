"""Where an image matters: each part is covered in turn, and the first answer's number is looked at again.

Zeiler and Fergus, Visualizing and Understanding Convolutional Networks (arXiv 1311.2901), section 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vpeft.batch import Sample
from vpeft.task import Prediction

# Parts on each side of the grid: 64 passes of one image.
CELLS = 8


def occluded(whole: Sample, cells: int = CELLS) -> list[Sample]:
    """The sample with one of cells x cells parts covered by its mean colour, row by row."""
    image: Tensor = whole.input
    height, width = image.shape[-2:]
    mean = image.mean(dim=(-2, -1), keepdim=True)
    found = []
    for row in range(cells):
        for column in range(cells):
            covered = image.clone()
            top, bottom = row * height // cells, (row + 1) * height // cells
            left, right = column * width // cells, (column + 1) * width // cells
            covered[..., top:bottom, left:right] = mean
            found.append(Sample(covered, whole.target, whole.id))
    return found


def said_of(answers: Sequence[Prediction], cells: int = CELLS) -> dict[str, Any] | None:
    """How much the number of the first answer falls when a part is covered.

    Args:
        answers: for the whole image, then for each part covered.
        cells: on each side.

    Returns:
        `answer`, `column` (which number), `value` of the whole image, and `falls`, cells x cells numbers; None where an
        answer has no number.
    """
    whole = answers[0].rows[0] if answers[0].rows else None
    column = None if whole is None else next((name for name, value in whole.items() if type(value) is float), None)
    if whole is None or column is None:
        return None
    words = {name: value for name, value in whole.items() if isinstance(value, str)}
    value = float(whole[column])
    falls = [value - _number(one, words, column) for one in answers[1:]]
    grid = [falls[at : at + cells] for at in range(0, len(falls), cells)]
    return {"answer": words or {"name": column}, "column": column, "value": value, "falls": grid}


def _number(one: Prediction, words: Mapping[str, str], column: str) -> float:
    """The number of the same answer in another prediction; 0 where it is not among the answers."""
    for row in one.rows:
        if all(row.get(name) == value for name, value in words.items()):
            return float(row[column])
    return 0.0
