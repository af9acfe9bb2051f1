"""Suites of images that users keep: small files of the same layouts, with faults, and runs under every protocol."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vpeft.bench import BenchConfig, Ledger, State, run_bench
from vpeft.bench.key import Identity
from vpeft.bench.listed_task import IncompleteData
from vpeft.bench.protocol import PROTOCOLS, protocol
from vpeft.bench.sealed import FinalEvaluator, TestSetSealed
from vpeft.bench.splits import SplitItems
from vpeft.bench.suite import BenchTask, DataFolder, NoDataFolder, UnknownTask
from vpeft.bench.suites import open_task, suite, suites
from vpeft.cli import main
from vpeft.data.config import DataConfig
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import find_source
from vpeft.method_spec import MethodSpec

from .small_sets import WRITERS, take_small_numbers

# Epochs and the batch depart from the protocols, so that a run takes a second.
BRIEF = {"epochs": 1, "batch": 4}


@pytest.fixture(autouse=True)
def fresh() -> None:
    open_task.cache_clear()


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small files of the suite that the test names, whose numbers count as published."""
    take_small_numbers(monkeypatch)
    WRITERS[request.param](tmp_path / "data")
    return tmp_path / "data"


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("root", [name], indirect=True)


def sealed_test(task: BenchTask) -> SplitItems:
    """The test images, opened as the final evaluator of a run opens them."""
    identity = Identity(
        purpose="final",
        task=task.full_name,
        data=task.digest,
        protocol="p@1",
        methods=(MethodSpec(name="linear_probe", fields={}),),
        backbone="b",
        weights="w",
        optimisation={},
        seed=0,
    )
    evaluator = FinalEvaluator(identity, task.test)
    evaluator.reading = True
    opened = task.test.opened(evaluator)
    assert isinstance(opened, SplitItems)
    return opened


def bench(
    root: Path, out: Path, name: str, tier: str, *tasks: str, methods: str = "linear_probe", **rest: object
) -> Ledger:
    config = {"suite": name, "tier": tier, "root": root, "tasks": tasks, "methods": (methods,), "out": out, **rest}
    return run_bench(BenchConfig.model_validate({"show": False, "optimisation": BRIEF, **config}))


@pytest.mark.parametrize("name", sorted(suites()))
def test_a_suite_states_what_it_is(name: str) -> None:
    one = suite(name)
    assert one.version >= 1 and one.licence and one.about
    assert (one.open is None) == bool(one.layout), "a suite of files says what its folder holds"
    assert set(one.facts) <= set(one.tasks)
    for tier in one.tiers.values():
        assert tier.protocol in PROTOCOLS
    assert one.tasks or one.tasks_in is not None


def test_the_leading_value_of_offline_suites_is_the_stated_one() -> None:
    for name in ("digits", "pocket"):
        one = suite(name)
        learns = one.task(one.tasks[0]).learns
        assert (learns.leading.name, learns.leading.higher_is_better) == (one.metric, one.higher_is_better)


@pytest.mark.parametrize("root", sorted(set(WRITERS) - {"folder"}), indirect=True)
def test_every_task_opens_and_is_exact(root: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["root"]
    one, data = suite(name), DataFolder(root)
    for task in one.tasks:
        opened = one.task(task, data)
        facts = one.facts[task]
        assert isinstance(opened.train, SplitItems) and opened.train.target == "label"
        assert opened.learns.leading.name == one.metric
        with pytest.raises(TestSetSealed):
            len(opened.test)
        assert opened.labels and opened.train.content != opened.val.content
        if facts.train is not None:
            assert opened.train.size > 0
    first = one.tasks[0]
    assert one.task(first, data).digest == one.task(first, data).digest
    assert one.task(first, data).digest != one.task(one.tasks[1], data).digest


@of("vtab1k")
def test_a_task_changes_its_digest_with_a_test_image(root: Path) -> None:
    one = suite("vtab1k")
    before = one.task("kitti", DataFolder(root))
    assert (before.train.size, before.val.size, before.train_and_val().size) == (8, 4, 12)
    assert sealed_test(before).size == 6
    shutil.copy(root / "kitti/images/test/000001.jpg", root / "kitti/images/test/000000.jpg")
    assert one.task("kitti", DataFolder(root)).digest != before.digest


@of("vtab1k")
def test_faults_of_lists_are_named(root: Path) -> None:
    one, exact = suite("vtab1k"), DataFolder(root)
    (root / "cifar/images/train800/000001.jpg").unlink()
    (root / "cifar/images/test/000002.jpg").write_bytes(b"none")
    with pytest.raises(IncompleteData, match=r"1 missing: train/images/train800/000001.jpg; 1 damaged: test/images"):
        one.task("cifar", exact)
    lines = (root / "dtd/test.txt").read_text().splitlines()
    (root / "dtd/test.txt").write_text("\n".join(lines[:-1]))
    with pytest.raises(IncompleteData, match="5 images in test, published: 6.*--tier smoke"):
        one.task("dtd", exact)
    assert one.task("dtd", DataFolder(root, exact=False)).labels == ("0", "1")
    (root / "svhn/train800.txt").write_text("images/train800/000000.jpg 7\n" * 8)
    with pytest.raises(IncompleteData, match="labels that are no class: 7"):
        one.task("svhn", exact)
    shutil.rmtree(root / "sun397")
    with pytest.raises(IncompleteData, match="no folder sun397"):
        one.task("sun397", exact)
    with pytest.raises(UnknownTask, match="Did you mean 'cifar'"):
        one.task("cifra", exact)


def test_folders_must_be_named_where_they_are_needed(tmp_path: Path) -> None:
    with pytest.raises(NoDataFolder, match="--root. It holds TASK/train800.txt"):
        suite("vtab1k").task("cifar")
    with pytest.raises(NoDataFolder, match="leave out --root"):
        suite("pocket").task("count", DataFolder(tmp_path))
    with pytest.raises(NoDataFolder, match="There is no folder"):
        suite("fgvc").task("cub", DataFolder(tmp_path / "none"))


@of("fgvc")
def test_faults_of_fgvc_are_named(root: Path) -> None:
    one, exact = suite("fgvc"), DataFolder(root)
    assert one.task("cub", exact).labels == ("3", "7"), "ids of all splits are numbered together"
    (root / "CUB_200_2011/images/0.png").unlink()
    with pytest.raises(IncompleteData, match="fgvc/cub: images are 1 missing: train/0.png"):
        one.task("cub", exact)
    (root / "nabirds/val.json").unlink()
    with pytest.raises(IncompleteData, match=r"no val\.json"):
        one.task("nabirds", exact)
    (root / "StanfordCars/train.json").write_text('{"0.png": "Audi"}')
    with pytest.raises(DataError, match="needs class ids"):
        one.task("cars", exact)


@of("fgvc-few-shot")
def test_draws_of_few_shot_sets_are_tasks(root: Path) -> None:
    one, exact = suite("fgvc-few-shot"), DataFolder(root)
    assert len(one.tasks) == 75
    tasks = [one.task(f"pets-2-{draw}", exact) for draw in range(3)]
    assert {task.train.size for task in tasks} == {4} and {task.val.size for task in tasks} == {0}
    assert len({task.digest for task in tasks}) == 3
    (root / "oxford-pets/annotations/train_meta.list.num_shot_2.seed_1").unlink()
    with pytest.raises(DataError, match="no list of 2 shots with seed 1"):
        one.task("pets-2-1", exact)


@of("cifar")
def test_cifar_is_read_from_plain_bytes(root: Path) -> None:
    one, exact = suite("cifar"), DataFolder(root)
    task = one.task("cifar100", exact)
    assert task.labels == ("apple", "bear") and (task.train.size, task.val.size) == (18, 2)
    listing = find_source(DataConfig(source=str(root / "cifar-10-batches-bin"))).read(
        DataConfig(source=str(root / "cifar-10-batches-bin"))
    )
    first = listing.splits["train"][5]
    assert (first.name, first.label) == ("data_batch_2/00001", "bear")
    assert first.picture.decode().getpixel((0, 0))[0] >= 160, "bright, as its class is"
    test = root / "cifar-100-binary/test.bin"
    data = test.read_bytes()
    test.write_bytes(data[:-1])
    with pytest.raises(DataError, match="no whole records of 3074"):
        one.task("cifar100", exact)
    test.write_bytes(b"\x00\x09" + data[2:])
    with pytest.raises(DataError, match="image 0, is of class 9, and there are 2 names"):
        one.task("cifar100", exact)


@of("imagenet-shift")
def test_variants_of_imagenet_are_tested_in_their_classes(root: Path) -> None:
    one, exact = suite("imagenet-shift"), DataFolder(root)
    whole, part = one.task("imagenet", exact), one.task("imagenet-a", exact)
    assert len(whole.labels) == 3 and part.labels == whole.labels[:2]
    assert (part.train.size, part.val.size) == (32, 8)
    assert isinstance(whole.train, SplitItems) and isinstance(whole.val, SplitItems)
    assert not {item.name for item in whole.train.items} & {item.name for item in whole.val.items}
    v2 = sealed_test(one.task("imagenet-v2", exact))
    assert {item.label for item in v2.items} == set(whole.labels), "numbers count the ids in their order"
    (root / "imagenet-r/n00000077").mkdir()
    shutil.copy(root / "imagenet-r/n00000000/140.png", root / "imagenet-r/n00000077/1.png")
    with pytest.raises(IncompleteData, match="n00000077"):
        one.task("imagenet-r", exact)


@of("folder")
def test_folders_of_the_user_are_tasks(root: Path, tmp_path: Path) -> None:
    one = suite("folder").at(DataFolder(root))
    assert one.tasks == ("split", "whole")
    whole, split = (one.task(name, DataFolder(root)) for name in ("whole", "split"))
    assert (whole.train.size, whole.val.size, sealed_test(whole).size) == (14, 3, 3)
    assert (split.train.size, split.val.size, sealed_test(split).size) == (20, 20, 20)
    (tmp_path / "empty").mkdir()
    with pytest.raises(IncompleteData, match="holds no data set"):
        suite("folder").at(DataFolder(tmp_path / "empty"))


@of("fgvc")
def test_the_command_runs_a_suite_of_files(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    ask = ["bench", "--suite", "fgvc", "--root", str(root), "--tier", "smoke", "--tasks", "cub", "--out", str(out)]
    ask += ["--methods", "linear_probe", "--epochs", "1", "--json"]
    for _ in range(2):
        assert main(ask) == 0
        assert json.loads(capsys.readouterr().out)["states"]["done"] == 1
    (record,) = Ledger(out)
    assert record.identity.protocol == "fgvc-smoke@1" and record.scores is not None and record.scores.count == 6
    shutil.copy(root / "CUB_200_2011/images/0.png", root / "CUB_200_2011/images/1.png")
    open_task.cache_clear()
    assert main(ask) == 0
    assert len(list(Ledger(out))) == 2, "other data make another run"


def test_the_command_lists_suites(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "suites", "--json"]) == 0
    stated = {one["id"]: one for one in json.loads(capsys.readouterr().out)}
    assert stated["vtab1k@1"]["tasks"]["kitti"]["licence"] == "CC BY-NC-SA 3.0"
    assert stated["vtab1k@1"]["tiers"]["v-petl"]["best_on_test_beside"] is True
    assert main(["data", "suites", "vtab1k"]) == 0
    shown = capsys.readouterr().out
    assert "kitti" in shown and "differs: Drop path" in shown
    assert main(["data", "suites"]) == 0
    assert "fgvc-few-shot@1" in capsys.readouterr().out


def test_the_survey_has_a_rate_for_each_task() -> None:
    rules = protocol("vtab1k@v-petl")
    lora, full = [MethodSpec(name="lora", fields={})], [MethodSpec(name="full_finetuning", fields={})]
    assert rules.grid_for(lora, "eurosat").points()[0].lr == 0.06
    assert rules.grid_for(full, "eurosat").points()[0].lr == 5e-4
    assert rules.settings_for("dmlab")["label_smoothing"] == 0.0
    assert rules.settings_for("kitti")["label_smoothing"] == 0.1
    assert [rules.settings_for(task)["augmentation"] for task in ("cifar", "dmlab")] == ["none", "randaugment_whole"]
    assert sum(rules.settings_for(task)["augmentation"] != "none" for task in rules.tasks) == 12
    assert len(protocol("vtab1k@vpt").grid.points()) == 40 and len(protocol("vtab1k@osu").grid.points()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("root", sorted(WRITERS), indirect=True)
def test_every_protocol_of_a_suite_runs(root: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """One task under each protocol: rates from validation alone, one test, best-on-test in its own field only."""
    name = request.node.callspec.params["root"]
    one = suite(name).at(DataFolder(root))
    for tier, stated in one.tiers.items():
        rules = protocol(stated.protocol)
        ledger = bench(root, tmp_path / tier, name, tier, (stated.tasks or one.tasks)[0], seeds=1)
        assert set(ledger.states()) == {State.done}, [record.error for record in ledger]
        finals = [record for record in ledger if record.identity.purpose == "final"]
        searches = [record for record in ledger if record.identity.purpose == "search"]
        assert len(finals) == 1 and len(searches) == (len(rules.grid.points()) if rules.searches else 0)
        (final,) = finals
        assert final.scores is not None and final.scores.split == "test"
        assert (final.scores.legacy_best_on_test is not None) == rules.legacy_best_on_test
        assert final.scores.leading == one.metric
        assert all(record.scores is not None and record.scores.split == "val" for record in searches)
        assert final.departures == {key: value for key, value in BRIEF.items() if rules.optimisation[key] != value}


@pytest.mark.slow
@of("vtab1k")
def test_the_whole_of_vtab1k_runs(root: Path, tmp_path: Path) -> None:
    ledger = bench(root, tmp_path / "runs", "vtab1k", "smoke")
    assert ledger.states() == {State.done: 19}
