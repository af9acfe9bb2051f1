"""Whatever the bytes are, a reader gives a value or raises a `VpeftError`: random bytes, changed files and JSON."""

from __future__ import annotations

import atexit
import csv
import io
import json
import lzma
import os
import shutil
import string
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes

import vpeft
from tests.hostile.make_files import RECIPE, record
from vpeft.backbones.own_model import read_anatomy
from vpeft.backbones.weights import read_weights
from vpeft.bench.key import Identity
from vpeft.bench.lease import Holder, Leases
from vpeft.bench.ledger import Ledger
from vpeft.bench.record import RunRecord
from vpeft.bench.record_table import read_table, write_table
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.guarded import check_value, parse_json, parse_tensor_header, parse_toml
from vpeft.injection.adapter_file import KEY, Manifest, read, sealed_bytes
from vpeft.method_spec import parse
from vpeft.report.published import published
from vpeft.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vpeft.training.recipe import Recipe

# `make slow` asks for more.
EXAMPLES = int(os.environ.get("VPEFT_EXAMPLES", "40"))
OFTEN = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# A sound table is packed by the strongest setting of xz, which takes a tenth of a second.
SELDOM = settings(OFTEN, max_examples=max(5, EXAMPLES // 10))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def only_ours(reader: Callable[..., Any], *given: Any) -> Any:
    """What the reader gives; None where it raises a `VpeftError`. Anything else fails the test."""
    try:
        return reader(*given)
    except vpeft.VpeftError:
        return None


def read_record(path: Path) -> Any:
    """Read as the only record of a ledger."""
    runs = path.parent / "runs"
    runs.mkdir(exist_ok=True)
    path.replace(runs / f"{record()['key']}.json")
    return list(Ledger(path.parent))


def read_lease(path: Path) -> Any:
    """Whether the lease is held, and whether it can be taken where it is not."""
    leases = Leases(path.parent)
    if leases.taken("l"):
        return True
    lease = leases.take("l")
    assert lease is not None and lease.held()
    lease.release()
    return False


def read_list(path: Path) -> Any:
    return open_data(DataConfig(source=str(path)))


def read_folder(path: Path) -> Any:
    """The data set of which this file is the list."""
    return open_data(DataConfig(source=str(path.parent)))


def read_published(path: Path) -> Any:
    """A published table: of its two files one is this, the other is sound."""
    for kind in ("csv", "json"):
        if path.suffix != f".{kind}":
            path.with_suffix(f".{kind}").write_bytes(sound_files()[f"p.{kind}"])
    found = published(path.with_suffix(".csv"))
    return [(found.group_means(row), row.mean, row.ppt, row.slips()) for row in found.rows]


READERS: dict[str, Callable[[Path], Any]] = {
    "p.csv": read_published,
    "p.json": read_published,
    "train.json": read_folder,
    "train800val200.txt": read_folder,
    "_annotations.coco.json": read_folder,
    "data.yaml": read_folder,
    "j.json": read_record,
    "t.xz": read_table,
    "l.lease": read_lease,
    "i.csv": read_list,
    "i.tsv": read_list,
    "i.parquet": read_list,
    "a.safetensors": read,
    "c.safetensors": read_checkpoint,
    "w.safetensors": read_weights,
    "w.pth": read_weights,
    "w.npz": read_weights,
    "r.toml": Recipe.from_toml,
    "n.toml": read_anatomy,
}


COCO = {
    "images": [{"id": 1, "file_name": "0.png", "width": 8, "height": 8}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
    "categories": [{"id": 3, "name": "cat"}],
}


def sound_lists(folder: Path) -> dict[str, bytes]:
    """Lists of pictures that are there, in three formats."""
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    rows = [(str(folder / f"{n}.png"), ("cat", "dog")[n % 2]) for n in range(8)]
    for number, (path, _) in enumerate(rows):
        Image.new("RGB", (8, 8), (30 * number, 0, 0)).save(path)
    made = {
        kind: "".join(f"{between.join(row)}\n" for row in [("path", "label"), *rows]).encode()
        for kind, between in (("csv", ","), ("tsv", "\t"))
    }
    table = pyarrow.table({"path": [path for path, _ in rows], "label": [label for _, label in rows]})
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    return made | {"parquet": file.getvalue()}


@cache
def sound_files() -> dict[str, bytes]:
    """A sound file for each reader; the pictures that the lists name stay until the end of the tests."""
    import numpy as np

    from tests.hostile.mutations import saved

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_checkpoint(folder / "c", Checkpoint({"model": {"w": torch.arange(8.0)}}, {"epoch": 3}))
    pth, npz = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.zeros(3)}, pth)
    np.savez(npz, w=np.zeros(3))
    return {
        "a.safetensors": saved(folder, "lora").read_bytes(),
        "c.safetensors": (folder / "c").read_bytes(),
        "w.safetensors": to_bytes({"w": torch.zeros(3)}),
        "w.pth": pth.getvalue(),
        "w.npz": npz.getvalue(),
        "r.toml": RECIPE.encode(),
        "j.json": json.dumps(record()).encode(),
        "t.xz": lzma.compress(json.dumps(record()).encode() + b"\n"),
        "l.lease": json.dumps({"token": "t", "pid": 1, "since": "1", "place": "there", "beats": 3}).encode(),
        "p.csv": b"Method,a,b,Mean,Params.,PPT\nLoRA,50,60.5,55.25,0.29M,0.54\nSSF,40,50,45,-,-\n",
        "p.json": json.dumps(
            {"title": "t", "source": "s", "protocol": "p", "score": "top-1", "groups": {"g": ["a", "b"]}}
        ).encode(),
        "train.json": b'{"a/0.png": 1, "a/1.png": 2}',
        "train800val200.txt": b"a/0.png 0\na/1.png 1\n",
        "_annotations.coco.json": json.dumps(COCO).encode(),
        "data.yaml": b"names: [cat, dog]\ntrain: images\nval: images/val\n",
        **{f"i.{kind}": data for kind, data in sound_lists(folder).items()},
        "n.toml": b'blocks = "layers"\nattn = "attn"\nimage_size = [32, 32]\n',
    }


@pytest.mark.parametrize("name", READERS)
@OFTEN
@given(data=st.binary(max_size=400))
def test_random_bytes(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    only_ours(READERS[name], tmp_path / name)


# The sound files are not given by a fixture: hypothesis would write all their bytes into its report.
@pytest.mark.parametrize("name", READERS)
@OFTEN
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6)), min_size=1, max_size=4))
def test_changed_files(name: str, changes: list[tuple[float, bytes]], tmp_path: Path) -> None:
    sound = sound_files()[name]
    data = bytearray(sound)
    for share, piece in changes:
        at = int(share * len(data))
        data[at : at + max(1, len(piece))] = piece
    (tmp_path / name).write_bytes(data)
    found = only_ours(READERS[name], tmp_path / name)
    if name[0] == "a" and bytes(data) != sound and found is not None:
        raise AssertionError("a changed adapter file was accepted")


@OFTEN
@given(end=st.floats(0, 1, exclude_max=True))
def test_cut_files(end: float, tmp_path: Path) -> None:
    sound = sound_files()
    for name, reader in READERS.items():
        if name.endswith((".safetensors", ".xz", "j.json")):
            (tmp_path / name).write_bytes(sound[name][: int(end * len(sound[name]))])
            with pytest.raises(vpeft.VpeftError):
                reader(tmp_path / name)


@OFTEN
@given(manifest=PLAIN)
def test_any_manifest(manifest: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(to_bytes({"w": torch.zeros(2)}, metadata={KEY: json.dumps(manifest)}))
    assert only_ours(read, path) is None


@OFTEN
@given(changes=st.dictionaries(st.sampled_from(sorted(Manifest.model_fields)), PLAIN))
def test_any_value_in_a_sealed_manifest(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(sound_files()["a.safetensors"])
    manifest, tensors = read(path)
    try:
        data = sealed_bytes({**manifest.model_dump(mode="json"), **changes}, tensors)
    except (vpeft.VpeftError, UnicodeEncodeError):
        return  # nothing that a file can hold
    path.write_bytes(data)
    only_ours(read, path)


@OFTEN
@given(table=PLAIN, size=st.integers(0, 64))
def test_any_table_of_tensors(table: Any, size: int) -> None:
    try:
        said = json.dumps(table).encode()
    except ValueError:
        return
    only_ours(parse_tensor_header, struct.pack("<Q", len(said)) + said + bytes(size), "It", vpeft.VpeftError)


@OFTEN
@given(value=PLAIN)
def test_json_is_read_as_the_standard_library_reads_it(value: Any) -> None:
    text = json.dumps(value)
    found = only_ours(parse_json, text, "It", vpeft.VpeftError)
    try:
        check_value(value)
    except ValueError:
        assert found is None
    else:
        assert json.dumps(found) == text


@OFTEN
@given(text=st.text(max_size=200) | st.text(alphabet='[]{}=.,"ab1#\n\\', max_size=200))
def test_any_text_as_json_toml_or_method(text: str) -> None:
    for reader in (parse_json, parse_toml):
        only_ours(reader, text, "It", vpeft.VpeftError)
    only_ours(parse, text)


@OFTEN
@given(text=st.text(alphabet=string.ascii_letters + '()[]{}=,+"._ 01-', max_size=60))
def test_any_method_in_a_recipe(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.replace('"lora"', json.dumps(f"lora({text})")))
    only_ours(Recipe.from_toml, tmp_path / "r.toml")


@OFTEN
@given(changes=st.dictionaries(st.sampled_from(sorted(Recipe.model_fields)), PLAIN))
def test_any_value_in_a_recipe(changes: dict[str, Any]) -> None:
    import tomllib

    only_ours(Recipe.from_mapping, {**tomllib.loads(RECIPE), **changes})


@OFTEN
@given(
    changes=st.dictionaries(st.sampled_from(sorted(RunRecord.model_fields)), PLAIN),
    identity=st.dictionaries(st.sampled_from(sorted(Identity.model_fields)), PLAIN, max_size=2),
)
def test_any_value_in_a_record(changes: dict[str, Any], identity: dict[str, Any], tmp_path: Path) -> None:
    said = record()
    said = {**said, "identity": {**said["identity"], **identity}, **changes}
    (tmp_path / "j.json").write_text(json.dumps(said))
    found = only_ours(read_record, tmp_path / "j.json")
    if found:  # what was read can be written and read again
        ledger, again = Ledger(tmp_path / "again"), found[0]
        lease = ledger.claim(again.key)
        assert lease is not None
        with lease:
            ledger.write(again, lease)
        assert list(ledger) == [again]
        assert ledger.pack() == again.state.finished
        assert list(Ledger(tmp_path / "again")) == [again]


@SELDOM
@given(rows=st.dictionaries(st.text("abc-_09", min_size=1, max_size=6), PLAIN, max_size=3))
def test_a_table_is_read_as_it_was_written_or_is_not_written(rows: dict[str, Any], tmp_path: Path) -> None:
    path, given_rows = tmp_path / "t.xz", {key: {"more": value, "key": key} for key, value in rows.items()}
    path.unlink(missing_ok=True)
    try:
        write_table(path, given_rows)
    except (vpeft.VpeftError, ValueError):
        assert not path.exists()
        return
    assert read_table(path) == given_rows


@OFTEN
@given(changes=st.dictionaries(st.sampled_from(sorted(Holder.__dataclass_fields__)), PLAIN))
def test_any_value_in_a_lease(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "l.lease").write_text(json.dumps({**json.loads(sound_files()["l.lease"]), **changes}))
    read_lease(tmp_path / "l.lease")


@OFTEN
@given(
    header=st.lists(st.sampled_from(["path", "label", "split", "image", "a"]) | st.text(max_size=5), max_size=4),
    rows=st.lists(st.lists(st.text(max_size=12) | st.sampled_from(["train", "val", "0", "."]), max_size=4), max_size=5),
)
def test_any_cells_in_a_list(header: list[str], rows: list[list[str]], tmp_path: Path) -> None:
    with (tmp_path / "i.csv").open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file, escapechar="\\").writerows([header, *rows])
    only_ours(read_list, tmp_path / "i.csv")


def test_one_flipped_bit_anywhere_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, Checkpoint({"model": {"w": torch.arange(8.0)}}, {"epoch": 3, "name": "a"}))
    whole, sound = path.read_bytes(), read_checkpoint(path)
    for at in range(len(whole)):
        for bit in (1, 32):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            found = only_ours(read_checkpoint, path)
            if found is not None:  # a space in the header's padding is no content
                assert found.facts == sound.facts and torch.equal(
                    found.tensors["model"]["w"], sound.tensors["model"]["w"]
                )
                assert list(found.tensors) == ["model"] and whole[at : at + 1] == b" "
