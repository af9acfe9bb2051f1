"""Several recipes in one command: each leaves what it leaves alone, bit by bit, whatever happens to the others."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from vpeft.cli import main
from vpeft.data.datasets import open_data
from vpeft.training.grouping import DataReading, passes
from vpeft.training.loop import Steps, Training
from vpeft.training.recipe import Recipe
from vpeft.training.runs import CannotBegin, UnsuitableRuns, run_recipes

COLOURS = {"blue": (0, 0, 200), "red": (200, 0, 0)}
METHODS = {"probe": "linear_probe", "low": "lora", "other": "lora"}
RUNS = tuple(METHODS)


@timm.models.register_model
def several_test_vit(pretrained: bool = False, **options: object) -> VisionTransformer:
    """A ViT of two blocks for 16x16 pixels, known to timm by name as any other."""
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    model.pretrained_cfg = {"input_size": (3, 16, 16), "architecture": "several_test_vit", "crop_pct": 1.0}  # type: ignore[assignment]
    return model


def stated(name: str, **changed: Any) -> str:
    """A recipe file; `other` reads another folder than the first two."""
    given = {
        "lr": 0.01,
        "seed": 0,
        "out": f"alone/{name}",
        "source": "more" if name == "other" else "photos",
        "augmentation": "none",
        **changed,
    }
    return f"""
backbone = "several_test_vit"
pretrained = false
out = "{given["out"]}"
[data]
source = "{given["source"]}"
augmentation = "{given["augmentation"]}"
[method]
name = "{METHODS[name]}"
[optimisation]
epochs = 2
batch = 8
lr = {given["lr"]}
seed = {given["seed"]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of images, three recipes, and what each leaves when it is carried out alone, in `alone/NAME`."""
    here = tmp_path_factory.mktemp("several")
    numbers = np.random.default_rng(0)
    for source, count in (("photos", 14), ("more", 8)):
        for name, colour in COLOURS.items():
            (here / source / name).mkdir(parents=True)
            for index in range(count):
                noisy = numbers.normal(colour, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(here / source / name / f"{index}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for name in RUNS:
            Path(f"{name}.toml").write_text(stated(name), encoding="utf-8")
            assert main(["train", f"{name}.toml", "--json"]) == 0
    return here


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    capsys.readouterr()


FILES = [f"{name}.toml" for name in RUNS]


def record(folder: Path) -> dict[str, Any]:
    """A run's record without times, and without where it is."""
    found: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    result = found["result"]
    for key in ("seconds", "images_per_second", "peak_memory", "resumed_at"):
        result.pop(key)
    for epoch in result["history"]:
        epoch.pop("seconds"), epoch.pop("images_per_second")
    found["recipe"].pop("out")  # "together/low" and not "alone/low"
    return {key: value for key, value in found.items() if key not in ("started", "finished")}


def assert_as_alone(out: str, *names: str) -> None:
    for name in names or RUNS:
        here, alone = Path(out) / name, Path("alone") / name
        assert sorted(file.name for file in here.iterdir()) == sorted(file.name for file in alone.iterdir())
        assert (here / "adapter.safetensors").read_bytes() == (alone / "adapter.safetensors").read_bytes(), name
        assert record(here) == record(alone)


def test_each_run_leaves_what_it_leaves_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *FILES, "--out", "together", "--json"]) == 0
    said = capsys.readouterr()
    figures = json.loads(said.out)
    assert [one["recipe"] for one in figures] == FILES
    assert [one["state"] for one in figures] == ["done"] * 3
    assert [one["adapter"] for one in figures] == [f"together/{name}/adapter.safetensors" for name in RUNS]
    lines = said.err.splitlines()
    first = lines.index("3 runs in 2 passes, one after the other")
    assert lines[first + 1] == "pass 1: probe, low"
    assert lines[first + 2] == "pass 2: other (not with probe, low: data.source is 'more' here and 'photos' there)"
    assert first < min(number for number, line in enumerate(lines) if "epoch 1/2" in line)
    assert_as_alone("together")


def test_stopped_in_the_middle_the_same_command_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", *FILES, "--out", "stopped", "--json"]
    steps, plain = [0], Training.step

    def step(its: Training, *batch: Any) -> Steps:
        steps[0] += 1
        if steps[0] == 4:
            signal.raise_signal(signal.SIGTERM)
        yield from plain(its, *batch)

    monkeypatch.setattr(Training, "step", step)
    assert main(words) == 130
    figures = json.loads(capsys.readouterr().out)
    assert [one["state"] for one in figures] == ["stopped"] * 3
    assert figures[0]["adapter"] is None
    assert not Path("stopped/other").exists(), "the second pass is not begun"
    assert main(words) == 0
    assert json.loads(Path("stopped/probe/run.json").read_text())["result"]["resumed_at"] == 4
    assert_as_alone("stopped")


def test_augmented_runs_of_one_seed_go_side_by_side(tmp_path: Path) -> None:
    """The images of a batch are drawn once for both; alone a head computes its last block otherwise, hence `lora`."""
    for name, lr in (("slow", 0.001), ("fast", 0.01)):
        file = tmp_path / f"{name}.toml"
        file.write_text(stated("low", augmentation="flip", lr=lr, out=tmp_path / "alone" / name), encoding="utf-8")
        assert main(["train", str(file), "--json"]) == 0
    assert main(["train", *(str(tmp_path / f"{name}.toml") for name in ("slow", "fast")), "--out", str(tmp_path)]) == 0
    for name in ("slow", "fast"):
        one, other = (folder / name / "adapter.safetensors" for folder in (tmp_path, tmp_path / "alone"))
        assert one.read_bytes() == other.read_bytes()


def test_a_run_that_fails_does_not_end_the_others(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Path("bad.toml").write_text(stated("low", lr=1e25, out="unused"), encoding="utf-8")
    out = tmp_path / "failing"
    assert main(["train", "probe.toml", "bad.toml", "other.toml", "--out", str(out), "--warmup", "0"]) == 1
    said = capsys.readouterr()
    assert "bad: failed: " in said.err
    assert "not finite" in said.err
    assert "probe:" in said.out
    assert json.loads((out / "bad" / "run.json").read_text())["state"] == "failed"
    assert not (out / "bad" / "adapter.safetensors").exists()
    assert (out / "probe" / "adapter.safetensors").exists()
    assert (out / "other" / "adapter.safetensors").exists()


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_that_becomes_unreadable_ends_its_pass_alone(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [Recipe.from_toml(f"{name}.toml", {"out": str(tmp_path / name)}) for name in ("low", "other")]
    lost = Path(getattr(open_data(recipes[0].data), split).path(0))
    content = lost.read_bytes()

    def damaging(readings: Sequence[DataReading]) -> list[list[int]]:
        lost.write_bytes(b"not an image")  # all data sets have been opened by now
        return passes(readings)

    monkeypatch.setattr("vpeft.training.runs.passes", damaging)
    try:
        low, other = run_recipes(recipes, progress=False, show=False)
    finally:
        lost.write_bytes(content)
    assert (low.state, other.state) == ("failed", "done")
    assert lost.name in str(low.result.reason)
    assert low.adapter is None
    monkeypatch.setattr("vpeft.training.runs.passes", passes)
    again = run_recipes(recipes, progress=False, show=False)
    assert [one.state for one in again] == ["done", "done"]
    assert again[0].result.resumed_at == (low.result.steps or None)
    assert_as_alone(str(tmp_path), "low", "other")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("probe.toml", "nowhere.toml"), "There is no recipe file nowhere.toml"),
        (("probe.toml", "same.toml"), "probe and same both write into alone/probe"),
        (("probe.toml", "probe.toml"), "probe.toml and probe.toml both write into alone/probe"),
        (("probe.toml", "again/probe.toml", "--out", "never"), "would both write into never/probe"),
        (("probe.toml", "low.toml", "--out", "never", "--adaptformer.scale", "1"), "not adaptformer"),
        (("probe.toml", "low.toml", "--out", "never", "--backbone", "no_such_vit"), "probe: "),
        (("probe.toml", "low.toml", "--lr", "0.5"), "probe: The checkpoint in alone/probe belongs to another run"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("same.toml").write_text(stated("low", out="alone/probe"), encoding="utf-8")
    Path("again").mkdir(exist_ok=True)
    Path("again/probe.toml").write_text(stated("probe"), encoding="utf-8")
    before = {file: file.stat().st_mtime_ns for file in Path("alone").rglob("*") if file.is_file()}
    assert main(["train", *words]) == 1
    assert said in capsys.readouterr().err
    assert not Path("never").exists()
    assert {file: file.stat().st_mtime_ns for file in Path("alone").rglob("*") if file.is_file()} == before


def test_from_python(tmp_path: Path) -> None:
    recipes = [Recipe.from_toml(f"{name}.toml", {"out": str(tmp_path / name)}) for name in RUNS[:2]]
    outcomes = run_recipes(recipes, progress=False, show=False, test=False)
    assert [one.state for one in outcomes] == ["done", "done"]
    assert [one.recipe for one in outcomes] == recipes
    assert [one.test for one in outcomes] == [None, None]
    assert outcomes[0].data.train is outcomes[1].data.train
    with pytest.raises(UnsuitableRuns, match="no recipes"):
        run_recipes([])
    with pytest.raises(UnsuitableRuns, match="run 2 have none"):
        run_recipes([recipes[0], recipes[1].model_copy(update={"out": None})])
    with pytest.raises(UnsuitableRuns, match="2 recipes and 1 names"):
        run_recipes(recipes, names=["a"])
    early = Recipe.from_toml("probe.toml", {"out": None, "data.val_fraction": 0, "optimisation.keep": "best"})
    with pytest.raises(CannotBegin, match="run 1: .*needs validation images"):
        run_recipes([early], progress=False, show=False)
