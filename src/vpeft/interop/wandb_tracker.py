"""Weights & Biases. Without WANDB_MODE=online or a login of your own, it writes into the folder only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import need_extra


class WandbTracker:
    """One run of wandb: offline unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, name: str) -> None:
        self._wandb: Any = need_extra("wandb", "track")
        self._folder, self._name = folder, name
        self._run: Any = None

    def start(self, facts: Mapping[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project="vpeft",
            name=self._name,
            dir=str(self._folder),
            config=dict(facts),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()
