"""Retrieval through the commands: train, stop and go on, score, look for the nearest images with a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from vpeft.cli import main
from vpeft.data.items import in_order

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("always::vpeft.data.problems.DataWarning")]

TASK = 'retrieval(loss=proxy_anchor, dimensions=32, sampler="m_per_class(m=4)", recall_at=[1, 2])'
WORDS = ["--data", "photos", "--backbone", "pocket_vit", "--method", "lora", "--task", TASK]
SHORT = ["--data.test-fraction", "0.5", "--epochs", "2", "--batch", "16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `photos/` and the run `a`."""
    here = tmp_path_factory.mktemp("retrieval")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert main(["data", "export", "digits", "photos", "--per-class", "12"]) == 0
        assert main(["train", *WORDS, *SHORT, "--out", "a"]) == 0
        yield here


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    capsys.readouterr()


ADAPTER = "a/adapter.safetensors"


def test_the_record_has_the_scores_and_the_file_no_proxies() -> None:
    record = json.loads(Path("a/run.json").read_text(encoding="utf-8"))
    assert record["state"] == "done" and not record["data"]["problems"]
    splits = record["data"]["splits"]
    labels = {name: {label for label, count in split["per_label"].items() if count} for name, split in splits.items()}
    assert in_order(labels["test"]) == ["5", "6", "7", "8", "9"] and not labels["train"] & labels["val"]
    assert {"recall_at_1", "recall_at_2", "map_at_r", "r_precision"} == set(record["test"]["values"])
    with safe_open(ADAPTER, framework="pt") as file:
        assert "head.linear.weight" in file.keys() and not [one for one in file.keys() if "proxies" in one]  # noqa: SIM118


def test_the_same_recipe_gives_the_same_file() -> None:
    assert main(["train", "a/recipe.toml", "--out", "again"]) == 0
    with safe_open(ADAPTER, framework="pt") as one, safe_open("again/adapter.safetensors", framework="pt") as other:
        assert all(bool((one.get_tensor(key) == other.get_tensor(key)).all()) for key in one.keys())  # noqa: SIM118


def test_evaluation_leaves_out_the_classes_of_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", ADAPTER, "--data", "photos", "--json"]) == 0
    told = capsys.readouterr()
    scores = json.loads(told.out)
    assert "are of classes that training had" in told.err
    record = json.loads(Path("a/run.json").read_text(encoding="utf-8"))
    assert scores["count"] == record["test"]["count"]
    assert scores["values"] == pytest.approx(record["test"]["values"])
    assert scores["details"]["of"] == {"queries": scores["count"], "alone": 0}
    assert main(["evaluate", ADAPTER, "--data", "photos", "--data.split-by", "images", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] > scores["count"]


@pytest.mark.parametrize("split", ["val", "test", "train"])
def test_the_split_that_is_named_is_scored(split: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", ADAPTER, "--data", "photos", "--split", split, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    record = json.loads(Path("a/run.json").read_text(encoding="utf-8"))
    assert scores["count"] == record["data"]["splits"][split]["count"]
    if split != "train":
        own = record["test"] if split == "test" else record["result"]["val"]
        assert scores["values"] == pytest.approx(own["values"])


def test_the_nearest_images_of_a_gallery_are_printed_and_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    query = sorted(Path("photos/test/7").iterdir())[0]
    words = ["predict", ADAPTER, str(query), "--gallery", "photos/test", "--top", "3"]
    assert main([*words, "--draw", "drawn", "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    rows = found["predictions"]
    assert len(rows) == 3 and all(row["image"] != str(query) for row in rows)
    assert all(row["label"] == Path(row["image"]).parent.name for row in rows)
    assert [row["similarity"] for row in rows] == sorted((row["similarity"] for row in rows), reverse=True)
    with Image.open(f"drawn/{query.stem}.png") as picture:
        assert picture.width > 4 * 256
    assert main([*words, "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "image,rank,image,label,similarity"


def test_without_a_gallery_the_embedding_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    query = sorted(Path("photos/test/7").iterdir())[0]
    assert main(["predict", ADAPTER, str(query), "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert len(found["embedding"]) == 32 and abs(sum(x * x for x in found["embedding"]) - 1) < 1e-4


def test_a_classifier_has_no_gallery(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "photos", "--backbone", "pocket_vit", "--method", "linear_probe", "--epochs", "1"]
    assert main(["train", *words, "--out", "classes"]) == 0
    query = str(sorted(Path("photos/test/7").iterdir())[0])
    assert main(["predict", "classes/adapter.safetensors", query, "--gallery", "photos/test"]) == 1
    assert "Tasks that do: retrieval" in capsys.readouterr().err
