"""Packed records: one file, the same bytes for the same records, and nothing lost on the way in."""

from __future__ import annotations

import hashlib
import json
import lzma
import zlib
from pathlib import Path

import pytest

from vpeft.bench.ledger import Ledger, LedgerError, open_ledger
from vpeft.bench.record import Failure, RecordedScores, RunRecord, State
from vpeft.bench.record_table import NAME, read_table, write_table
from vpeft.report import make_report

from .test_ledger import a_record

POCKET = Path(__file__).parents[3] / "results" / "pocket"
# Of the 936 files that the runs of format 1 were kept in, joined in the order of their keys, before they were packed.
FILES_OF_FORMAT_1 = (936, "d1f8fa6db4f560dc29ab6beb6d282d7a41d846ddafde2b889e21417baa638112")


def done(seed: int, value: float = 0.5) -> RunRecord:
    return a_record(seed, state=State.done, scores=RecordedScores(split="test", values={"m": value}, leading="m"))


def put(ledger: Ledger, *records: RunRecord) -> None:
    for record in records:
        lease = ledger.claim(record.key)
        assert lease is not None
        with lease:
            ledger.write(record, lease)


def test_every_packed_record_of_pocket_is_what_its_file_was() -> None:
    checksum, count = hashlib.sha256(), 0
    for _, record in sorted(read_table(POCKET / NAME).items()):
        if record["format"] == 1:
            checksum.update((json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
            count += 1
    assert (count, checksum.hexdigest()) == FILES_OF_FORMAT_1


def test_every_packed_record_of_pocket_is_read_with_its_scores() -> None:
    written, ledger = read_table(POCKET / NAME), Ledger(POCKET)
    read = {record.key: record for record in ledger}
    assert written.keys() <= read.keys()
    for key, record in read.items():
        old = written[key]
        if old["format"] != 1:
            continue
        assert record.identity.model_dump(mode="json") == old["identity"]
        assert record.costs is not None and record.costs.model_dump() == old["costs"]
        assert list(record.history) == old["history"]
        assert record.scores is not None
        assert record.scores.values == {
            name: old["scores"][name] for name in ("top1", "mean_per_class", "loss") if old["scores"][name] is not None
        }
        assert record.scores.value == old["scores"]["top1"]
        assert record.chosen is not None and record.chosen.validation == old["chosen"]["validation_top1"]


def test_the_same_records_are_the_same_bytes(tmp_path: Path) -> None:
    records = {record.key: record.model_dump(mode="json") for record in (done(0), done(1), done(2))}
    write_table(tmp_path / "a", records)
    write_table(tmp_path / "b", dict(reversed(records.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_table(tmp_path / "a") == records
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_packing_moves_what_is_finished_and_files_lie_over_the_table(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    failed = a_record(2, state=State.failed, error=Failure(kind="E", message="line\u2028separator"))
    put(ledger, done(0), done(1), failed)
    ledger.plan(a_record(3))
    before = list(ledger)
    assert ledger.pack() == 3
    assert [path.stem for path in ledger.runs.glob("*.json")] == [a_record(3).key]
    for reader in (ledger, open_ledger(tmp_path)):
        assert list(reader) == before
        assert len(reader) == 4
        assert reader.get(failed.key) == failed
        assert reader.place(failed.key) == ledger.table
    assert not ledger.plan(a_record(0)), "a packed run is not planned again"

    put(ledger, done(2, 0.9))
    assert ledger.get(failed.key) == done(2, 0.9)
    assert len(ledger) == 4
    assert ledger.place(failed.key) == ledger.file(failed.key)
    other = Ledger(tmp_path)
    assert other.pack() == 1
    assert ledger.get(failed.key) == done(2, 0.9), "a ledger notices that another process has packed"
    assert ledger.pack() == 0


def test_a_file_that_is_no_record_stops_the_packing_before_anything_moved(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    put(ledger, done(0))
    ledger.file("zzz").write_text("{")
    with pytest.raises(LedgerError, match="zzz.json is not usable JSON"):
        ledger.pack()
    assert ledger.file(done(0).key).exists()
    assert not ledger.table.exists()


def large_dictionary() -> bytes:
    """An xz file of a few bytes that asks for 2 GiB to be unpacked in."""
    data = bytearray(lzma.compress(b"{}\n"))
    size = 4 * (data[12] + 1)
    block = data[12 : 12 + size]
    block[block.index(lzma.FILTER_LZMA2) + 2] = 38
    data[12 : 12 + size] = block[:-4] + zlib.crc32(block[:-4]).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"nonsense", "is not a table of records"),
        (lzma.compress(b"{\n"), "line 1, is not usable JSON"),
        (lzma.compress(b'{"key": "a"}\n{"key": "a"}\n'), "line 2: the run a is there twice"),
        (lzma.compress(b"[]\n"), "line 1, is not a record"),
        (lzma.compress(b'{"key": "../../secret"}\n'), "line 1, is not a record: it has no key"),
        (lzma.compress(bytes(60 * 2**20), preset=0), "unpack to more than 18 MiB"),
        (large_dictionary(), "is not a table of records .Memory usage limit exceeded"),
        (lzma.compress(b"{}\n")[:-8], "it is not whole"),
        (lzma.compress(b"") + b"more", "something follows its end"),
        (lzma.compress(b'{"key": "a", "format": 99}\n'), "the run a, has record format 99"),
    ],
    ids=[
        "not compressed",
        "not JSON",
        "twice",
        "no record",
        "no key",
        "bomb",
        "large dictionary",
        "cut",
        "longer",
        "of another format",
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(LedgerError, match=complaint):
        list(Ledger(tmp_path))


def test_a_page_links_packed_records_to_the_table(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    put(ledger, done(0), done(1))
    ledger.pack()
    put(ledger, done(2))
    make_report(ledger.path, html=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    # once among all runs, and once more among those of the method
    assert text.count(f'href="ledger/{NAME}"') == 4
    assert text.count(f'href="ledger/runs/{done(2).key}.json"') == 2
