"""What a benchmark run is asked to do: one model for the command line and Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from vpeft.settings import Settings


class BenchConfig(Settings):
    """A suite, the methods to compare on it, and where the records go. Nothing is read before `run_bench`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str = Field(default="digits", description="Name of the suite.")
    tier: str | None = Field(default=None, description="How much of the suite: smoke, quick or full.")
    root: Path | None = Field(default=None, description="Folder of the files, of suites that read yours.")
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
    workers: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Runs side by side, with one thread each; by default one, with ray as many as the cluster holds.",
    )
    executor: str = Field(
        default="auto",
        description="Who carries out the runs: serial (this process), processes, ray (a cluster), or auto, which goes"
        " by the workers and the address.",
    )
    address: str | None = Field(
        default=None, description="Of the Ray cluster: HOST:PORT, or auto for the one that this machine is in."
    )
    run_cpus: float = Field(default=1.0, gt=0, le=1024, description="Processors that a run takes of the cluster.")
    run_gpus: float | None = Field(
        default=None,
        ge=0,
        le=64,
        description="GPUs that a run takes of the cluster: 0.25 lets four runs share one. By default one on GPUs.",
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
