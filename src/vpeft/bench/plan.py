"""The plan of a benchmark: suite x methods x seeds as a list of jobs, each with its key and what it waits for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from vpeft.bench.config import BenchConfig
from vpeft.bench.engine import Engine
from vpeft.bench.key import Identity
from vpeft.bench.protocol import Grid, Point, Protocol, protocol
from vpeft.bench.record import RunRecord, now
from vpeft.bench.suite import BenchTask, DataFolder
from vpeft.bench.suites import open_task, suite
from vpeft.errors import VpeftError, nearest
from vpeft.method_spec import parse_all


class UnknownSetting(VpeftError):
    """A setting that departs from the protocol has a name that the protocol does not know."""


class Job(BaseModel):
    """One run to be made. With `needs`, its point is chosen from those search runs; otherwise it is `point`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    identity: Identity
    suite: str
    task: str
    group: str
    label: str
    point: Point | None = None
    needs: tuple[tuple[Point, str], ...] = ()
    data: DataFolder | None = None
    departures: dict[str, Any] = {}
    rule: str = ""
    minimum_seeds: int = 1
    legacy: bool = False
    validates: bool = False

    def record(self) -> RunRecord:
        """The record of this job before anything was done."""
        return RunRecord(
            key=self.key,
            identity=self.identity,
            suite=self.suite,
            group=self.group,
            label=self.label,
            created=now(),
            departures=self.departures,
            rule=self.rule,
            minimum_seeds=self.minimum_seeds,
        )


def make_plan(config: BenchConfig, engine: Engine) -> list[Job]:
    """All jobs of a benchmark, searches before what needs them, in the order in which they are best done.

    Raises a VpeftError for whatever does not exist: suite, tier, task, method, field, setting, backbone.
    """
    tier = suite(config.suite).tier(config.tier)
    # The whole path, since workers may be elsewhere.
    data = None if config.root is None else DataFolder(config.root.expanduser().absolute(), tier.exact)
    chosen = suite(config.suite).at(data)
    names = [name.removeprefix(f"{chosen.name}/") for name in config.tasks] or list(tier.tasks or chosen.tasks)
    rules = protocol(tier.protocol)
    if config.legacy_best_on_test:
        rules = rules.model_copy(update={"legacy_best_on_test": True})
    departures = _departures(config.optimisation, rules)
    # The label is what was asked for; the identity has every field.
    compared = [
        (asked.label, tuple(engine.resolve(method, config.backbone) for method in asked.methods))
        for asked in parse_all(config.methods)
    ]
    weights = engine.weights(config.backbone)
    seeds = range(config.seeds or tier.seeds)
    jobs: list[Job] = []
    for name in names:
        task = open_task(chosen.name, name, data)
        for label, methods in compared:
            common: dict[str, Any] = {
                "task": task.full_name,
                "data": task.digest,
                "protocol": rules.id,
                "methods": methods,
                "backbone": config.backbone,
                "weights": weights,
                "numerics": engine.numerics,
            }
            grid = rules.grid_for(methods, task.name)
            jobs += _cell(common, task, data, label, rules, grid, departures, seeds)
    return jobs


def _cell(
    common: Mapping[str, Any],
    task: BenchTask,
    data: DataFolder | None,
    label: str,
    rules: Protocol,
    grid: Grid,
    departures: Mapping[str, Any],
    seeds: Iterable[int],
) -> list[Job]:
    """The jobs of one method on one task."""
    settings = {**rules.settings_for(task.name), **departures}

    def job(purpose: str, seed: int, optimisation: Mapping[str, Any], **rest: Any) -> Job:
        identity = Identity.model_validate(
            {**common, "purpose": purpose, "seed": seed, "optimisation": {**settings, **optimisation}}
        )
        return Job(
            key=identity.key(),
            identity=identity,
            suite=task.suite,
            task=task.name,
            group=task.group,
            label=label,
            data=data,
            departures=dict(departures),
            rule=rules.rule,
            minimum_seeds=rules.seeds,
            **rest,
        )

    points = grid.points()
    if not rules.searches:
        (point,) = points
        rest: dict[str, Any] = {"legacy": rules.legacy_best_on_test, "validates": rules.validates}
        return [job("final", seed, point.model_dump(), point=point, **rest) for seed in seeds]
    search = [job("search", rules.search_seed, point.model_dump(), point=point) for point in points]
    needs = tuple((point, found.key) for point, found in zip(points, search, strict=True))
    # What is searched, not what is found: the finding follows from it, and the key is known before the search.
    searched = {"grid": grid.model_dump(), "search_seed": rules.search_seed}
    finals = [job("final", seed, searched, needs=needs, legacy=rules.legacy_best_on_test) for seed in seeds]
    return search + finals


def _departures(asked: Mapping[str, Any], rules: Protocol) -> dict[str, Any]:
    """The settings that are asked for and differ from the protocol's."""
    for name in asked:
        if name in ("lr", "weight_decay", "seed"):
            raise UnknownSetting(
                f"{name} is set by the protocol {rules.id}: its grid and its seeds. It cannot be overridden."
            )
        if name not in rules.optimisation:
            raise UnknownSetting(
                f"The protocol {rules.id} has no setting {name!r}. {nearest(name, rules.optimisation)}"
            )
    return {name: value for name, value in asked.items() if rules.optimisation[name] != value}
