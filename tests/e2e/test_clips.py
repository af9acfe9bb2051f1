"""Clips from end to end: a folder of videos with broken files in it, trained on, used, scored, stopped and taken up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.data.videos import write_sound, write_video
from vpeft.cli import main
from vpeft.injection.adapter_file import read

# Elsewhere a warning is an error; here it is what the command line prints.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("always::vpeft.data.problems.DataWarning")]

WORDS = ["--data", "clips", "--backbone", "pocket_vit", "--method", "lora", "--lora.rank", "2"]
CLIP = ["--clip.frames", "4", "--clip.stride", "2", "--data.max-unreadable", "0.2"]
ADAPTER = "a/adapter.safetensors"


def _stripes(level: int, count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 60, (48, 64, 3)) + level
    return [np.clip(base + 4 * number, 0, 255).astype(np.uint8) for number in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `clips/` and the run `a` that was trained on it."""
    here = tmp_path_factory.mktemp("clips")
    for split, count in (("train", 8), ("val", 3), ("test", 4)):
        for level, kind in ((20, "dark"), (170, "light")):
            for number in range(count):
                seed = 100 * level + number + 10 * len(split)
                write_video(here / "clips" / split / kind / f"{number}.mp4", _stripes(level, 6 + number, seed))
    write_sound(here / "clips" / "train" / "dark" / "sound.mp4")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert main(["train", *WORDS, *CLIP, "--epochs", "4", "--lr", "5e-3", "--out", "a"]) == 0
        yield here


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    capsys.readouterr()


def test_training_leaves_an_adapter_that_knows_how_clips_are_read() -> None:
    record = json.loads(Path("a/run.json").read_text(encoding="utf-8"))
    assert record["state"] == "done" and record["result"]["val"]["values"]["top1"] == 1.0
    assert [(one["kind"], one["name"]) for one in record["data"]["problems"]] == [
        ("unreadable_clip", "train/dark/sound.mp4")
    ]
    manifest, _ = read(Path(ADAPTER))
    assert manifest.preprocessing is not None
    assert manifest.preprocessing["clip"]["frames"] == 4 and manifest.preprocessing["clip"]["stride"] == 2


def test_videos_are_predicted_with_the_frames_that_were_seen(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["clips/test/light", "clips/train/dark/sound.mp4", "--format", "json", "--draw", "seen", "--top", "1"]
    assert main(["predict", ADAPTER, *words, "--clip.views", "2x3"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [Path(one["image"]).name for one in found] == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
    assert {one["predictions"][0]["label"] for one in found} == {"light"}
    assert "sound.mp4: it has sound and no pictures" in " ".join(err.split())
    with Image.open("seen/0.png") as strip:
        assert strip.width > 4 * 100 and strip.height > 2 * 100


def test_evaluation_with_views(capsys: pytest.CaptureFixture[str]) -> None:
    for views in ("1x1", "2x3"):
        words = ["--data", "clips", "--data.max-unreadable", "0.2", "--clip.views", views, "--json"]
        assert main(["evaluate", ADAPTER, *words]) == 0
        scores = json.loads(capsys.readouterr().out)
        assert scores["count"] == 8 and scores["values"]["top1"] == 1.0


def test_the_recipe_that_is_left_behind_gives_the_same_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "a/recipe.toml", "--out", "again", "--json"]) == 0
    assert (read(Path("again/adapter.safetensors"))[0].tensors_digest) == read(Path(ADAPTER))[0].tensors_digest


def test_a_folder_is_checked_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "clips", "--max-unreadable", "0.2", "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["layout"] == "clip_folder" and manifest["splits"]["train"]["count"] == 16
