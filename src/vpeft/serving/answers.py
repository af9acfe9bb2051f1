"""What goes back: predictions as JSON, and refusals with the status that fits."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.responses import Response
from torch import Tensor

from vpeft.task import Prediction


class Refused(HTTPException):
    """A request that is not answered as it wished; the sentence says what to do."""

    def __init__(self, status: int, sentence: str, retry_after: float | None = None) -> None:
        headers = None if retry_after is None else {"retry-after": str(max(1, math.ceil(retry_after)))}
        super().__init__(status, sentence, headers)


class Answer(Response):
    """A JSON document; what is no finite number is null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(plain(content), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, int, bool)) or value is None:
        return value
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Sequence):
        return [plain(one) for one in value]
    return str(value)


def predicted(one: Prediction, top: int, with_map: bool) -> dict[str, Any]:
    """A prediction as `vpeft predict --format json` prints it; with its map, if that is wanted.

    The map is base64: a PNG of whole numbers in 16 bits for classes, a numpy file for real numbers.
    """
    said: dict[str, Any] = {"image": one.id, "predictions": list(one.rows[:top]), **one.values}
    if with_map and one.map is not None:
        held = BytesIO()
        if one.map.is_floating_point():
            np.save(held, one.map.numpy(), allow_pickle=False)
            said["map"] = {"npy": base64.b64encode(held.getvalue()).decode()}
        else:
            Image.fromarray(one.map.numpy().astype(np.uint16)).save(held, "PNG")
            said["map"] = {"png": base64.b64encode(held.getvalue()).decode()}
    return said
