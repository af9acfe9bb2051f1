"""A Ray cluster: runs go wherever it has a processor, or a part of a GPU, free; the driver keeps the ledger.

The driver (the process of `vpeft bench`) holds the lease of each run under way, hands the run to the cluster, and
writes its record. So the nodes need no access to the ledger. Where a node sees the ledger's folder (shared storage), a
run keeps its checkpoints there, and goes on from the last one if its node dies; elsewhere it starts again. Ray itself
sends a run whose worker or node died to another one. The numbers are those of every other executor: one thread a run.

The backbone with its weights, and the images of a task, are put into Ray's object store once. A node fetches them once,
and the workers of a node read the same copy of the images. Suites that read files of the user read them on the node.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from pickle import PicklingError
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from vpeft.bench.engine import Engine
from vpeft.bench.execute import Ending, JobOutcome, failed, perform, settled
from vpeft.bench.executors.executor import ClusterSettings, ExecutorSettings, register_executor
from vpeft.bench.executors.threads import THREADS, threads
from vpeft.bench.key import Identity
from vpeft.bench.lease import Lease
from vpeft.bench.ledger import Ledger, LostLease
from vpeft.bench.pictures import drop_pictures, keep_pictures, pictures_of
from vpeft.bench.plan import Job
from vpeft.bench.record import RunRecord, State, now
from vpeft.bench.sealed import SealedTest
from vpeft.bench.suite import BenchTask
from vpeft.bench.suites import open_task
from vpeft.errors import VpeftError, need_extra

# How often Ray starts a run again whose worker or node died; a run that kills its worker is at fault itself after that.
RETRIES = 3
# How often the driver starts a run again that was told to stop on its node.
RESTARTS = 10
# Of the lease inside a run's folder, which keeps an old worker of a dying node and a new one apart, in seconds.
BEAT, SILENCE, PATIENCE = 1.0, 15.0, 60.0
# Tasks whose images the driver keeps in the object store; runs of one task follow each other.
TASKS_KEPT = 4


class NoCluster(VpeftError):
    """There is no Ray cluster at the address, or none of its nodes can hold a run."""


class RunLost(VpeftError):
    """A run whose worker ended each time it was started."""


class OtherNumerics(VpeftError):
    """A worker computes on another device, or with other weights, than the run was planned for."""


@runtime_checkable
class CarriesBackbone(Protocol):
    """An engine that can take a backbone along, so that workers need not load it."""

    def carrying(self, backbone: str, task: BenchTask) -> Engine:
        """The engine with this backbone, as the runs of the task use it."""
        ...


@dataclass(frozen=True)
class Parcel:
    """The images of a task on their way to the workers. `open` gives the task; its test split stays sealed."""

    task: dict[str, Any]
    # In a list, so that Ray does not fetch it before the final evaluator asks.
    test: list[Any]

    def open(self) -> BenchTask:
        ray: Any = need_extra("ray", "ray")
        (reference,) = self.test
        name = f"{self.task['suite']}/{self.task['name']}"
        return BenchTask(**self.task, test=SealedTest(name, lambda: ray.get(reference)))


@dataclass(frozen=True)
class Order:
    """What a worker is told: the job, the records that it chooses from, and where things are.

    Attributes:
        engine, parcel: references in the object store, each in a list; no parcel where the worker opens the task.
        folder: of the run, which the worker uses if it sees `token` there.
    """

    job: Job
    records: tuple[RunRecord, ...]
    engine: list[Any]
    parcel: list[Any]
    folder: Path
    token: str


@dataclass
class _Underway:
    job: Job
    lease: Lease
    before: RunRecord
    running: RunRecord
    order: Order
    restarts: int = field(default=0)


@register_executor("ray")
class RayExecutor:
    """Hands jobs to a Ray cluster; `settings.cluster` says to which one, and what a run needs of it."""

    def __init__(self, settings: ExecutorSettings) -> None:
        if settings.cluster.address is None:
            # Read when Ray is imported: a cluster of this machine alone stays on the loopback interface.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Any: Ray is not there for a type checker, either, where the extra is not installed.
        self._ray: Any = need_extra("ray", "ray")
        self._ledger, self._engine, self._retry = settings.ledger, settings.engine, settings.retry_failed
        self._most = settings.workers
        self._needs = _needs(settings.cluster, settings.engine)
        self._owned = _connect(self._ray, settings.cluster.address)
        self._engines: dict[tuple[Any, ...], Any] = {}
        self._parcels: OrderedDict[str, Any] = OrderedDict()
        self._underway: dict[Any, _Underway] = {}
        self._ended: list[JobOutcome] = []
        self._token = os.urandom(8).hex()
        if self._capacity() == 0:
            self.close()
            raise NoCluster(
                f"No node of the Ray cluster has {_words(self._needs)} for a run. Add such a node, or ask for less with"
                " --run-cpus and --run-gpus."
            )
        self._remote = self._ray.remote(
            num_cpus=self._needs["CPU"], num_gpus=self._needs["GPU"], max_retries=RETRIES, max_calls=0
        )(carry_out)

    # -- the contract of executors ----------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        # Nodes come and go, so it is counted anew; a cluster that has lost its last node gets one run, which waits.
        most = max(1, self._capacity())
        return len(self._underway) < (most if self._most is None else min(most, self._most))

    @property
    def busy(self) -> bool:
        return bool(self._underway or self._ended)

    def start(self, job: Job) -> None:
        lease = self._ledger.claim(job.key)
        if lease is None:
            self._ended.append(JobOutcome(key=job.key, ending=Ending.elsewhere))
            return
        before = self._ledger.get(job.key) or job.record()
        # Looked at after the claim: the run may have been finished since the plan was made.
        if settled(before, self._retry):
            lease.release()
            self._ended.append(JobOutcome(key=job.key, ending=Ending.settled, record=before))
            return
        try:
            self._hand_out(job, lease, before)
        except BaseException:
            lease.release()
            raise

    def finished(self, seconds: float) -> list[JobOutcome]:
        outcomes, self._ended = self._ended, []
        if self._underway:
            waiting = list(self._underway)
            ready, _ = self._ray.wait(waiting, num_returns=1, timeout=0 if outcomes else seconds)
            if ready:  # whatever else is there by now
                ready, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
            outcomes += [outcome for one in ready if (outcome := self._collect(one)) is not None]
        return outcomes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what is under way (after an interrupt), give its runs back, and leave the cluster."""
        for reference, one in self._underway.items():
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=True)
            with contextlib.suppress(LostLease):
                self._ledger.write(one.running.model_copy(update={"state": State.planned, "started": None}), one.lease)
            one.lease.release()
        self._underway.clear()
        self._engines.clear()
        self._parcels.clear()
        if self._owned:
            self._ray.shutdown()

    # -- handing out and taking back --------------------------------------------------------------------------------

    def _hand_out(self, job: Job, lease: Lease, before: RunRecord) -> None:
        clean = {"chosen": None, "scores": None, "costs": None, "history": (), "error": None, "finished": None}
        running = before.model_copy(
            update={**clean, "state": State.running, "attempts": before.attempts + 1, "started": now()}
        )
        self._ledger.write(running, lease)
        folder = self._ledger.work(job.key).resolve()
        (folder / "token").write_text(self._token)
        needed = tuple(record for _, key in job.needs if (record := self._ledger.get(key)) is not None)
        parcel = self._parcel(job)
        order = Order(job, needed, [self._carried(job)], [] if parcel is None else [parcel], folder, self._token)
        one = _Underway(job, lease, before, running, order)
        self._underway[self._remote.options(name=f"{job.label} on {job.task}").remote(order)] = one

    def _carried(self, job: Job) -> Any:
        """The reference of the engine with the job's backbone in it."""
        engine, key = self._engine, tuple[Any, ...]()
        if isinstance(engine, CarriesBackbone):
            task = open_task(job.suite, job.task, job.data)
            key = job.identity.backbone, task.image_size, task.clip
            if key not in self._engines:
                engine = engine.carrying(job.identity.backbone, task)
        if key not in self._engines:
            try:
                self._engines[key] = self._ray.put(engine)
            except (TypeError, AttributeError, PicklingError):  # a backbone that cannot be sent is loaded on the node
                self._engines[key] = self._ray.put(self._engine)
        return self._engines[key]

    def _parcel(self, job: Job) -> Any | None:
        """The reference of the task's images; None where each node reads the files of the user itself."""
        if job.data is not None:
            return None
        name = f"{job.suite}/{job.task}"
        if name not in self._parcels:
            task = open_task(job.suite, job.task)
            parts = {one: getattr(task, one) for one in task.__dataclass_fields__ if one != "test"}
            self._parcels[name] = self._ray.put(Parcel(parts, [task.test.handed_over(self._ray.put)]))
            # What a run under way still needs is kept by Ray.
            while len(self._parcels) > TASKS_KEPT:
                self._parcels.popitem(last=False)
        self._parcels.move_to_end(name)
        return self._parcels[name]

    def _collect(self, reference: Any) -> JobOutcome | None:
        """Write what a worker sent back; None for a run that was started again."""
        one = self._underway.pop(reference)
        try:
            outcome, pictures = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            record = failed(one.running, error.cause if isinstance(error.cause, Exception) else error)
        except self._ray.exceptions.RayError as error:
            said = " ".join(str(error).split())[:300]
            lost = RunLost(
                f"The worker ended each of the {RETRIES + 1} times that this run was started (often there is no memory"
                f" left: give a run more processors with --run-cpus, so that fewer share a node). Ray says: {said}"
            )
            record = failed(one.running, lost)
        else:
            if outcome.record is None:
                one.restarts += 1
                if one.restarts <= RESTARTS:
                    self._underway[self._remote.remote(one.order)] = one
                    return None
                record = failed(one.running, RunLost(f"The run was told to stop on its node {RESTARTS + 1} times."))
            else:
                kept = {"attempts": one.running.attempts, "created": one.running.created}
                record = outcome.record.model_copy(update=kept)
                if pictures:
                    keep_pictures(self._ledger.path, one.job.key, pictures)
                self._drop_rejected(one.job, record)
        with one.lease as lease:
            try:
                self._ledger.write(record, lease)
            except LostLease:
                return JobOutcome(key=one.job.key, ending=Ending.elsewhere)
            self._ledger.clear_work(one.job.key)
        return JobOutcome(key=one.job.key, ending=Ending.made, record=record)

    def _drop_rejected(self, job: Job, record: RunRecord) -> None:
        """Remove the pictures of search runs whose point was not chosen, as the other executors do."""
        if record.chosen is not None:
            for point, key in job.needs:
                if (point.lr, point.weight_decay) != (record.chosen.lr, record.chosen.weight_decay):
                    drop_pictures(self._ledger.path, key)

    def _capacity(self) -> int:
        """How many runs the living nodes hold at once."""
        return sum(
            min(math.floor(node["Resources"].get(name, 0.0) / amount + 1e-9) for name, amount in self._asked())
            for node in self._ray.nodes()
            if node["Alive"]
        )

    def _asked(self) -> list[tuple[str, float]]:
        return [(name, amount) for name, amount in self._needs.items() if amount > 0]


def _needs(cluster: ClusterSettings, engine: Engine) -> dict[str, float]:
    """The processors and GPUs of one run."""
    gpus = cluster.run_gpus
    if gpus is None:
        gpus = 1.0 if engine.numerics.device == "cuda" else 0.0
    return {"CPU": cluster.run_cpus, "GPU": gpus}


def _words(needs: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in needs.items() if amount > 0)


def _connect(ray: Any, address: str | None) -> bool:
    """Join the cluster at `address`, or start one of this machine alone; whether that is for us to end.

    Raises:
        NoCluster: nothing answers at the address.
    """
    if ray.is_initialized():
        return False
    # Ray reports its usage over the network unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address in (None, "local"):
            ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise NoCluster(
            f"There is no Ray cluster at {address}: {said} Start one with `ray start --head` on one machine and"
            " `ray start --address HOST:6379` on the others, or leave --address out to use this machine alone."
        ) from None
    return True


# -- on the nodes -----------------------------------------------------------------------------------------------------


def carry_out(order: Order) -> tuple[JobOutcome, dict[str, bytes]]:
    """Make one run on this node: its outcome, without a record where it was told to stop, and its pictures."""
    engine = _fetched(*order.engine)
    _must_be_as_planned(engine, order.job.identity)
    with _scratch(order) as scratch, threads(THREADS):
        for record in order.records:
            lease = scratch.claim(record.key)
            if lease is not None:
                with lease:
                    scratch.write(record, lease)
        try:
            outcome = _performed(order, scratch, engine)
        except KeyboardInterrupt:
            return JobOutcome(key=order.job.key, ending=Ending.elsewhere), {}
        return outcome, pictures_of(scratch.path, order.job.key)


def _performed(order: Order, scratch: Ledger, engine: Engine) -> JobOutcome:
    until = time.monotonic() + PATIENCE
    while True:
        outcome = perform(
            order.job,
            scratch,
            engine,
            threads=THREADS,
            retry_failed=True,
            opened=None if not order.parcel else _opened(*order.parcel),
        )
        # A worker of a node that was lost may live a moment longer than the node.
        if outcome.ending is not Ending.elsewhere or time.monotonic() > until:
            return outcome
        time.sleep(BEAT)


@contextlib.contextmanager
def _scratch(order: Order) -> Iterator[Ledger]:
    """A ledger for this run alone: in the run's folder where this node sees it, else in a temporary one."""
    with contextlib.ExitStack() as stack:
        try:
            shared = (order.folder / "token").read_text() == order.token
        except OSError:
            shared = False
        folder = order.folder if shared else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vpeft-ray-")))
        yield Ledger(folder / "node", beat=BEAT, silence=SILENCE)


def _must_be_as_planned(engine: Engine, identity: Identity) -> None:
    if engine.numerics != identity.numerics:
        raise OtherNumerics(
            f"The run was planned for {identity.numerics.device} in {identity.numerics.precision}, and this worker"
            f" computes on {engine.numerics.device} in {engine.numerics.precision}. State what a run needs with"
            " --run-gpus, and start the benchmark on a machine with the same kind of device."
        )
    weights = engine.weights(identity.backbone)
    if weights != identity.weights:
        raise OtherNumerics(
            f"The weights of {identity.backbone} on this node have the digest {weights[:12]}, and the run was planned"
            f" with {identity.weights[:12]}. Install the same versions and weights on all nodes."
        )


# Of a worker process: runs of one engine share images as tensors and frozen outputs, so the engine stays.
@lru_cache(maxsize=2)
def _fetched(reference: Any) -> Engine:
    engine: Engine = need_extra("ray", "ray").get(reference)
    return engine


@lru_cache(maxsize=2)
def _opened(reference: Any) -> BenchTask:
    parcel: Parcel = need_extra("ray", "ray").get(reference)
    return parcel.open()
