"""The command line from end to end: a folder of images with broken files in it, trained on, used, scored, compared."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from vpeft.cli import main
from vpeft.cli.demo_stories import STORIES

# Elsewhere a warning is an error; here it is what the command line prints.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("always::vpeft.data.problems.DataWarning")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `photos/` (train, val, test) and the run `a` that was trained on it."""
    here = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert main(["data", "export", "digits", "photos", "--per-class", "20"]) == 0
        (here / "photos" / "train" / "3" / "broken.png").write_bytes(b"not an image")
        words = ["--data", "photos", "--backbone", "pocket_vit", "--method", "lora", "--lora.rank", "2"]
        assert main(["train", *words, "--epochs", "2", "--lr", "5e-3", "--out", "a"]) == 0
        yield here


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    capsys.readouterr()


ADAPTER = "a/adapter.safetensors"


def test_training_leaves_an_adapter_and_a_record_with_the_broken_file_named() -> None:
    record = json.loads(Path("a/run.json").read_text(encoding="utf-8"))
    assert record["state"] == "done"
    assert record["recipe"]["method"] == {**record["recipe"]["method"], "name": "lora", "rank": 2}
    assert [one["kind"] for one in record["data"]["problems"]] == ["unreadable"]
    assert "broken.png" in record["data"]["problems"][0]["name"]
    with safe_open(ADAPTER, framework="pt") as file:
        names = list(file.keys())
    assert any(name.startswith("blocks.0.attn.q.parallel.") for name in names)
    assert "head.weight" in names
    # Rank 2 on q and v of six blocks of width 160, and the head: a small file.
    assert Path(ADAPTER).stat().st_size < 100_000


def test_the_recipe_that_is_left_behind_gives_the_same_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "a/recipe.toml", "--out", "again", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    before = json.loads(Path("a/run.json").read_text(encoding="utf-8"))
    assert figures["test_top1"] == before["test"]["values"]["top1"]
    with safe_open(ADAPTER, framework="pt") as one, safe_open("again/adapter.safetensors", framework="pt") as other:
        assert all(bool((one.get_tensor(key) == other.get_tensor(key)).all()) for key in one.keys())  # noqa: SIM118


def test_strict_stops_at_the_broken_file(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "photos", "--backbone", "pocket_vit", "--method", "lora", "--epochs", "1", "--out", "never"]
    assert main(["train", *words, "--strict"]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert not Path("never/adapter.safetensors").exists()


def test_predict_in_all_formats(capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(Path("photos/test/3").iterdir())
    assert main(["predict", ADAPTER, "photos/test/3", "--top", "3", "--format", "json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["image"] for answer in answers] == [str(file) for file in files]
    for answer in answers:
        values = [one["probability"] for one in answer["predictions"]]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert {one["label"] for one in answer["predictions"]} <= {str(digit) for digit in range(10)}

    assert main(["predict", ADAPTER, "photos/test/3/*", "--top", "3", "--format", "csv", "--batch", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["label"] for row in rows] == [one["label"] for answer in answers for one in answer["predictions"]]

    assert main(["predict", ADAPTER, str(files[0]), "--top", "1"]) == 0
    shown = capsys.readouterr().out
    assert answers[0]["predictions"][0]["label"] in shown
    assert str(files[0]) in shown


def test_predict_skips_what_it_cannot_read_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = sorted(Path("photos/test/1").iterdir())[0], "photos/train/3/broken.png"
    assert main(["predict", ADAPTER, bad, str(good), "--format", "json"]) == 0
    said = capsys.readouterr()
    assert [one["image"] for one in json.loads(said.out)] == [str(good)]
    assert "broken.png" in said.err
    assert main(["predict", ADAPTER, bad, str(good), "--strict"]) == 1
    assert main(["predict", ADAPTER, bad]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict", "nowhere.safetensors", "photos"), "nowhere.safetensors"),
        (("predict", ADAPTER, "no/such/folder"), "no/such/folder"),
        (("predict", ADAPTER), "No images"),
        (("predict", ADAPTER, "photos", "--top", "0"), "--top"),
        (("predict", ADAPTER, "photos", "--formt", "json"), "Did you mean --format?"),
        (("evaluate", ADAPTER), "--data"),
        (("evaluate", ADAPTER, "--data", "no/such/folder"), "no/such/folder"),
        (("train", "no.toml"), "no.toml"),
        (("report", "no/ledger"), "no/ledger"),
        (("bench", "--suite", "digts"), "Did you mean 'digits'?"),
        (("explain", "lroa"), "or 'lora'"),
        (("explain", "lora", "--backbone", "pocket_vti"), "pocket_vit"),
        (("data", "check", "digits", "--val-fraction", "2"), "--val-fraction"),
    ],
)
def test_mistakes_end_with_one_message(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert main(list(words)) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err
    assert not list(folder.glob("vpeft-bug-*"))


def test_a_damaged_adapter_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ADAPTER, "damaged.safetensors")
    data = bytearray(Path("damaged.safetensors").read_bytes())
    data[-5] ^= 0xFF
    Path("damaged.safetensors").write_bytes(bytes(data))
    assert main(["predict", "damaged.safetensors", "photos/test/3"]) == 1
    assert "damaged.safetensors" in capsys.readouterr().err


def test_evaluate_gives_the_score_that_training_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", ADAPTER, "--data", "photos", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    recorded = json.loads(Path("a/run.json").read_text(encoding="utf-8"))["test"]
    assert scores["values"] == recorded["values"]
    assert scores["details"]["confusion"] == recorded["details"]["confusion"]
    assert main(["evaluate", ADAPTER, "--data", "photos"]) == 0
    assert f"top1 {recorded['values']['top1']:.4}" in capsys.readouterr().out


def test_bench_and_report(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--suite", "digits", "--tier", "smoke", "--methods", "linear_probe,lora(rank=2)", "--no-show"]
    assert main([*words, "--out", "ledger", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["runs"], first["states"]["done"]) == (2, 2)
    stamps = {file: file.stat().st_mtime_ns for file in Path("ledger/runs").iterdir()}
    assert main([*words, "--out", "ledger", "--json"]) == 0
    assert {file: file.stat().st_mtime_ns for file in Path("ledger/runs").iterdir()} == stamps
    capsys.readouterr()
    assert main(["report", "ledger", "--html", "page.html", "--png", "p.png", "--csv", "r.csv"]) == 0
    assert "lora(rank=2)" in capsys.readouterr().out
    assert "lora(rank=2)" in Path("page.html").read_text(encoding="utf-8")
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")
    assert len(Path("r.csv").read_text(encoding="utf-8").splitlines()) == 3


def test_explain_counts_as_training_did(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explain", "lora", "--backbone", "pocket_vit", "--lora.rank", "2", "--classes", "10"]
    assert main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    recorded = json.loads(Path("a/run.json").read_text(encoding="utf-8"))["plan"]
    assert plan["trainable"] == recorded["trainable"]
    assert plan["trainable_with_head"] == recorded["trainable_with_head"]
    assert main(words) == 0
    assert "blocks.0" in capsys.readouterr().out


def test_lists_are_those_of_the_registries(capsys: pytest.CaptureFixture[str]) -> None:
    from vpeft.backbones.describe import families
    from vpeft.methods import names

    assert main(["methods", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == names()
    assert main(["backbones", "--json"]) == 0
    assert [one["family"] for one in json.loads(capsys.readouterr().out)] == list(families())
    assert main(["backbones", "vit_small"]) == 0
    assert "vit_small_patch16_224" in capsys.readouterr().out
    assert main(["methods", "lora"]) == 0
    assert "--lora.rank" in capsys.readouterr().out


def test_doctor_finds_nothing_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == 0
    assert {one["what"]: one["ok"] for one in found["findings"]}["adapt, save, load"] is True


def test_demo_goes_all_the_way(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    story = STORIES["classification"]
    assert story.second is not None
    fewer = replace(
        story,
        first=replace(story.first, methods=("linear_probe", "ssf")),
        second=replace(story.second, methods=("linear_probe",)),
    )
    monkeypatch.setattr("vpeft.cli.demo.STORIES", {"classification": fewer})
    assert main(["demo", "--out", "demo", "--epochs", "1", "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "the reloaded adapter has top-1" in said
    assert "on 797 images, as before it was saved" in said
    for file in ("report.html", "comparison.png", "predictions.png", "adapter.safetensors"):
        assert (Path("demo") / file).stat().st_size > 1000
    assert len(list(Path("demo/unseen").glob("*.png"))) == 24
    records = [json.loads(file.read_text(encoding="utf-8")) for file in Path("demo/ledger/runs").glob("*.json")]
    assert {record["suite"] for record in records} == {"digits", "pocket"}
    finals = [r for r in records if r["identity"]["purpose"] == "final" and r["suite"] == "digits"]
    best = max(finals, key=lambda record: record["chosen"]["validation"])
    assert f"{best['label']}: {best['chosen']['validation']:.1%} on validation" in said
    # Called again nothing is trained again, and the same is said.
    assert main(["demo", "--out", "demo", "--epochs", "1", "--workers", "1"]) == 0
    assert "0 made" in capsys.readouterr().out


def test_demo_of_detection_goes_all_the_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    story = STORIES["detection"]
    fewer = replace(story, first=replace(story.first, methods=("linear_probe", "ssf")))
    monkeypatch.setattr("vpeft.cli.demo.STORIES", {"detection": fewer})
    assert main(["demo", "--task", "detection", "--epochs", "1", "--workers", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "on 400 images, as before it was saved" in said
    out = story.folder
    for file in ("report.html", "comparison.png", "predictions.png", "adapter.safetensors"):
        assert (out / file).stat().st_size > 1000
    shown = sorted(path.name for path in (out / "unseen").iterdir())
    assert shown == sorted(path.name for path in (out / "drawn").iterdir())
    assert len(shown) == story.drawn
    records = [json.loads(file.read_text(encoding="utf-8")) for file in (out / "ledger/runs").glob("*.json")]
    assert {record["identity"]["purpose"] for record in records} == {"final"}
    best = max(records, key=lambda record: record["chosen"]["validation"])
    assert f"{best['label']}: {best['chosen']['validation']:.1%} on validation" in said


def test_evaluation_among_the_classes_of_the_data_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("3", "8"):
        shutil.copytree(Path("photos/test") / label, Path("few") / label)
    scores = []
    for more in ([], ["--classes", "data"]):
        assert main(["evaluate", ADAPTER, "--data", "few", "--json", *more]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[1]["count"] == scores[0]["count"] and scores[1]["details"]["labels"] == ["3", "8"]
    assert scores[1]["values"]["top1"] >= scores[0]["values"]["top1"]
    assert main(["evaluate", ADAPTER, "--data", "few", "--classes", "imagenet-a"]) == 1
    assert "classes that the adapter does not know, such as n01498041" in capsys.readouterr().err.replace("'", "")
