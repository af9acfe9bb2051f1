"""Data sets of continual learning in their published layouts, in small, and with faults in them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from PIL import Image

from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.problems import DataError
from vpeft.data.sources.imagenet_r import split_of_classes
from vpeft.data.sources.registry import find_source
from vpeft.regimes.continual import ContinualRecipe, run_continual
from vpeft.regimes.stream_protocols import StreamProtocol, stream_protocol

SHADES = iter(range(10**9))


def picture(file: Path) -> None:
    """A small picture of a colour of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shade = next(SHADES)
    Image.new("RGB", (8, 8), (shade % 256, shade // 256 % 256, 7)).save(file)


def splits(source: Path, **fields: object) -> dict[str, list[str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = open_data(DataConfig(source=str(source), val_fraction=0, **fields))
    return {name: sorted(item.name for item in images.items) for name, images in data.splits.items()}


# -- ImageNet-R -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def renditions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tested and one trained image of each class."""
    root = tmp_path_factory.mktemp("imagenet-r")
    for name, (_, tested) in split_of_classes().items():
        kind, number = sorted(tested)[0].removesuffix(".jpg").split("_")
        trained = next(n for n in range(1000) if f"{kind}_{n}.jpg" not in tested)
        for one in (number, trained):
            picture(root / name / f"{kind}_{one}.jpg")
    (root / "README.txt").write_text("as it comes")
    return root


def test_the_split_has_the_published_sizes() -> None:
    counts = split_of_classes()
    assert len(counts) == 200 and sum(count for count, _ in counts.values()) == 30_000
    assert sum(len(tested) for _, tested in counts.values()) == 6_000
    assert {"tattoo_75.jpg"} <= counts["n01910747"][1]


@pytest.mark.filterwarnings("ignore::vpeft.data.problems.DataWarning")
def test_imagenet_r_gets_the_published_split(renditions: Path) -> None:
    assert find_source(DataConfig(source=str(renditions))).name == "imagenet_r"
    listing = find_source(DataConfig(source=str(renditions))).read(DataConfig(source=str(renditions)))
    assert {name: len(items) for name, items in listing.splits.items()} == {"train": 200, "test": 200}
    assert all(item.name.split("/")[1] in split_of_classes()[item.label][1] for item in listing.splits["test"])
    assert sum(one.kind == "missing" for one in listing.problems.found) == 6_000 - 200


def test_faults_in_imagenet_r_are_named(renditions: Path) -> None:
    config = DataConfig(source=str(renditions), layout="imagenet_r")
    reader = find_source(config)
    (renditions / "cats").mkdir()
    with pytest.raises(DataError, match="folder cats, which is no class"):
        reader.read(config)
    assert find_source(DataConfig(source=str(renditions), layout=None)).name == "folder"
    (renditions / "cats").rmdir()
    name, (count, tested) = next(iter(split_of_classes().items()))
    more = [renditions / name / f"art_{number}.jpg" for number in range(5000, 5000 + count - len(tested))]
    for file in more:
        file.touch()
    with pytest.raises(DataError, match=f"this class of ImageNet-R has {count}"):
        reader.read(config)
    for file in more:
        file.unlink()
    moved = (renditions / name).rename(renditions.parent / "elsewhere")
    with pytest.raises(DataError, match=f"lacks 1 of the 200 classes.*{name}"):
        reader.read(config)
    moved.rename(renditions / name)


# -- DomainNet ------------------------------------------------------------------------------------------------------


def domainnet(
    root: Path, domains: tuple[str, ...] = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
) -> Path:
    for domain in domains:
        for split, count in (("train", 2), ("test", 1)):
            lines = []
            for number, label in enumerate(("zebra", "ant")):
                for one in range(count):
                    path = f"{domain}/{label}/{domain}_{split}_{one}.png"
                    picture(root / path)
                    lines.append(f"{path} {number}\n")
            (root / f"{domain}_{split}.txt").write_text("".join(lines))
    return root


def test_a_domain_and_all_of_them(tmp_path: Path) -> None:
    root = domainnet(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = open_data(DataConfig(source=str(root / "sketch"), val_fraction=0))
    assert data.manifest.layout == "domainnet" and data.labels == ["zebra", "ant"]
    found = splits(root / "sketch")
    assert len(found["train"]) == 4 and len(found["test"]) == 2
    assert all(name.startswith("sketch/") for names in found.values() for name in names)
    assert {name: len(names) for name, names in splits(root).items()} == {"train": 24, "test": 12}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("real/ant/x.png", "is not real/CLASS/IMAGE and a class number"),
        ("sketch/ant/x.png 1", "is not real/CLASS/IMAGE"),
        ("real/../x.png 1", "is not real/CLASS/IMAGE"),
        ("real/bee/x.png 1", "class 1 is 'bee' here and 'ant' before"),
        ("real/ant/x.png 7", "one class two numbers"),
    ],
)
def test_faults_in_lists_of_domainnet_are_named(tmp_path: Path, line: str, said: str) -> None:
    root = domainnet(tmp_path, ("real",))
    with (root / "real_test.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=said):
        splits(root / "real")


def test_a_list_or_an_image_that_is_not_there(tmp_path: Path) -> None:
    root = domainnet(tmp_path, ("real",))
    (root / "real/ant/real_train_0.png").unlink()
    with pytest.raises(DataError, match="listed but do not exist"):
        splits(root / "real", max_unreadable=0.0)
    (root / "real_test.txt").unlink()
    with pytest.raises(DataError, match=r"has no real_test\.txt"):
        splits(root / "real")


# -- CORe50 ---------------------------------------------------------------------------------------------------------


def core50(root: Path, sessions: int = 11) -> Path:
    for session in range(1, sessions + 1):
        for number in (1, 2):
            picture(root / f"s{session}" / f"o{number}" / f"C_{session:02d}_{number:02d}_000.png")
    return root


def test_sessions_train_and_three_of_them_are_the_test(tmp_path: Path) -> None:
    root = core50(tmp_path / "core50_128x128")
    found = splits(root / "s4")
    assert [name.split("/")[0] for name in found["train"]] == ["s4", "s4"]
    assert {name.split("/")[0] for name in found["test"]} == {"s3", "s7", "s10"}
    for source in (root, tmp_path):
        assert find_source(DataConfig(source=str(source))).name == "core50"
        assert {name: len(names) for name, names in splits(source).items()} == {"train": 16, "test": 6}


def test_faults_in_core50_are_named(tmp_path: Path) -> None:
    root = core50(tmp_path)
    with pytest.raises(DataError, match="session of the test"):
        splits(root / "s7")
    (root / "s1" / "o51").mkdir()
    with pytest.raises(DataError, match="none of the objects o1 to o50"):
        splits(root / "s1")
    (root / "s1" / "o51").rmdir()
    (root / "s10" / "o1").rename(root / "o1")
    assert find_source(DataConfig(source=str(root / "s1"))).name == "folder"
    (root / "s9").rename(root / "elsewhere")
    (root / "o1").rename(root / "s10" / "o1")
    with pytest.raises(DataError, match="has no session s9"):
        splits(root)


def test_a_protocol_of_domains_finds_them_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vpeft.regimes import continual

    root = domainnet(tmp_path)
    whole = stream_protocol("domainnet-di6@1")
    small = StreamProtocol("tiny@1", 2, whole.fields, "", whole.domains[:2])
    monkeypatch.setattr(continual, "stream_protocol", lambda _: small)
    data = {"source": str(root), "val_fraction": 0}
    made = ContinualRecipe.model_validate(
        {"protocol": "tiny@1", "backbone": "pocket_vit", "method": "simple_cil", "data": data}
    )
    outcome = run_continual(made, say=lambda _: None)
    assert outcome.record["stream"]["kind"] == "domain"
    assert [Path(name).name for name in outcome.record["stream"]["tasks"]] == ["real", "quickdraw"]
