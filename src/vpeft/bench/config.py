"""What a benchmark run is asked to do: one model for the command line and Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class BenchConfig(BaseModel):
    """A suite, the methods to compare on it, and where the records go. Nothing is read before `run_bench`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str = Field(default="digits", description="Name of the suite.")
    tier: str | None = Field(default=None, description="How much of the suite: smoke, quick or full.")
    methods: tuple[str, ...] = Field(
        default=("linear_probe", "lora", "ssf"),
        description='What to compare: lora, "lora(rank=4)", or lora+ssf for both at once.',
    )
    backbone: str = Field(default="pocket_vit", description="Name of the backbone; random:NAME is the same untrained.")
    tasks: tuple[str, ...] = Field(default=(), description="Only these tasks of the suite.")
    seeds: int | None = Field(
        default=None, ge=1, le=1000, description="How many seeds, instead of the tier's own number."
    )
    out: Path = Field(default=Path("ledger"), description="Folder of the ledger; what is in it is not done again.")
    workers: int = Field(default=1, ge=1, le=256, description="Processes that work side by side, with one thread each.")
    executor: str = Field(
        default="auto",
        description="Who carries out the runs: serial (this process), processes, or auto, which goes by the workers.",
    )
    optimisation: dict[str, Any] = Field(
        default={},
        description="Settings that depart from the protocol (epochs and so on); such runs are marked in every table.",
    )
    legacy_best_on_test: bool = Field(
        default=False,
        description="Also note the best test score over the epochs, as many papers report it, in a field of its own.",
    )
    retry_failed: bool = Field(default=False, description="Make failed runs again.")
    show: bool = Field(default=True, description="Show progress.")
