"""`fit`: train a tuned model on the samples of a task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpeft.acceleration import batched_adapters
from vpeft.acceleration.names import wanted
from vpeft.acceleration.shared_trunk import SharedRecords
from vpeft.atomic import write_json
from vpeft.errors import VpeftError
from vpeft.injection.adapter_file import weights_digest
from vpeft.task import Task
from vpeft.training.batches import Samples
from vpeft.training.checkpoint import must_agree, read_checkpoint
from vpeft.training.evaluate import UnsuitableData
from vpeft.training.failures import TrainingFailed
from vpeft.training.interrupts import StopRequest
from vpeft.training.loop import CHECKPOINT, AfterEpoch, Training
from vpeft.training.machine import repeatable_kernels
from vpeft.training.optimisation import Optimisation
from vpeft.training.progress import Display, display
from vpeft.training.randomness import untouched_randomness
from vpeft.training.result import Result

if TYPE_CHECKING:
    from vpeft.injection.tuned_model import TunedModel

RESULT = "result.json"


class UnsuitableSettings(VpeftError):
    """Settings that contradict the data that was given."""


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
    identity: dict[str, Any] | None = None,
    task: Task | None = None,
    acceleration: str | None = None,
    shared: SharedRecords | None = None,
) -> Result:
    """Train what `tuned` declares trainable; the model then holds the weights of the last epoch, or those asked for.

    The random numbers of the process are afterwards as they were before: the run depends on `optimisation.seed` alone.
    Data order is a function of (seed, epoch), random transforms one of (seed, epoch, number of the batch).

    Args:
        tuned: the model; it is moved to the device and stays there.
        train: samples as `dataset[i]` -> (input, target), for instance (image float (3, H, W), class number).
        val: the same, for validation; never trained on. Needed for early stopping and for keeping the best epoch.
        optimisation: all settings; None takes the defaults, which `Optimisation` explains.
        epochs: in place of `optimisation.epochs`.
        out: folder for `checkpoint.safetensors` and `result.json`. With it, SIGTERM and Ctrl-C let the step in progress
            end, write the checkpoint and return a result whose state is "stopped"; without it they do what they
            always do.
        resume: go on from a checkpoint in `out`, bit by bit as if it had not been interrupted; a finished run is not
            done again, its weights are loaded. False starts afresh and overwrites it.
        progress: show progress on standard error, live in a terminal, plain lines elsewhere.
        workers: processes that load images; no influence on the result.
        after_epoch: called with the model and the epoch's record; what it draws at random does not reach the training.
        identity: facts (JSON) about data and model by which a checkpoint must agree, besides those that are seen here.
        task: what is learnt; None: the task of the model's adapter, or else classification.
        acceleration: in place of `optimisation.acceleration`: "auto", "off", or names with commas between them.
        shared: where calls for other models on the same data sets find and leave the outputs of the frozen part.

    Raises:
        NonFinite: NaN or infinity; the message names the tensor, and the weights before that step are saved.
        OutOfMemory: with the measured need and what to change.
        BadCheckpoint: the checkpoint in `out` is damaged or of another run.
        UnsuitableData: no samples.
        UnsuitableTargets: targets of another kind than the task learns.
        UnsuitableSettings: early stopping or keep = "best" without validation images.
    """
    settings = checked_settings(optimisation, train, val, epochs=epochs, acceleration=acceleration)
    folder = Path(out) if out is not None else None
    facts = checkpoint_facts(tuned, folder, identity)
    shown = display(progress)
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
            identity=facts,
            task=task,
            shared=shared,
        )
        try:
            if resume:
                take_up(run)
            with StopRequest(active=folder is not None) as stop:
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
    """All settings of a run on these images, with what was stated besides in the place of what they say.

    Raises:
        UnsuitableData: no images.
        UnsuitableSettings: early stopping or keep = "best" without validation images.
    """
    settings = optimisation if optimisation is not None else Optimisation()
    stated = {"epochs": epochs, "acceleration": acceleration}
    if any(value is not None for value in stated.values()):
        changed = {name: value for name, value in stated.items() if value is not None}
        settings = Optimisation.model_validate({**settings.model_dump(), **changed})
    if len(train) == 0:
        raise UnsuitableData("There are no images to train on: the data set is empty.")
    if val is not None and len(val) == 0:
        raise UnsuitableData("The validation set is empty. Pass None to train without validation.")
    if val is None and (settings.early_stopping is not None or settings.keep == "best"):
        asked = "early_stopping" if settings.early_stopping is not None else 'keep = "best"'
        raise UnsuitableSettings(f"{asked} needs validation images, and there are none. Give some, or leave it out.")
    return settings


def checkpoint_facts(tuned: TunedModel, folder: Path | None, identity: dict[str, Any] | None) -> dict[str, Any]:
    """The facts by which a checkpoint must agree with a run."""
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
    """Say before anything is set up what `take_up` would say of the checkpoint in `folder`, as far as it is known.

    Raises:
        BadCheckpoint: it is damaged or of another run.
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
    """Settings of a run that goes on where a finished run of fewer epochs ended; in any other case `settings`.

    More epochs than a finished run had are a new run: its own schedule and a fresh optimiser, on the weights that the
    finished run ended with. The finished run's checkpoint is kept beside the new one, under the number of its epochs.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return settings
    saved = read_checkpoint(path)
    there = saved.facts["identity"]
    before = there.get("optimisation", {}).get("epochs", settings.epochs)
    known = {**facts, "optimisation": {**settings.numerics(), "epochs": before}}
    same = all(there.get(key) == value for key, value in known.items())
    if not saved.facts["state"]["finished"] or not same or settings.epochs <= before:
        return settings
    tuned.load_adapter_state(saved.tensors["model"])
    path.replace(folder / f"after_{before}_epochs.safetensors")
    more = settings.epochs - before
    shown.say(
        f"The run in {folder} ended after {before} epochs. Its weights are the start of a new run of {more} more, with"
        " a schedule of its own."
    )
    rest = {**settings.model_dump(), "epochs": more}
    if settings.warmup >= 1:
        rest["warmup"] = min(settings.warmup, more - 1 if more > 1 else 0)
    return Optimisation.model_validate(rest)


def take_up(run: Training) -> None:
    """Go on from the checkpoint in the run's folder, if there is one."""
    if run.out is not None and (run.out / CHECKPOINT).exists():
        run.restore(read_checkpoint(run.out / CHECKPOINT))


def write_result(folder: Path | None, result: Result) -> None:
    """Leave the result in the run's folder."""
    if folder is not None:
        write_json(folder / RESULT, result.model_dump(mode="json"))
