"""MLflow: a database in the folder, or the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import need_extra


class MlflowTracker:
    """One run of the experiment `vpeft`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._mlflow: Any = need_extra("mlflow", "track")
        self._name = name
        if "MLFLOW_TRACKING_URI" not in os.environ:
            folder.mkdir(parents=True, exist_ok=True)
            self._mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")

    def start(self, facts: Mapping[str, Any]) -> None:
        self._mlflow.set_experiment("vpeft")
        self._mlflow.start_run(run_name=self._name)
        self._mlflow.log_params({key: str(value)[:500] for key, value in facts.items()})

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def finish(self) -> None:
        self._mlflow.end_run()
