"""`vpeft meta`: retrain a backbone on source tasks, so that a small adapter fits a new one well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import Group
from rich.text import Text

from vpeft.backbones.create import create_backbone
from vpeft.cli import show
from vpeft.cli.flags import Flag, Switch, flags_of, nested, split_list, with_flags
from vpeft.cli.loaded import Device, pick_device
from vpeft.cli.validated import validated
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.preprocessing import Preprocessing
from vpeft.regimes.meta_learning import CannotMetaLearn, MetaSettings, meta_learn, save_base
from vpeft.tasks.classification import Classification

_FLAGS: tuple[Flag, ...] = tuple(flags_of(MetaSettings, group=Group("The retraining", sort_key=20)))


def _meta(
    *,
    out: Path | None = None,
    source: str | None = None,
    backbone: str = "pocket_vit",
    weights: Path | None = None,
    plain: Switch = False,
    workers: int = 0,
    device: Device = "auto",
    json: Switch = False,
    given: dict[str, Any],
) -> None:
    """Retrain the weights of a backbone on several labelled data sets, each with an adapter and a head of its own.

    vpeft meta --source pocket/glyphs,pocket/count,pocket/coast --out base.safetensors

    The adapters and heads are thrown away. The new weights are used like any others: vpeft train --backbone pocket_vit
    --weights base.safetensors. Joint training of base and adapters is the default; --order first or second makes inner
    steps of each task.

    Parameters
    ----------
    out:
        The file for the new weights, .safetensors.
    source:
        Labelled data sets of the source tasks, with commas; the training split of each is learnt.
    backbone:
        The backbone that is retrained.
    weights:
        A file of weights to begin from.
    plain:
        Leave the adapters out: plain retraining on all tasks together, to compare with.
    workers:
        Loading processes.
    device:
        The device; auto uses the best one of this machine.
    json:
        Print the losses as JSON instead of sentences.
    """
    settings = validated(MetaSettings, nested(_FLAGS, given), _FLAGS)
    names = split_list(source or "")
    if not names:
        raise CannotMetaLearn("No source task was named. Add --source pocket/glyphs,pocket/count or folders of images.")
    if len(set(names)) < len(names):
        raise CannotMetaLearn(f"--source {source} names a data set twice.")
    if out is None:
        raise CannotMetaLearn("Where to? Add --out FILE.safetensors for the new weights.")
    if out.suffix != ".safetensors":
        raise CannotMetaLearn(f"The new weights are a safetensors file: name it {out.with_suffix('.safetensors')}.")
    model = create_backbone(backbone, pretrained=weights is None, weights=weights)
    preprocessing = Preprocessing.from_model(model)
    tasks = {}
    for number, name in enumerate(names):
        data = open_data(DataConfig(source=name, target="label"))
        tasks[f"task_{number}"] = (Classification(labels=tuple(data.labels)), data.train.prepared(preprocessing))
    console = show.console()
    say = (lambda _: None) if json else (lambda line: console.print(Text(line)))
    losses = meta_learn(model.to(pick_device(device)), tasks, settings, adapt=not plain, workers=workers, say=say)
    save_base(model, out)
    if json:
        show.as_json(
            {"sources": names, "settings": settings.model_dump(mode="json"), "losses": losses, "out": str(out)}
        )
        return
    console.print(Text(f"{out}: {backbone} retrained on {len(names)} tasks, loss {losses[0]:.3f} -> {losses[-1]:.3f}"))


meta = with_flags(_meta, _FLAGS)
