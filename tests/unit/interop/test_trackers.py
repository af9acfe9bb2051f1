"""Each tracker takes a training's numbers, and gives them back when it is read by its own library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vpeft
from tests.unit.interop.adapters import backbone
from vpeft.interop.tracker import Tracked, UnknownTracker, numbers_of, tracker
from vpeft.methods import LoRA


def trained(kind: str, folder: Path) -> list[dict[str, float]]:
    """Two epochs; the numbers of their records."""
    torch.manual_seed(0)
    rows = [(torch.randn(3, 32, 32), number % 2) for number in range(8)]
    tuned = vpeft.tune(backbone("timm_vit"), LoRA(rank=2), num_classes=2, verify=False)
    tracked = Tracked(tracker(kind, folder, "run"), {"method": "lora(rank=2)"})
    result = vpeft.fit(tuned, rows, rows, epochs=2, progress=False, after_epoch=tracked)
    tracked.finish({"top1": 0.5}, step=2)
    assert len(result.history) == 2
    return [numbers_of(record) for record in result.history]


def same(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * max(1.0, abs(b))


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    expected = trained("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for name in ("train/loss", "val/top1", "train/lr"):
        seen = events.Scalars(name)
        assert [one.step for one in seen] == [1, 2]
        assert all(same(one.value, row[name]) for one, row in zip(seen, expected, strict=True)), name
    assert events.Scalars("test/top1")[0].value == 0.5
    assert "settings/text_summary" in events.Tags()["tensors"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trained("wandb", tmp_path)
    assert list(tmp_path.rglob("run-*.wandb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    expected = trained("mlflow", tmp_path)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("vpeft").experiment_id])
    seen = client.get_metric_history(run.info.run_id, "train/loss")
    assert [same(one.value, row["train/loss"]) for one, row in zip(seen, expected, strict=True)] == [True, True]
    assert run.data.params == {"method": "lora(rank=2)"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio(tmp_path: Path) -> None:
    """In a process of its own, as trackio reads the place of its files when it is imported."""
    pytest.importorskip("trackio")
    code = (
        "from pathlib import Path; import sqlite3, sys; from tests.unit.interop.test_trackers import trained\n"
        "rows = trained('trackio', Path('.'))\n"
        "(file,) = Path(sys.argv[1]).rglob('vpeft*.db')\n"
        "held = sqlite3.connect(file).execute('select step, metrics from metrics order by id').fetchall()\n"
        "import json\n"
        "held = [(step, json.loads(values)) for step, values in held]\n"
        "losses = {step: values['train/loss'] for step, values in held if 'train/loss' in values}\n"
        "assert losses == {n + 1: row['train/loss'] for n, row in enumerate(rows)}, losses\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path), "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_unknown_tracker_is_named() -> None:
    with pytest.raises(UnknownTracker, match="'tensorboard'"):
        tracker("tensorbord", ".")


def test_a_tracker_of_ones_own(tmp_path: Path) -> None:
    """The protocol is three methods."""

    class Kept:
        def __init__(self) -> None:
            self.seen: list[object] = []

        def start(self, facts: object) -> None:
            self.seen.append(facts)

        def numbers(self, values: dict[str, float], step: int) -> None:
            self.seen.append((step, sorted(values)[0]))

        def finish(self) -> None:
            self.seen.append("end")

    kept = Kept()
    with Tracked(kept, {"a": 1}) as tracked:
        record = vpeft.fit(
            vpeft.tune(backbone("timm_vit"), LoRA(rank=2), num_classes=2, verify=False),
            [(torch.zeros(3, 32, 32), 0), (torch.ones(3, 32, 32), 1)], epochs=1, progress=False, after_epoch=tracked,
        ).history[0]  # fmt: skip
    assert kept.seen == [{"a": 1}, (record.epoch, "time/images_per_second"), "end"]
