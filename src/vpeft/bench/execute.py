"""Carrying out one job: claim it, choose its point, train, test once, write the record. An error ends in the record."""

from __future__ import annotations

import re
import time
import traceback
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from vpeft.atomic import CannotWrite
from vpeft.bench.engine import Assignment, Engine, TrainedRun
from vpeft.bench.ledger import Ledger, LostLease
from vpeft.bench.pictures import drop_pictures, keep_pictures
from vpeft.bench.plan import Job
from vpeft.bench.protocol import Point, choose
from vpeft.bench.provenance import provenance
from vpeft.bench.record import Chosen, Failure, RecordedScores, RunRecord, State, now
from vpeft.bench.sealed import FinalEvaluator
from vpeft.bench.suite import BenchTask
from vpeft.bench.suites import open_task
from vpeft.errors import VpeftError

# A trace says where; its last lines do, and a record stays small.
_TRACE_LINES = 40


class Ending(StrEnum):
    """What became of a job."""

    made = "made"
    settled = "settled"
    elsewhere = "elsewhere"


class JobOutcome(BaseModel):
    """What became of a job: made here, settled before, or being made by another process; and its record, if settled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    ending: Ending
    record: RunRecord | None = None


class DataChanged(VpeftError):
    """The data of a task is not what it was when the run was planned."""


def settled(record: RunRecord | None, retry_failed: bool) -> bool:
    """Whether a run needs no more work: done, or failed when failed runs are not to be made again."""
    return record is not None and (record.state is State.done or (record.state.finished and not retry_failed))


def perform(
    job: Job,
    ledger: Ledger,
    engine: Engine,
    *,
    threads: int | None,
    retry_failed: bool = False,
    opened: BenchTask | None = None,
) -> JobOutcome:
    """Make the run of `job` unless it is settled or another process is at it. `opened` is its task, if it is at hand.

    An error of the run is written to its record. What stops the process (an interrupt, an exit) is raised again after
    the record was set back to planned.
    """
    lease = ledger.claim(job.key)
    if lease is None:
        return JobOutcome(key=job.key, ending=Ending.elsewhere)
    with lease:
        before = ledger.get(job.key) or job.record()
        # Looked at after the claim: the run may have been finished since the plan was made.
        if settled(before, retry_failed):
            return JobOutcome(key=job.key, ending=Ending.settled, record=before)
        clean = {"chosen": None, "scores": None, "costs": None, "history": (), "error": None, "finished": None}
        running = before.model_copy(
            update={
                **clean,
                "state": State.running,
                "attempts": before.attempts + 1,
                "started": now(),
                "provenance": provenance(threads, engine.device()),
            }
        )
        ledger.write(running, lease)
        try:
            ended = _run(job, running, ledger, engine, opened)
        except (LostLease, CannotWrite):
            # A full disk is no fault of the run: it stays as it is, to be made once there is room.
            raise
        except Exception as error:
            ended = failed(running, error)
        except BaseException:
            ledger.write(running.model_copy(update={"state": State.planned, "started": None}), lease)
            raise
        try:
            ledger.write(ended, lease)
        except LostLease:
            return JobOutcome(key=job.key, ending=Ending.elsewhere)
        ledger.clear_work(job.key)
    return JobOutcome(key=job.key, ending=Ending.made, record=ended)


def failed(record: RunRecord, error: BaseException) -> RunRecord:
    """The record of a run that `error` ended."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    failure = Failure(
        kind=type(error).__name__,
        message=str(error) or type(error).__name__,
        trace="" if isinstance(error, VpeftError) else "\n".join(_without_folders(lines[-_TRACE_LINES:])),
    )
    state = State.out_of_memory if out_of_memory(error) else State.failed
    return record.model_copy(update={"state": state, "finished": now(), "error": failure})


def out_of_memory(error: BaseException) -> bool:
    """Whether this error, or one that it was raised from, is a lack of memory, on whichever device."""
    seen: BaseException | None = error
    while seen is not None:
        # By name and text: torch raises its own class on accelerators, a plain RuntimeError on the processor.
        text = str(seen).lower()
        if isinstance(seen, MemoryError) or "OutOfMemory" in type(seen).__name__:
            return True
        if isinstance(seen, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _run(job: Job, record: RunRecord, ledger: Ledger, engine: Engine, opened: BenchTask | None) -> RunRecord:
    began = time.perf_counter()
    task = open_task(job.suite, job.task, job.data) if opened is None else opened
    if task.digest != job.identity.data:
        raise DataChanged(
            f"The data of {task.full_name} has the digest {task.digest[:12]}, but the run was planned on "
            f"{job.identity.data[:12]}. Runs on different data are different runs: start the benchmark again."
        )
    point, chosen = _point(job, ledger)
    folder = ledger.work(job.key)
    assignment = Assignment(job.identity, point, task.labels, folder, task.learns, task.image_size, task.clip)
    scores, validation, trained = _train(job, task, assignment, engine)
    if validation is not None:
        chosen = chosen.model_copy(update={"validation": validation})
    wall = time.perf_counter() - began
    if job.identity.purpose == "search" or job.validates:
        keep_pictures(ledger.path, job.key, trained.pictures(task.val, "val"))
    return record.model_copy(
        update={
            "state": State.done,
            "finished": now(),
            "chosen": chosen,
            "scores": scores,
            "costs": trained.costs.model_copy(update={"wall_seconds": wall}),
            "history": trained.history,
        }
    )


def _point(job: Job, ledger: Ledger) -> tuple[Point, Chosen]:
    """The learning rate and decay of a job: found by its search runs, or stated."""
    if job.needs:
        chosen = choose([(point, ledger.get(key)) for point, key in job.needs])
        found = Point(lr=chosen.lr, weight_decay=chosen.weight_decay)
        for point, key in job.needs:
            if point != found:
                drop_pictures(ledger.path, key)
        return found, chosen
    assert job.point is not None, "a job has a point or runs to choose one from"
    stated = Chosen(lr=job.point.lr, weight_decay=job.point.weight_decay, rule="stated by the protocol")
    return job.point, stated


def _train(
    job: Job, task: BenchTask, assignment: Assignment, engine: Engine
) -> tuple[RecordedScores, float | None, TrainedRun]:
    """Train and score: a search run on the validation split, a final run on the test split, once.

    Beside the scores stands the leading validation score of a final run whose training left that split out.
    """
    if job.identity.purpose == "search":
        trained = engine.train(assignment, task.train, task.val, None)
        return trained.evaluate(task.val, "val"), None, trained
    evaluator = FinalEvaluator(job.identity, task.test, legacy=job.legacy)
    images, held_out = (task.train, task.val) if job.validates else (task.train_and_val(), None)
    trained = engine.train(assignment, images, held_out, evaluator.peek if job.legacy else None)
    validation = None if held_out is None else trained.evaluate(held_out, "val").value
    return evaluator.score(trained), validation, trained


def _without_folders(lines: list[str]) -> list[str]:
    """A trace whose files are named from the package on: ledgers are passed on, and folders are nobody's business."""
    return [re.sub(r'File ".*?/(?=(?:site-packages|src|tests)/)', 'File "', line) for line in lines]
