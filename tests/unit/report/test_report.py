"""What is written from a ledger: tables, picture, page."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from vpeft.bench.ledger import LedgerError
from vpeft.bench.pictures import keep_pictures
from vpeft.bench.record import Chosen, RecordedScores, RunRecord
from vpeft.bench.statistics import critical_difference, friedman
from vpeft.report import make_report
from vpeft.report.board import boards
from vpeft.report.comparison import compared
from vpeft.report.figure import COLOURS, as_png, as_svg, points
from vpeft.report.rates import sensitivities
from vpeft.report.tables import as_csv, as_markdown
from vpeft.report.words import count, percent, seconds, signed, size, spread
from vpeft.safe_text import SafeConsole

from .ledgers import a_failure, a_run, grid, keep

FULL = grid({"linear_probe": -0.1, "lora": 0.1, "ssf": 0.05, "full_finetuning": 0.02})


class Reader(HTMLParser):
    """The text, links and loaded files of a page, and whether its tags close."""

    VOID = frozenset({"meta", "br", "img", "link", "use", "path", "input", "hr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if tag == "a" and name == "href":
                self.links.append(value or "")
            elif name in ("src", "href", "srcset", "xlink:href") and value and not value.startswith("#"):
                self.loads.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(tmp_path: Path, records: list[RunRecord], **rest: object) -> tuple[str, Reader]:
    keep(tmp_path / "ledger", records)
    path = tmp_path / "pages" / "page.html"
    make_report(tmp_path / "ledger", html=path, **rest)  # type: ignore[arg-type]
    text = path.read_text(encoding="utf-8")
    return text, Reader(text)


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    text, page = page_of(tmp_path, FULL)
    assert page.open == []
    assert page.loads == []
    # Only names of XML vocabularies look like addresses.
    assert set(re.findall(r"https?://([\w.]+)", text)) <= {"www.w3.org"}
    assert "@import" not in text
    assert "url(http" not in text
    assert page.tags.count("svg") == 4, "a picture for each cost"


def test_pictures_of_a_run_or_of_its_search_are_on_the_page(tmp_path: Path) -> None:
    """As data within the page, by task and method; those of a search stand with the method that rests on it."""
    stream = io.BytesIO()
    Image.new("L", (4, 4), 9).save(stream, format="PNG")
    search = a_run("lora", "photos", identity={"purpose": "search"})
    chosen = Chosen(lr=2e-3, weight_decay=1e-4, rule="best", searched=(search.key,), validation=0.625)
    records = [a_run("ssf", "flags"), a_run("lora", "flags"), a_run("lora", "photos", chosen=chosen), search]
    keep_pictures(tmp_path / "ledger", search.key, {"validation_predictions": stream.getvalue()})
    keep_pictures(tmp_path / "ledger", records[0].key, {"validation_classes": stream.getvalue()})
    text, page = page_of(tmp_path, records)
    assert page.open == [] and page.tags.count("img") == 2
    data = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    assert page.loads == [data, data]
    assert 'alt="lora on photos: validation predictions"' in text
    assert 'alt="ssf on flags: validation classes"' in text
    assert "validation top-1 62.5" in " ".join("".join(page.text).split())
    assert "img-src data:" in text


def test_every_record_is_linked_and_the_links_lead_there(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, FULL)
    targets = {(tmp_path / "pages" / link).resolve() for link in page.links if not link.startswith("#")}
    assert targets == {path.resolve() for path in (tmp_path / "ledger" / "runs").glob("*.json")}


def test_the_page_says_the_numbers_and_where_they_were_made(tmp_path: Path) -> None:
    page_text, page = page_of(tmp_path, FULL)
    text = " ".join(" ".join(page.text).split())
    assert "lora 66.0 ± 1.0" in text
    assert "2 cores of a Test, 1 thread a run" in text
    assert "Chosen on validation, tested once." in text
    assert "36 of 36 runs done" in text
    assert 'title="lora(as=lora)"' in page_text
    assert "best" in text


def test_tips_and_points_fit_together(tmp_path: Path) -> None:
    text, _ = page_of(tmp_path, FULL)
    found = re.search(r'<script type="application/json" id="tips">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    tips = json.loads(found[1])
    assert {tip["title"] for tip in tips.values()} == {"linear_probe", "lora", "ssf", "full_finetuning"}
    for name in tips:
        assert f'id="{name}"' in text


def test_failures_are_shown_with_their_error_and_escaped(tmp_path: Path) -> None:
    records = [*FULL, a_failure("<script>alert(1)</script>", "flags", 0)]
    text, page = page_of(tmp_path, records)
    assert "<script>alert" not in text
    assert "Traceback &lt;b&gt;" in text
    assert any("The loss is NaN at step 12." in part for part in page.text)
    assert page.tags.count("script") == 2


def test_inflation_has_a_column_only_where_it_was_recorded(tmp_path: Path) -> None:
    text, _ = page_of(tmp_path, FULL)
    assert ">inflation<" not in text
    scores = RecordedScores(split="test", values={"top1": 0.5}, leading="top1", legacy_best_on_test=0.531)
    text, _ = page_of(tmp_path / "other", [a_run("lora", scores=scores)])
    assert ">inflation<" in text
    assert "+3.10" in text


def test_reported_tables_stand_apart(tmp_path: Path) -> None:
    text, _ = page_of(tmp_path, FULL, reported=["vtab1k"])
    measured, _, reported = text.partition('<section class="reported">')
    assert "RepAdapter" in reported
    assert "not measured here" in reported
    assert "RepAdapter" not in measured
    assert "PPT printed 0.75, computed 0.7445" in reported


def test_a_ledger_without_results_gives_a_page_that_says_so(tmp_path: Path) -> None:
    text, page = page_of(tmp_path, [a_run("lora", "flags", 0, None), a_failure("ssf", "flags", 0)])
    assert page.open == []
    assert "<svg" not in text
    assert "1 missing" in text


def test_all_files_and_the_terminal(tmp_path: Path) -> None:
    keep(tmp_path / "ledger", FULL)
    names = {kind: tmp_path / f"out.{kind}" for kind in ("html", "csv", "markdown", "png")}
    report = make_report(tmp_path / "ledger", **names)
    assert set(report.files) == set(names.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ledger",
        "out.csv",
        "out.html",
        "out.markdown",
        "out.png",
    ]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report)
    text = console.export_text()
    assert "pocket · pocket_vit" in text
    assert "66.0" in text
    assert "−5.0 [−5.0, −5.0]" in text


def test_no_ledger_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="There is no ledger"):
        make_report(tmp_path / "nowhere", html=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_csv_has_every_run_with_plain_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv([*FULL, a_failure("ssf", "new", 0, departures={"epochs": 3})]))))
    assert len(rows) == len(FULL) + 1
    first = rows[0]
    assert (first["task"], first["label"], first["seed"], first["split"]) == (
        "pocket/flags",
        "linear_probe",
        "0",
        "test",
    )
    assert float(first["top1"]) == pytest.approx(0.4)
    assert first["methods"] == "linear_probe(as=linear_probe)", "as it would be asked for again"
    assert (first["leading"], first["count"]) == ("top1", "1200")
    assert (rows[-1]["top1"], rows[-1]["split"]) == ("", "")
    assert (first["trainable"], first["peak_memory_bytes"]) == ("0", "")
    assert rows[-1]["error"].startswith("The loss is NaN")
    assert rows[-1]["departures"] == "epochs=3"


def test_markdown_has_a_table_per_board_and_one_of_tasks() -> None:
    text = as_markdown(boards(FULL))
    lines = text.splitlines()
    assert lines[0] == "## pocket · pocket_vit (pocket@1)"
    tables = [line for line in lines if line.startswith("|---")]
    assert len(tables) == 2
    for line in lines:
        if line.startswith("| lora "):
            assert line.count("|") in (lines[4].count("|"), 5)
    assert "| lora | 61.0 ± 1.0 | 66.0 ± 1.0 | 71.0 ± 1.0 |" in text


def test_the_front_is_what_nothing_smaller_beats() -> None:
    (board,) = boards(FULL)
    found = {point.label: point for point in points(board)}
    assert list(found) == ["linear_probe", "ssf", "lora", "full_finetuning"]
    assert [point.on_front for point in found.values()] == [True, True, True, False]
    assert [label for label, point in found.items() if point.is_best] == ["lora"]
    # The methods differ by the same amount in every cell, so the front is sure.
    assert [(point.step, point.share) for point in found.values()] == [(True, 1.0)] * 3 + [(False, 0.0)]


def test_no_front_is_drawn_through_differences_inside_the_noise() -> None:
    rng = random.Random(0)
    values = {name: [0.5 + rng.gauss(0, 0.02) for _ in range(9)] for name in ("linear_probe", "ssf", "lora")}
    records = [
        a_run(label, task, seed, values[label][3 * index + seed])
        for label in values
        for index, task in enumerate(("flags", "photos", "count"))
        for seed in range(3)
    ]
    (board,) = boards(records)
    found = points(board)
    assert [point.step for point in found] == [True, False, False], "only the cheapest is sure"
    assert not any(point.share == 1.0 for point in found[1:])
    # One task with one seed, as the demo has: nothing is known of the noise, so no line and no colour of the front.
    (demo,) = boards(
        [a_run(label, "flags", 0, values[label][0] + gain) for label, gain in zip(values, (0.0, 0.1, 0.2), strict=True)]
    )
    assert [(point.step, point.share) for point in points(demo)] == [(False, None)] * 3
    assert "var(--front)" not in as_svg(demo, 0)


def test_the_pages_of_methods_and_tasks_are_in_the_page_and_can_be_reached(tmp_path: Path) -> None:
    text, page = page_of(tmp_path, FULL)
    inside = {link[1:] for link in page.links if link.startswith("#")}
    ids = set(re.findall(r' id="([\w-]+)"', text))
    assert inside <= ids
    assert {f"method-{number}" for number in range(4)} <= inside
    assert {f"task-{number}" for number in range(3)} <= ids
    for name in re.findall(r'<option value="([\w-]+)"', text):
        assert name in ids
    of_task = text[text.index('id="task-') :]
    assert "60.0, 61.0, 62.0" in of_task, "the scores of all seeds of the best method on the first task"
    of_lora = text[text.index('id="method-2"') : text.index('id="method-3"')]
    assert "lora(as=lora)" in of_lora
    assert "1 of 4" in of_lora


def test_a_board_of_many_tasks_has_its_ranks_its_tests_and_its_rates(tmp_path: Path) -> None:
    rng = random.Random(1)
    tasks = [f"t{number}" for number in range(9)]
    records = []
    for label, gain in (("linear_probe", 0.0), ("lora", 0.1), ("ssf", 0.101), ("full_finetuning", 0.05)):
        for task in tasks:
            search = [
                a_run(
                    label,
                    task,
                    0,
                    identity={"purpose": "search", "optimisation": {"lr": lr}},
                    scores=RecordedScores(split="val", values={"top1": 0.5 + gain - loss}, leading="top1"),
                    chosen=Chosen(lr=lr, weight_decay=1e-4, rule="stated"),
                )
                for lr, loss in ((1e-3, 0.02), (4e-3, 0.0))
            ]
            chosen = Chosen(lr=4e-3, weight_decay=1e-4, rule="best", searched=tuple(one.key for one in search))
            value = 0.5 + gain + rng.gauss(0, 0.01)
            records += [*search, a_run(label, task, 0, value, chosen=chosen)]
    text, page = page_of(tmp_path, records)
    words = " ".join(" ".join(page.text).split())
    (board,) = boards(records)
    found = compared(board)
    assert found is not None
    scores = {row.label: row.scores for row in board.rows}
    assert found.friedman == friedman(scores)
    assert f"critical difference of {critical_difference(4, 9):.2f}" in words
    assert {frozenset(bar) for bar in found.bars} >= {frozenset({"lora", "ssf"})}
    assert found.probabilities["linear_probe"].worse > 0.99
    assert "mean ranks with the critical difference" in text
    rates = sensitivities(board)
    assert [(one.label, one.one_rate, one.loss) for one in rates if one.label == "lora"] == [("lora", 4e-3, 0.0)]
    assert rates[0].mean(0) == pytest.approx(-0.02)
    assert rates[0].rates[rates[0].middle] == 1e-3 and rates[0].worst == pytest.approx(-0.02)
    assert "validation score at each learning rate" in text
    # The seconds of two search runs and of the final one.
    assert board.rows[0].computing == pytest.approx(60.0)


def test_ranks_and_rates_need_enough_to_say_something(tmp_path: Path) -> None:
    (board,) = boards(FULL)
    assert compared(board) is None, "three tasks"
    assert sensitivities(board) == []
    text, _ = page_of(tmp_path, FULL)
    assert "Friedman" not in text


def test_the_picture_is_one_and_always_the_same() -> None:
    first = as_png(boards(FULL))
    assert first == as_png(boards(FULL))
    with Image.open(io.BytesIO(first)) as image:
        assert image.width > 1200
        colours = {colour for _, colour in image.convert("RGB").getcolors(10**7)}
    for name in ("--front", "--accent", "--ink"):
        value = COLOURS[name].lstrip("#")
        assert tuple(int(value[i : i + 2], 16) for i in (0, 2, 4)) in colours


@pytest.mark.parametrize(
    "records",
    [
        [a_run("linear_probe")],
        [a_run("lora")],
        [a_run("lora", "flags", 0, 0.0), a_run("ssf", "flags", 0, 1.0)],
        [a_run("lora", "flags", 0, None)],
        [a_run(f"lora(rank={rank})", "flags", 0, 0.5) for rank in range(20)],
        [],
    ],
    ids=["only zero", "one", "extremes", "nothing done", "twenty alike", "empty"],
)
def test_odd_ledgers_can_be_drawn(records: list[RunRecord]) -> None:
    with Image.open(io.BytesIO(as_png(boards(records)))) as image:
        assert image.height > 500


def test_the_picture_in_a_page_follows_the_page() -> None:
    (board,) = boards(FULL)
    svg = as_svg(board, 3)
    assert svg == as_svg(board, 3)
    assert svg.startswith('<svg role="img"')
    head = svg[: svg.index(">")]
    assert " width=" not in head
    assert "viewBox=" in head
    assert not re.findall(
        r"#[0-9a-fA-F]{6}\b(?![^<]*url)", re.sub(r"(?:url\(|href=\")#\w+", "", svg).replace("#000000", "")
    )
    assert "var(--front)" in svg
    assert "date" not in svg.lower()
    for index in range(4):
        assert f'id="point-3-{index}"' in svg
    for label in ("lora", "ssf", "linear_probe", "full_finetuning"):
        assert f">{label}</text>" in svg


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.8714), "87.1"),
        (percent(None), "–"),
        (spread(0.012), "± 1.2"),
        (spread(float("nan")), ""),
        (signed(-0.0124), "−1.2"),
        (signed(0.0124, 2), "+1.24"),
        (count(0), "0"),
        (count(999), "999"),
        (count(294_912), "295 k"),
        (count(1_234_567), "1.23 M"),
        (count(85_800_000), "85.8 M"),
        (size(512), "512 B"),
        (size(51_752), "51.8 kB"),
        (size(None), "–"),
        (seconds(0.0123), "12.3 ms"),
        (seconds(75), "75.0 s"),
        (seconds(600), "10 min"),
        (seconds(7_320), "2 h 2 min"),
    ],
)
def test_numbers_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_metric_goes_by_its_own_name_everywhere(tmp_path: Path) -> None:
    def scores(value: float) -> RecordedScores:
        return RecordedScores(split="test", values={"mae": value}, leading="mae", higher_is_better=False)

    records = [
        a_run(label, task, 0, scores=scores(value))
        for label, value in (("lora", 12.34), ("ssf", 1.5))
        for task in ("flags", "count")
    ]
    text, page = page_of(tmp_path, records)
    words = " ".join(" ".join(page.text).split())
    assert "top-1" not in text
    assert "mae by task" in words
    assert "1.5" in words and "12.34" in words
    assert "lower is better" in text
    assert "mean mae over tasks, lower is better" in as_svg(boards(records)[0], 0)
    assert [point.on_front for point in points(boards(records)[0])] == [True, False]
    head, best, other = [row for row in as_markdown(boards(records)).splitlines() if row.startswith("| ")][:3]
    assert head.startswith("| method | mae | ± std |")
    assert best.startswith("| ssf | 1.5 |")
    assert "| +10.8" in other
    (row, *_) = csv.DictReader(io.StringIO(as_csv(records)))
    assert (row["leading"], float(row["mae"])) == ("mae", 12.34)


# -- names that try to be more than names ------------------------------------------------------------------------------

ODD = [
    "=cmd|' /C calc'!A0",
    "a\x1b]0;owned\x07\u202eb",
    "cost $5 and $x^$",
    "$\\frac{$",
    "[/red] [bold]x",
    "</script><script>alert(1)</script>",
    "a|b\nc",
]


def test_odd_names_end_no_output_and_reach_nothing_that_obeys_them(tmp_path: Path) -> None:
    made = [a_run("lora", "flags", 0), a_failure("ssf", "flags", 0)]
    made += [
        a_run(f"lora(as={odd})", task).model_copy(update={"label": odd, "group": group, "suite": suite})
        for odd in ODD
        for task, group, suite in (("flags", "natural", ODD[2]), ("photos", odd, ODD[4]))
    ]
    assert set(ODD) <= {point.label for board in boards(made) for point in points(board)}
    keep(tmp_path / "ledger", made)
    out = {kind: tmp_path / f"page.{kind}" for kind in ("html", "csv", "markdown", "png")}
    report = make_report(tmp_path / "ledger", **out)
    terminal = io.StringIO()
    SafeConsole(file=terminal, width=200).print(report)
    for kind in ("html", "csv", "markdown"):
        terminal.write(out[kind].read_text(encoding="utf-8"))
    assert not {letter for letter in terminal.getvalue() if not (letter.isprintable() or letter in "\n\t\u00a0")}
    assert "[/red] [bold]x" in terminal.getvalue()
    rows = list(csv.DictReader(io.StringIO(out["csv"].read_text(encoding="utf-8"))))
    assert {row["label"] for row in rows} >= {f"'{ODD[0]}", ODD[2]}
    page = out["html"].read_text(encoding="utf-8")
    assert "<script>alert" not in page
    with Image.open(out["png"]) as picture:
        assert picture.width > 100


def test_the_policy_of_the_page_allows_its_own_script_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    keep(tmp_path / "ledger", FULL)
    page = tmp_path / "page.html"
    make_report(tmp_path / "ledger", html=page)
    text = page.read_text(encoding="utf-8")
    stated = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert stated is not None
    policy = dict(part.strip().split(" ", 1) for part in stated[1].split(";"))
    assert policy["default-src"] == "'none'"
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    assert policy["script-src"] == " ".join(f"'sha256-{one}'" for one in hashes)
    assert not re.search(r"<[^>]+\son[a-z]+\s*=", text)  # no handlers in attributes, which the policy would stop
    assert text.index("Content-Security-Policy") < text.index("<style>")


def test_a_failure_without_a_message_does_not_end_the_page(tmp_path: Path) -> None:
    failure = a_failure("ssf", "flags", 0)
    assert failure.error is not None
    keep(tmp_path / "ledger", [failure.model_copy(update={"error": failure.error.model_copy(update={"message": ""})})])
    make_report(tmp_path / "ledger", html=tmp_path / "page.html")
    assert "Failed runs" in (tmp_path / "page.html").read_text(encoding="utf-8")
