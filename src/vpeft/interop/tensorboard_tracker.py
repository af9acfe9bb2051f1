"""TensorBoard: an events file in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import need_extra


class TensorboardTracker:
    """Writes scalars, and the settings as text."""

    def __init__(self, folder: Path, name: str) -> None:
        need_extra("tensorboard", "track")
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def start(self, facts: Mapping[str, Any]) -> None:
        self._writer.add_text("settings", f"```\n{json.dumps(dict(facts), indent=2, default=str)}\n```")

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()
