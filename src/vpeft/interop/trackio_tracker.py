"""Trackio: a local database, shown by `trackio show`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import need_extra


class TrackioTracker:
    """One run of the project `vpeft`. Trackio keeps its files where TRACKIO_DIR says, not in the folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._trackio: Any = need_extra("trackio", "track")
        self._name = name

    def start(self, facts: Mapping[str, Any]) -> None:
        self._trackio.init(project="vpeft", name=self._name, config=dict(facts))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(values), step=step)

    def finish(self) -> None:
        self._trackio.finish()
