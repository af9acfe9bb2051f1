"""`fit`: train a tuned model on the samples of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vpeft.acceleration import batched_adapters
from vpeft.acceleration.names import wanted
from vpeft.acceleration.shared_trunk import SharedRecords
from vpeft.arguments import COUNT, PATH, SAMPLES, one_of, require
from vpeft.atomic import write_json
from vpeft.errors import VpeftError
from vpeft.injection.tuned_model import TunedModel
from vpeft.injection.weights_digest import weights_digest
from vpeft.task import Task
from vpeft.training.batches import Samples
from vpeft.training.checkpoint import must_agree, read_checkpoint
from vpeft.training.evaluate import UnsuitableData
from vpeft.training.failures import TrainingFailed
from vpeft.training.interrupts import StopRequest
from vpeft.training.loop import CHECKPOINT, AfterEpoch, AfterStep, Training
from vpeft.training.machine import repeatable_kernels
from vpeft.training.optimisation import Optimisation
from vpeft.training.processes import explained, join, present_processes
from vpeft.training.progress import Display, display
from vpeft.training.randomness import untouched_randomness
from vpeft.training.result import Result
from vpeft.training.run_folder import own_folders

RESULT = "result.json"


class UnsuitableSettings(VpeftError):
    """Settings contradict the data."""


def fit(
    tuned: TunedModel,
    train: Samples,
    val: Samples | None = None,
    *,
    optimisation: Optimisation | None = None,
    epochs: int | None = None,
    out: Path | str | None = None,
    resume: bool = True,
    progress: bool = True,
    workers: int = 0,
    after_epoch: AfterEpoch | None = None,
    after_step: AfterStep | None = None,
    identity: dict[str, Any] | None = None,
    task: Task | None = None,
    acceleration: str | None = None,
    shared: SharedRecords | None = None,
) -> Result:
    """Train the trainable parameters of `tuned`; it then has the weights of the last or the best epoch.

    The result depends on `optimisation.seed` only: the order of the data is a function of (seed, epoch), random
    transforms of (seed, epoch, number of the batch). The random state of the process is restored at the end.

    Where `torchrun` or `accelerate launch` has started several processes, every one of them calls this function with
    the same arguments. Each computes its share of every batch, the gradients of what trains are summed, and only the
    first process writes files; see docs/many_devices.md.

    Args:
        tuned: the model; it is moved to the device and stays there.
        train: samples as `dataset[i]` -> (input, target), for instance (image float (C, H, W), class number).
        val: validation samples, which are never trained on; required for early stopping and for keeping the best epoch.
        optimisation: all settings; None uses the defaults of `Optimisation`.
        epochs: replaces `optimisation.epochs`.
        out: folder for `checkpoint.safetensors` and `result.json`. With it, SIGTERM and Ctrl-C finish the present step,
            write the checkpoint and return a result with the state "stopped"; without it, they act as usual.
        resume: continue from a checkpoint in `out`, bit-equal to an uninterrupted run. If the run is finished, its
            weights are loaded. False starts again and overwrites the checkpoint.
        progress: show progress on standard error: a live bar in a terminal, plain lines elsewhere.
        workers: number of loading processes; it does not change the result.
        after_epoch: called with the model and the epoch's record, in every process of the run. Random numbers that it
            draws do not affect training.
        after_step: called with the model after each optimiser step; what it keeps is no part of a checkpoint.
        identity: further facts (JSON) about data and model that a checkpoint must agree in.
        task: the task; None uses the task of the model's adapter, or classification.
        acceleration: replaces `optimisation.acceleration`: "auto", "off", or names separated by commas.
        shared: caches of the frozen part that several calls on the same data sets share.

    Returns:
        The history of the epochs, the validation scores, the time and the memory.

    Raises:
        NonFinite: NaN or infinity; the message names the tensor, and the weights before that step are saved.
        OutOfMemory: with the measured need and what to change.
        BadCheckpoint: the checkpoint in `out` is damaged or belongs to another run.
        UnsuitableData: a data set is empty.
        UnsuitableTargets: the targets are of another kind than the task learns.
        UnsuitableSettings: early stopping or keep = "best" without validation images.
        UnusableFolder: another training writes into `out`, or it cannot be made or written.
        LostProcess: another process of the run has ended.
        ProcessesDiffer: the processes have different models, data or settings.
        CannotShard: `optimisation.shard` with one process, or with weights that cannot be divided.
    """
    require(
        "fit(tuned, train, val)",
        tuned=(tuned, one_of(TunedModel, says="a TunedModel, such as `tune` returns")),
        train=(train, SAMPLES),
        val=(val, SAMPLES.or_none()),
    )
    require(
        "fit(tuned, train)",
        optimisation=(optimisation, one_of(Optimisation, says="vpeft.Optimisation(...)").or_none()),
        out=(out, PATH.or_none()),
        workers=(workers, COUNT),
    )
    settings = checked_settings(optimisation, train, val, epochs=epochs, acceleration=acceleration)
    folder = Path(out) if out is not None else None
    processes = join(settings.device)
    with explained(), own_folders(folder if processes.main else None):
        return _fit(
            tuned,
            train,
            val,
            settings,
            folder=folder,
            resume=resume,
            shown=display(progress and processes.main),
            workers=workers,
            after_epoch=after_epoch,
            after_step=after_step,
            identity=identity,
            task=task,
            shared=shared,
        )


def _fit(
    tuned: TunedModel,
    train: Samples,
    val: Samples | None,
    settings: Optimisation,
    *,
    folder: Path | None,
    resume: bool,
    shown: Display,
    workers: int,
    after_epoch: AfterEpoch | None,
    after_step: AfterStep | None,
    identity: dict[str, Any] | None,
    task: Task | None,
    shared: SharedRecords | None,
) -> Result:
    """Train as `fit` says, with checked settings and a folder that no other training writes into."""
    processes = present_processes()
    facts = checkpoint_facts(tuned, folder, identity)
    if processes.several:
        processes.require_equal({"frozen weights": weights_digest(tuned.description, tuned)})
    if resume and folder is not None:
        settings = extended(tuned, folder, facts, settings, shown)
    if batched_adapters.NAME in wanted(settings.acceleration):
        shown.say(f"- {batched_adapters.NAME}: this is one run; give several to `fit_together`")
    with untouched_randomness(), repeatable_kernels(settings.deterministic):
        run = Training(
            tuned,
            train,
            val,
            settings,
            out=folder,
            workers=workers,
            shown=shown,
            after_epoch=after_epoch,
            after_step=after_step,
            identity=facts,
            task=task,
            shared=shared,
        )
        try:
            run.begin_alike()
            if resume:
                take_up(run)
            with explained(), StopRequest(active=folder is not None) as stop:
                result = run.run(stop)
                tuned.task = run.task
        except TrainingFailed as failure:
            failure.result = run.result("failed", str(failure))
            write_result(folder, failure.result)
            raise
        finally:
            shown.close()
            run.close()
            tuned.eval()
    write_result(folder, result)
    return result


def checked_settings(
    optimisation: Optimisation | None,
    train: Samples,
    val: Samples | None,
    *,
    epochs: int | None = None,
    acceleration: str | None = None,
) -> Optimisation:
    """Return the settings of a run on these data sets; arguments that are not None replace their values.

    Raises:
        UnsuitableData: a data set is empty.
        UnsuitableSettings: early stopping or keep = "best" without validation images.
    """
    settings = optimisation if optimisation is not None else Optimisation()
    stated = {"epochs": epochs, "acceleration": acceleration}
    if any(value is not None for value in stated.values()):
        changed = {name: value for name, value in stated.items() if value is not None}
        settings = Optimisation(**{**settings.model_dump(), **changed})
    if len(train) == 0:
        raise UnsuitableData("There are no images to train on: the data set is empty.")
    if val is not None and len(val) == 0:
        raise UnsuitableData("The validation set is empty. Pass None to train without validation.")
    if val is None and (settings.early_stopping is not None or settings.keep == "best"):
        asked = "early_stopping" if settings.early_stopping is not None else 'keep = "best"'
        raise UnsuitableSettings(f"{asked} needs validation images, and there are none. Give some, or leave it out.")
    return settings


def checkpoint_facts(tuned: TunedModel, folder: Path | None, identity: dict[str, Any] | None) -> dict[str, Any]:
    """Return the facts in which a checkpoint must agree with a run."""
    facts = dict(identity or {})
    if folder is not None:
        # A checkpoint holds what is trained; on another frozen backbone it would go on without a word, and wrongly.
        facts["frozen_weights"] = weights_digest(tuned.description, tuned)
        if tuned.quantised is not None:
            facts["quantised"] = tuned.quantised
    return facts


def refuse_foreign_checkpoint(
    tuned: TunedModel, folder: Path, identity: dict[str, Any] | None, settings: Optimisation
) -> None:
    """Check the checkpoint in `folder` before the run is set up, as far as its facts are known.

    Raises:
        BadCheckpoint: it is damaged or belongs to another run.
    """
    if not (folder / CHECKPOINT).exists():
        return
    known = checkpoint_facts(tuned, folder, identity)
    if settings.fit_memory is None:  # else the settings are not known before they are measured
        known["optimisation"] = settings.numerics()
    there = read_checkpoint(folder / CHECKPOINT).facts["identity"]
    must_agree({key: value for key, value in there.items() if key in known}, known, folder)


def extended(
    tuned: TunedModel, folder: Path, facts: dict[str, Any], settings: Optimisation, shown: Display
) -> Optimisation:
    """Return the settings of a run that continues a finished run of fewer epochs; otherwise return `settings`.

    More epochs make a new run: it has its own schedule and a fresh optimiser, and starts from the weights of the
    finished run. The finished run's checkpoint is renamed; its name states the number of epochs.
    """
    path, processes = folder / CHECKPOINT, present_processes()
    saved = processes.from_main(lambda: read_checkpoint(path) if path.exists() else None)
    if saved is None:
        return settings
    there = saved.facts["identity"]
    before = there.get("optimisation", {}).get("epochs", settings.epochs)
    known = {**facts, "optimisation": {**settings.numerics(), "epochs": before}}
    same = all(there.get(key) == value for key, value in known.items())
    if not saved.facts["state"]["finished"] or not same or settings.epochs <= before:
        return settings
    tuned.load_adapter_state(saved.tensors["model"])
    if processes.main:
        path.replace(folder / f"after_{before}_epochs.safetensors")
    more = settings.epochs - before
    shown.say(
        f"The run in {folder} ended after {before} epochs. Its weights are the start of a new run of {more} more, with"
        " its own schedule."
    )
    rest = {**settings.model_dump(), "epochs": more}
    if settings.warmup >= 1:
        rest["warmup"] = min(settings.warmup, more - 1 if more > 1 else 0)
    return Optimisation.model_validate(rest)


def take_up(run: Training) -> None:
    """Continue from the checkpoint in the run's folder, if there is one."""
    if run.out is None:
        return
    path = run.out / CHECKPOINT
    saved = present_processes().from_main(lambda: read_checkpoint(path) if path.exists() else None)
    if saved is not None:
        run.restore(saved)


def write_result(folder: Path | None, result: Result) -> None:
    """Write the result into the run's folder, in the first process."""
    if folder is not None and present_processes().main:
        write_json(folder / RESULT, result.model_dump(mode="json"))
