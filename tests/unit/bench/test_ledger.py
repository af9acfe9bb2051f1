"""The ledger: whole files only, one process per run, mistakes named."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from filelock import Timeout

from vpeft.bench.lease import BadLease, Leases, _place, locked
from vpeft.bench.ledger import Ledger, LedgerError, LostLease, open_ledger
from vpeft.bench.record import Chosen, Failure, RecordedScores, RunRecord, State
from vpeft.errors import VpeftError

from .test_key import IDENTITY


def a_record(seed: int = 0, **rest: object) -> RunRecord:
    identity = IDENTITY.model_copy(update={"seed": seed})
    return RunRecord.model_validate(
        {"key": identity.key(), "identity": identity, "suite": "digits", "label": "lora", **rest}
    )


def test_a_record_comes_back_as_it_went(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    record = a_record(
        state=State.done,
        scores=RecordedScores(split="test", values={"top1": 0.75, "loss": 0.5}, leading="top1", count=100),
    )
    lease = ledger.claim(record.key)
    assert lease is not None
    with lease:
        ledger.write(record, lease)
    assert ledger.get(record.key) == record
    assert list(ledger) == [record]
    assert ledger.states() == {State.done: 1}
    assert len(open_ledger(ledger.path)) == 1
    # One file per run, and no drafts left.
    assert [path.name for path in ledger.runs.iterdir()] == [f"{record.key}.json"]


def test_planning_never_overwrites(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    record = a_record()
    assert ledger.plan(record)
    lease = ledger.claim(record.key)
    assert lease is not None
    with lease:
        ledger.write(record.model_copy(update={"state": State.running}), lease)
    assert not ledger.plan(record)
    found = ledger.get(record.key)
    assert found is not None
    assert found.state is State.running


def test_one_lease_at_a_time(tmp_path: Path) -> None:
    ledger, other = Ledger(tmp_path), Ledger(tmp_path)
    lease = ledger.claim("k")
    assert lease is not None
    assert other.claim("k") is None
    assert other.claimed("k")
    assert other.claim("another") is not None
    lease.release()
    assert not other.claimed("k")
    assert other.claim("k") is not None


def _hold(path: Path, ready: multiprocessing.synchronize.Event) -> None:
    assert Ledger(path).claim("k") is not None
    ready.set()
    time.sleep(60)


def test_the_lease_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    ledger = Ledger(tmp_path)
    assert ledger.claim("k") is None
    process.kill()
    process.join()
    assert ledger.claim("k") is not None


def _edit_lease(ledger: Ledger, **change: object) -> Path:
    path = ledger.path / ".leases" / "k.lease"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return path


def test_a_reused_process_id_is_not_the_holder(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.claim("k") is not None
    _edit_lease(ledger, since="1")
    if not Path("/proc/self/stat").exists():
        pytest.skip("no start times on this system")
    assert not ledger.claimed("k")


class Clock:
    """A monotonic clock that goes as it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def elsewhere(folder: Path, token: str = "theirs", beats: int = 0) -> Path:
    """The lease `k` of a process on another machine."""
    folder.mkdir(exist_ok=True)
    path = folder / "k.lease"
    path.write_text(json.dumps({"token": token, "pid": 1, "since": "1", "place": "another machine", "beats": beats}))
    return path


def test_a_holder_elsewhere_lives_while_its_heartbeats_are_counted(tmp_path: Path) -> None:
    clock = Clock()
    leases = Leases(tmp_path, silence=30.0, clock=clock)
    for beats in range(5):
        elsewhere(tmp_path, beats=beats)
        assert leases.taken("k")
        assert leases.take("k") is None
        clock.now += 29.0
    assert leases.taken("k")
    clock.now += 1.0
    assert not leases.taken("k"), "no beat for thirty seconds"


def test_what_one_observer_found_dead_another_may_take_at_once(tmp_path: Path) -> None:
    """The process that hands out jobs watches; the worker that makes the run has not."""
    clock = Clock()
    watching, worker = Leases(tmp_path, silence=30.0, clock=clock), Leases(tmp_path, silence=30.0, clock=clock)
    elsewhere(tmp_path)
    assert watching.taken("k")
    clock.now += 30.0
    assert worker.take("k") is None, "it sees it for the first time"
    assert not watching.taken("k")
    lease = worker.take("k")
    assert lease is not None
    lease.release()


@pytest.mark.parametrize("jump", [-1e6, 1e6], ids=["back", "forward"])
def test_clocks_that_jump_change_nothing(tmp_path: Path, jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the wall clock of the observer nor the times of the files count."""
    clock, wall = Clock(), time.time()
    leases = Leases(tmp_path, silence=30.0, clock=clock)
    path = elsewhere(tmp_path)
    assert leases.taken("k")
    monkeypatch.setattr(time, "time", lambda: wall + jump)
    os.utime(path, (wall - jump, wall - jump))
    clock.now += 29.0
    assert leases.taken("k"), "a living holder keeps its lease"
    os.utime(path, (wall + jump, wall + jump))
    clock.now += 1.0
    assert not leases.taken("k"), "a dead one loses it"


def test_another_holder_is_watched_anew(tmp_path: Path) -> None:
    clock = Clock()
    leases = Leases(tmp_path, silence=30.0, clock=clock)
    elsewhere(tmp_path, "first")
    assert leases.taken("k")
    clock.now += 29.0
    elsewhere(tmp_path, "second")
    assert leases.taken("k")
    clock.now += 29.0
    assert leases.taken("k")


def test_the_heart_beats(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, beat=0.02)
    lease = ledger.claim("k")
    assert lease is not None
    with lease:
        seen = set[int]()
        deadline = time.monotonic() + 10
        while len(seen) < 3 and time.monotonic() < deadline:
            seen.add(json.loads(lease.path.read_text())["beats"])
            time.sleep(0.01)
        assert len(seen) == 3
        assert lease.held()
    assert not lease.path.exists()
    time.sleep(0.1)
    assert not lease.path.exists(), "a heart that stopped writes nothing"


def test_a_heartbeat_never_writes_over_another_holder(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, beat=0.01)
    lease = ledger.claim("k")
    assert lease is not None
    with lease:
        with locked(tmp_path / ".leases" / "guard"):
            _edit_lease(ledger, token="theirs")
        time.sleep(0.1)
        assert json.loads(lease.path.read_text())["token"] == "theirs"


def _hold_the_lock(path: Path, ready: multiprocessing.synchronize.Event) -> None:
    with locked(path):
        ready.set()
        time.sleep(60)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold_the_lock, args=(tmp_path / "guard", ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(Timeout), locked(tmp_path / "guard", timeout=0.05):
        pass
    process.kill()
    process.join()
    with locked(tmp_path / "guard"):
        pass


def test_who_lost_the_lease_cannot_write(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    record = a_record()
    lease = ledger.claim(record.key)
    assert lease is not None
    path = ledger.path / ".leases" / f"{record.key}.lease"
    path.write_text(json.dumps({**json.loads(path.read_text()), "token": "theirs"}))
    with pytest.raises(LostLease, match="taken over"):
        ledger.write(record, lease)
    assert ledger.get(record.key) is None
    lease.release()
    assert path.exists(), "the lease of another must stay"
    assert not ledger.runs.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"token": 1}', "\\xff", "[" * 4000, "1" * 5000])
def test_a_lease_that_no_holder_wrote_is_free(tmp_path: Path, text: str) -> None:
    leases = Leases(tmp_path)
    (tmp_path / "k.lease").write_text(text)
    lease = leases.take("k")
    assert lease is not None and leases.taken("k")
    lease.release()


@pytest.mark.parametrize("change", [{"pid": 10**19}, {"pid": -1}, {"pid": True}, {"beats": "7"}, {"since": None}])
def test_an_impossible_holder_on_this_machine_is_none(tmp_path: Path, change: dict[str, object]) -> None:
    holder = {"token": "theirs", "pid": os.getpid(), "since": "", "place": _place(), "beats": 0}
    (tmp_path / "k.lease").write_text(json.dumps(holder))
    assert Leases(tmp_path).taken("k"), "it is this process"
    (tmp_path / "k.lease").write_text(json.dumps(holder | change))
    assert not Leases(tmp_path).taken("k")


def test_a_lease_that_cannot_be_read_is_not_taken(tmp_path: Path) -> None:
    """It may have a holder: to take it could mean to make a run twice."""
    (tmp_path / "k.lease").mkdir()
    os.mkfifo(tmp_path / "p.lease")
    leases = Leases(tmp_path)
    for key in ("k", "p"):
        for act in (leases.take, leases.taken):
            with pytest.raises(BadLease, match=rf"The lease .*{key}.lease cannot be read: it is .*remove it"):
                act(key)


def test_locks_and_leases_follow_no_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    folder = tmp_path / ".leases"
    folder.mkdir()
    (folder / "guard").symlink_to(mine)
    with pytest.raises(BadLease, match="guard cannot be taken: it is no plain file"):
        Leases(folder).take("k")
    (folder / "guard").unlink()
    (folder / "k.lease").symlink_to(mine)
    lease = Leases(folder).take("k")
    assert lease is not None and not lease.path.is_symlink()
    lease.release()
    assert mine.read_text() == "mine" and sorted(one.name for one in folder.iterdir()) == ["guard"]


def test_no_folder_for_a_ledger_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VpeftError, match="cannot be taken: .*Name another folder"):
        Ledger(tmp_path / "file").claim("k")
    with pytest.raises(VpeftError, match="cannot be made: .*Name another folder"):
        Ledger(tmp_path / "file").work("k")


def test_what_a_killed_process_left_of_a_record_is_swept(tmp_path: Path) -> None:
    ledger, record = Ledger(tmp_path), a_record()
    ledger.runs.mkdir()
    (ledger.runs / f".{record.key}.json.0123456789abcdef.partial").write_text("half")
    assert ledger.plan(record)
    assert [path.name for path in ledger.runs.iterdir()] == [f"{record.key}.json"]


def test_numbers_that_are_none_stand_in_no_record(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    scores = RecordedScores(split="val", values={"top1": 0.5, "recall": nan, "loss": inf}, leading="top1")
    assert scores.values == {"top1": 0.5}
    with pytest.raises(ValueError, match="'top1' is not among the values"):
        RecordedScores(split="val", values={"top1": nan}, leading="top1")
    ledger, record = Ledger(tmp_path), a_record(state=State.done, scores=scores)
    # a copy is not checked when it is made
    record = record.model_copy(update={"history": ({"epoch": 1.0, "loss": nan},)})
    lease = ledger.claim(record.key)
    assert lease is not None
    with lease:
        path = ledger.write(record, lease)
        found = ledger.get(record.key)
        assert found is not None and found.history == ({"epoch": 1.0},)
        # as Python wrote them before
        path.write_text(path.read_text().replace('"top1": 0.5', '"top1": 0.5, "recall": NaN'))
        found = ledger.get(record.key)
        assert found is not None and found.scores is not None and found.scores.values == {"top1": 0.5}
        wrong = Chosen.model_construct(lr=inf, weight_decay=0.0, rule="r", searched=(), validation=None)
        with pytest.raises(LedgerError, match="lr"):
            ledger.write(record.model_copy(update={"chosen": wrong}), lease)


def test_an_error_that_names_a_file_which_is_not_utf8_is_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    failure = Failure(kind="DataError", message=f"{os.fsdecode(bytes([0xE9]))}.png is broken")
    record = a_record(state=State.failed, error=failure)
    lease = ledger.claim(record.key)
    assert lease is not None
    with lease:
        ledger.write(record, lease)
    found = ledger.get(record.key)
    assert found is not None and found.error is not None and found.error.message == "\\udce9.png is broken"


def _compete(
    path: Path, start: multiprocessing.synchronize.Event, wins: multiprocessing.queues.Queue[str], over: Barrier
) -> None:
    ledger = Ledger(path)
    start.wait(60)
    for number in range(40):
        lease = ledger.claim(f"k{number}")
        if lease is not None:
            wins.put(lease.path.name)
    wins.put("")
    # Who left would leave its leases behind, and another could take them with every right.
    over.wait(60)


@pytest.mark.slow
def test_processes_that_compete_for_stale_leases_never_both_win(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ledger = Ledger(tmp_path)
    folder = tmp_path / ".leases"
    folder.mkdir()
    for number in range(40):
        # Left by a process that is gone.
        (folder / f"k{number}.lease").write_text(json.dumps({"token": "old", "pid": 0, "since": "", "place": _place()}))
    start, wins, over = context.Event(), context.Queue(), context.Barrier(4)
    processes = [context.Process(target=_compete, args=(tmp_path, start, wins, over)) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    won: list[str] = []
    ended = 0
    while ended < 3:
        found = wins.get(timeout=120)
        ended += not found
        won += [found] if found else []
    over.wait(60)
    for process in processes:
        process.join()
    assert sorted(won) == sorted(f"k{number}.lease" for number in range(40)), "each once, by whomever"
    assert not any(ledger.claimed(f"k{number}") for number in range(40))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not usable JSON"),
        ('{"format": 99}', "format 99; this vpeft reads the formats 1 and 2"),
        ('{"format": 1}', "is not a run record.*identity"),
        ("[]", "format None"),
    ],
)
def test_a_file_that_is_no_record_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.runs.mkdir()
    ledger.file("abc").write_text(text)
    with pytest.raises(LedgerError, match=complaint):
        list(ledger)
    with pytest.raises(LedgerError, match="Remove the file"):
        ledger.get("abc")


def test_an_edited_record_is_noticed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    record = a_record()
    ledger.plan(record)
    text = ledger.file(record.key).read_text().replace('"seed": 0', '"seed": 1')
    ledger.file(record.key).write_text(text)
    with pytest.raises(LedgerError, match="the identity in the same record gives"):
        list(ledger)


def test_a_renamed_record_is_noticed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    record = a_record()
    ledger.plan(record)
    ledger.file(record.key).rename(ledger.file("abc"))
    with pytest.raises(LedgerError, match="named by its key"):
        list(ledger)


def test_states_demand_what_they_say() -> None:
    with pytest.raises(ValueError, match="must have scores"):
        a_record(state=State.done)
    with pytest.raises(ValueError, match="must keep its error"):
        a_record(state=State.failed)
    assert a_record(state=State.failed, error=Failure(kind="E", message="m")).state.finished


def test_no_ledger_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="vpeft bench --out"):
        open_ledger(tmp_path / "nowhere")
    with pytest.raises(LedgerError, match="holds no run records"):
        open_ledger(tmp_path)
