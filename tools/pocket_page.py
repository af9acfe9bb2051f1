"""Write docs/pocket.md with its pictures, and docs/pocket/results.json: the offline benchmark, task by task.

python tools/pocket_page.py            write; the pictures are drawn from the tasks' own images
python tools/pocket_page.py --check    say what is stale, and exit with 1 if anything is; no picture is drawn

Every number comes from the ledger in results/pocket (made by `vpeft bench --suite pocket --out results/pocket`), from
docs/pocket/probe.json (made by benchmarks/pocket_probe.py) or from the published tables that ship with vpeft.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vpeft.bench.ledger import Ledger
from vpeft.bench.protocol import PROTOCOLS
from vpeft.bench.record import RunRecord, State
from vpeft.bench.statistics import Correlation, rank_correlation
from vpeft.bench.suites import suite
from vpeft.data.pocket import SIZES, pocket_tasks
from vpeft.data.pocket.task import stored_digests
from vpeft.report.board import Board, BoardRow, boards
from vpeft.report.published import PublishedTable, published
from vpeft.report.tables import as_markdown

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "results" / "pocket"
PAGE, FOLDER = ROOT / "docs" / "pocket.md", ROOT / "docs" / "pocket"
CARD = ROOT / "src" / "vpeft" / "assets" / "pocket_vit.md"
PROBE = FOLDER / "probe.json"
IDEAS = ROOT / "pretraining" / "ideas.json"
# method -> why its rank differs from its rank on VTAB-1k, for ranks that differ by APART or more
REASONS, APART = LEDGER / "reasons.toml", 4
# images per row and rows of a contact sheet
ACROSS, DOWN = 12, 2
GROUPS = ("natural", "specialised", "structured")
COLUMNS = {
    "chance": "chance",
    "probe_random": "linear probe, random weights",
    "probe": "linear probe",
    "lora": "LoRA",
    "full": "full fine-tuning",
    "scratch": "from scratch",
}


def page(records: Sequence[RunRecord]) -> str:
    """The text of docs/pocket.md."""
    parts = [
        "# pocket: nine tasks without a network",
        "<!-- Written by tools/pocket_page.py. -->",
        "pocket is a small benchmark that needs no network: nine tasks with images of 64 x 64 pixels, in the three"
        f" groups of VTAB. Each task has {SIZES['train']} training, {SIZES['val']} validation and {SIZES['test']:,}"
        " test images, which vpeft draws or which come with installed packages. The backbone `pocket_vit` ships with"
        " vpeft.",
        "```\nvpeft bench --suite pocket --tier quick --methods lora,ssf --out runs/pocket\nvpeft report runs/pocket\n"
        "vpeft data export pocket/count out/\n```",
        "In Python, `vpeft.suites.pocket()`.",
        "## Tiers",
        _tiers(),
        "## Tasks",
        *_tasks(),
        "## What the tasks can tell apart",
        _probe(),
        "## Results",
        *_results(records),
        *_above_the_probe(records),
        "## Does the ranking agree with VTAB-1k?",
        *_agreement(_full(records)),
        "## The backbone",
        f"[The model card](../{CARD.relative_to(ROOT)}) says on what `pocket_vit` was trained and what accuracy it"
        " reaches; [pretraining/](../pretraining/README.md) holds the code that trains it.",
        *_ideas(),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _tiers() -> str:
    rows = []
    for name, tier in suite("pocket").tiers.items():
        rules = PROTOCOLS[tier.protocol]
        points = len(rules.grid.points())
        tried = f"{points} learning rates" if points > 1 else "stated"
        tasks = ", ".join(tier.tasks) if tier.tasks else "all nine"
        rows.append([f"`{name}`", tier.protocol, tasks, str(rules.optimisation["epochs"]), tried, str(tier.seeds)])
    return _table(["tier", "protocol", "tasks", "epochs", "search", "seeds"], rows)


def _tasks() -> Iterable[str]:
    for name, task in pocket_tasks().items():
        digests = ", ".join(f"{split} `{value[:12]}`" for split, value in stored_digests()[name].items())
        yield (
            f"### {name}\n\n*{task.group}*. **{task.title}** {task.description} {len(task.labels)} classes. Source:"
            f" {task.source}. Licence: {task.licence}. sha256: {digests}.\n\n![{name}: images and their classes]"
            f"(pocket/{name}.png)"
        )


def _probe() -> str:
    if not PROBE.exists():
        command = "python benchmarks/pocket_probe.py --json docs/pocket/probe.json"
        return f"Not measured yet for the shipped weights: `{command}`."
    groups = {name: task.group for name, task in pocket_tasks().items()}
    read: dict[str, dict[str, Any]] = json.loads(PROBE.read_text())
    found = {name: row for name, row in read.items() if name in groups}
    epochs = " or ".join(map(str, sorted({int(row["epochs"]) for row in found.values() if "epochs" in row})))
    one_rate = [name for name in groups if found.get(name, {}).get("rates") == "stated"]
    rows = [
        [name + "*" * (name in one_rate), groups[name], *(_number(found[name].get(column)) for column in COLUMNS)]
        for name in groups
        if name in found
    ]
    for group in GROUPS:
        inside = [found[name] for name in found if groups[name] == group]
        cells = [[row[column] for row in inside if column in row] for column in COLUMNS]
        rows.append(
            [f"**{group}**", "mean", *(_number(sum(c) / len(c) if len(c) == len(inside) else None) for c in cells)]
        )
    return (
        "Test accuracy in per cent, one seed, 800 training images. The learning rate is chosen on the validation images"
        f" (`python benchmarks/pocket_probe.py --epochs {epochs}`)."
        " Empty cells have not been measured on the shipped weights."
        + (" Rows with an asterisk use one fixed learning rate (`--one-rate`)." if one_rate else "")
        + "\n\n"
        + _table(["task", "group", *COLUMNS.values()], rows)
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _full(records: Sequence[RunRecord]) -> list[Board]:
    """The boards of the full tier that depart in nothing and have every task."""
    every = set(pocket_tasks())
    return [
        board
        for board in boards(records)
        if board.protocol == _protocol_of("full") and not board.departures
        if {task.name for task in board.tasks} == every
    ]


def _protocol_of(tier: str) -> str:
    return suite("pocket").tiers[tier].protocol


def _results(records: Sequence[RunRecord]) -> Iterable[str]:
    made = boards(records)
    if not made:
        yield "No run is recorded in results/pocket yet."
        return
    done = [record for record in records if record.state is State.done]
    seconds = sum(record.costs.wall_seconds or 0.0 for record in done if record.costs is not None)
    machines = sorted({record.provenance.hardware for record in done if record.provenance is not None})
    yield (
        f"[results/pocket](../results/pocket) records {len(done)} runs, including the searches. They took"
        f" {seconds / 3600:.1f} hours of one core ({'; '.join(machines)})."
    )
    for board in _full(records):
        whole = {row.label for row in board.rows if row.complete}
        of_table = [r for r in done if r.identity.protocol == board.protocol and r.label in whole and not r.departures]
        cost = sum(record.costs.wall_seconds or 0.0 for record in of_table if record.costs is not None)
        if whole:
            yield (
                f"{len(of_table)} of these runs make the full table of {len(whole)} methods (three learning rates on"
                f" each task, then every seed). They took {cost / 3600:.1f} hours of one core, with other jobs running:"
                f" {cost / 7200:.1f} hours on two cores."
            )
    yield as_markdown(made).replace("\n## ", "\n### ").removeprefix("## ").join(["### ", ""]).strip()


def _above_the_probe(records: Sequence[RunRecord]) -> Iterable[str]:
    """Each method against the linear probe of the same board, on the structured tasks, where a probe is not enough."""
    margins: dict[str, list[tuple[float, str]]] = {}
    for board in boards(records):
        probe = next((row for row in board.rows if row.label == "linear_probe"), None)
        if probe is None or board.departures:
            continue
        for index in board.groups.get("structured", ()):
            floor = probe.cell(index)
            for row in board.rows:
                if floor is not None and row is not probe and (cell := row.cell(index)) is not None:
                    where = f"{board.tasks[index].name}, {board.protocol}"
                    margins.setdefault(row.label, []).append((100 * (cell[0] - floor[0]), where))
    if not margins:
        return
    below = sorted((max(found), label) for label, found in margins.items() if max(found)[0] <= 0)
    yield "### Above the linear probe"
    yield (
        f"{len(margins) - len(below)} of {len(margins)} methods beat the linear probe of the same protocol on at least"
        " one structured task. The largest margins, in points:"
    )
    best = sorted(((*max(found), label) for label, found in margins.items()), reverse=True)
    yield _table(["method", "margin", "where"], [[f"`{label}`", f"{points:+.1f}", at] for points, at, label in best])
    if below:
        yield "These methods do not beat it on any: " + ", ".join(f"`{label}`" for _, label in below) + "."


def _agreement(full: Sequence[Board]) -> Iterable[str]:
    complete = [board for board in full if sum(row.complete for row in board.rows) >= 4]
    if not complete:
        yield (
            "The full table does not have enough complete methods yet. When it has, this section compares it with the"
            " re-run of Mai et al. and the table of V-PEFT Bench."
        )
        return
    board = complete[0]
    ours = {row.methods[0].name: row.mean for row in board.rows if row.complete and row.mean and len(row.methods) == 1}
    rows, told = [], _reasons()
    for source in ("vtab1k_osu", "vtab1k"):
        table = published(source)
        rows.append(_correlated(table.about.title, "all tasks", ours, table.means()))
        if source == "vtab1k_osu" and told.keys() & ours.keys():
            rest = {name: mean for name, mean in ours.items() if name not in told}
            without = ", ".join(f"`{name}`" for name in ours if name in told)
            what = f"all tasks, without {without} (reason below)"
            rows.append(_correlated(table.about.title, what, rest, table.means()))
        for group in GROUPS:
            mine = {r.methods[0].name: r.group_means[group] for r in board.rows if r.complete and len(r.methods) == 1}
            rows.append(_correlated(table.about.title, group, mine, _means(table, group)))
    yield (
        "Rank correlation over the common methods, with 95 % bootstrap intervals over methods. The published tables are"
        " *reported*; vpeft did not measure them."
    )
    yield _table(["table", "tasks", "methods", "Spearman", "Kendall"], [row for row in rows if row])
    yield "![Mean on pocket against mean on VTAB-1k](pocket/agreement.png)"
    yield from _ranks(ours, published("vtab1k_osu").means())


def _ranks(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Iterable[str]:
    """Both means and ranks of every method in common, and what is known of the large differences."""
    common = sorted(set(ours) & set(theirs), key=lambda name: -ours[name])
    mine, other = (_places({name: means[name] for name in common}) for means in (ours, theirs))
    rows = [
        [f"`{name}`", f"{100 * ours[name]:.1f}", f"{100 * theirs[name]:.1f}", str(mine[name]), str(other[name])]
        for name in common
    ]
    yield _table(["method", "pocket", "VTAB-1k, re-run", "rank on pocket", "rank on VTAB-1k"], rows)
    apart = [name for name in common if abs(mine[name] - other[name]) >= APART]
    known = _reasons()
    if apart:
        yield f"Ranks that differ by {APART} or more: " + " ".join(
            f"`{name}` ({mine[name]} against {other[name]}): {known.get(name, 'not explained.')}" for name in apart
        )


def _reasons() -> dict[str, str]:
    return tomllib.loads(REASONS.read_text()) if REASONS.exists() else {}


def _places(means: Mapping[str, float]) -> dict[str, int]:
    return {name: place for place, name in enumerate(sorted(means, key=lambda name: -means[name]), 1)}


def _ideas() -> Iterable[str]:
    """How ideas for the pre-training compare at equal cost."""
    if not IDEAS.exists():
        return
    found = json.loads(IDEAS.read_text())
    groups: dict[str, list[str]] = {}
    for task, group in found["groups"].items():
        groups.setdefault(group, []).append(task)
    yield "### Ideas for the pre-training"
    yield (
        f"Accuracy of a linear probe on the class token, in per cent, after {found['steps']} batches of"
        f" {found['batch']} images. All variants start from the same weights and use the same optimisers"
        " (`python pretraining/ideas.py` says what each idea is). There is one seed, and the training is a small part"
        " of the shipped one, so the table only helps to choose between ideas."
    )
    means = {name: statistics.fmean(one["top1"].values()) for name, one in found["ideas"].items()}
    order = sorted(means, key=lambda name: -means[name])
    yield (
        f"Means over the nine tasks: {', '.join(f'{name} {means[name]:.1f}' for name in order)}. The model card says"
        " how the shipped weights were trained."
    )
    rows = []
    for name, one in found["ideas"].items():
        of_groups = [statistics.fmean(one["top1"][task] for task in tasks) for tasks in groups.values()]
        cells = [f"{value:.1f}" for value in (*one["top1"].values(), *of_groups)]
        rows.append([name, *cells, f"{one['minutes']:.0f}" if one["minutes"] else "–"])
    yield _table(["idea", *found["groups"], *(f"**{group}**" for group in groups), "min of a core"], rows)


def _means(table: PublishedTable, group: str) -> dict[str, float]:
    by_row = {row.method: table.group_means(row)[group] for row in table.rows}
    return {ours: by_row[theirs] for ours, theirs in table.about.names.items()}


def _correlated(title: str, what: str, ours: Mapping[str, float], theirs: Mapping[str, float]) -> list[str]:
    try:
        found: Correlation = rank_correlation(ours, theirs)
    except ValueError as error:
        return [title, what, str(error), "", ""]
    cells = [f"{i.value:.2f} ({i.low:.2f} to {i.high:.2f})" for i in (found.spearman, found.kendall)]
    return [title, what, str(found.count), *cells]


def results(records: Sequence[RunRecord]) -> dict[str, object]:
    """docs/pocket/results.json: method -> protocol -> task -> mean, std (null with one seed) and seeds."""
    order = [_protocol_of(tier) for tier in ("full", "quick", "smoke")]
    plain = [board for board in boards(records) if not board.departures and board.protocol in order]
    found: dict[str, dict[str, dict[str, dict[str, float | None]]]] = {}
    for board in sorted(plain, key=lambda board: order.index(board.protocol)):
        for row in board.rows:
            if len(row.methods) == 1:
                found.setdefault(row.methods[0].name, {})[board.protocol] = _cells(board, row)
    days = sorted(record.finished[:10] for board in plain for record in board.records if record.finished)
    source = f"`vpeft bench --suite pocket` on `pocket_vit`, {days[0]} to {days[-1]}" if days else ""
    return {"source": source, "methods": found} if found else {}


def _cells(board: Board, row: BoardRow) -> dict[str, dict[str, float | None]]:
    cells = {}
    for index, column in enumerate(board.tasks):
        scores = [score for score in row.scores[index].tolist() if not math.isnan(score)]
        if scores:
            std = round(statistics.stdev(scores), 4) if len(scores) > 1 else None
            cells[column.name] = {"mean": round(statistics.fmean(scores), 4), "std": std, "seeds": len(scores)}
    return cells


def draw(full: Sequence[Board]) -> None:
    """The contact sheets, and the picture of the agreement when there is a full table."""
    from matplotlib.figure import Figure

    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, task in pocket_tasks().items():
        images, labels = task.load("train")
        figure = Figure(figsize=(ACROSS * 0.9, DOWN * 1.05), layout="constrained")
        for axes, image, label in zip(figure.subplots(DOWN, ACROSS).flat, images, labels, strict=False):
            axes.imshow(image, interpolation="nearest")
            axes.set_title(task.labels[int(label)], fontsize=6, pad=2)
            axes.set_axis_off()
        _save(figure, FOLDER / f"{name}.png")
    complete = [board for board in full if sum(row.complete for row in board.rows) >= 4]
    if complete:
        table, board = published("vtab1k_osu"), complete[0]
        ours = {r.methods[0].name: r.mean for r in board.rows if r.complete and r.mean and len(r.methods) == 1}
        theirs = table.means()
        figure = Figure(figsize=(6.5, 5), layout="constrained")
        axes = figure.subplots()
        for name in sorted(set(ours) & set(theirs)):
            axes.scatter(100 * theirs[name], 100 * ours[name], s=24, color="#0b6bcb")
            axes.annotate(name, (100 * theirs[name], 100 * ours[name]), (4, 3), textcoords="offset points", fontsize=8)
        axes.margins(x=0.14)  # room for the names
        measured = board.measure.title
        axes.set_xlabel(f"mean {measured}, {table.about.title}, reported")
        axes.set_ylabel(f"mean {measured}, pocket, measured")
        _save(figure, FOLDER / "agreement.png")


def _save(figure, path: Path) -> None:  # type: ignore[no-untyped-def]
    """As a palette picture: a third of the bytes, and no difference that a reader sees."""
    figure.savefig(path, dpi=110)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> int:
    records = list(Ledger(LEDGER)) if LEDGER.exists() else []
    files = {PAGE: page(records)}
    if found := results(records):
        files[FOLDER / "results.json"] = json.dumps(found, indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
        stale += [path for name in pocket_tasks() if not (path := FOLDER / f"{name}.png").exists()]
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale. Run: make docs")
        return 1 if stale else 0
    draw(_full(records))
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
