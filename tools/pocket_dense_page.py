"""Write docs/pocket_dense.md with its pictures: the offline sets for dense prediction, one by one.

python tools/pocket_dense_page.py            write; the pictures are drawn from the sets' own images
python tools/pocket_dense_page.py --check    say what is stale, and exit with 1 if anything is; no picture is drawn

Results come from the ledger in results/pocket_dense (made by `vpeft bench --suite pocket-dense --out
results/pocket_dense`), counts from docs/pocket_dense/counts.json, which this tool writes beside the pictures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vpeft.bench.ledger import Ledger
from vpeft.bench.protocol import PROTOCOLS
from vpeft.bench.record import RunRecord
from vpeft.bench.suites import suite
from vpeft.data.pocket_dense import SIZES, DensePictures, DenseSet, pocket_dense_sets
from vpeft.data.pocket_dense.dense_set import stored_digests
from vpeft.report.board import boards
from vpeft.report.tables import as_markdown

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "results" / "pocket_dense"
PAGE, FOLDER = ROOT / "docs" / "pocket_dense.md", ROOT / "docs" / "pocket_dense"
COUNTS = FOLDER / "counts.json"
SUITE = "pocket-dense"
# Pictures on a contact sheet.
ACROSS = 8
# Areas in pixels that part small, medium and large objects, of a picture of 128 x 128: COCO's 32 and 96 pixels a side,
# scaled as 640 is to 128.
SMALL, LARGE = 6.4**2, 19.2**2


def page(records: Sequence[RunRecord], counts: Mapping[str, Any]) -> str:
    """The text of docs/pocket_dense.md."""
    parts = [
        "# pocket-dense: masks, boxes and depth without a network",
        "<!-- Written by tools/pocket_dense_page.py. -->",
        f"pocket-dense holds three small sets for dense prediction. Each has {SIZES['train']} training, {SIZES['val']}"
        f" validation and {SIZES['test']} test images of 128 x 128 pixels, which vpeft makes from installed packages or"
        " draws. One set serves every task for which it has targets.",
        "```\n"
        "vpeft train --task semantic_segmentation --data pocket-dense/land --backbone pocket_vit --out runs/land\n"
        "vpeft train --task detection --data pocket-dense/digits --backbone pocket_vit --out runs/digits\n"
        "vpeft data export pocket-dense/digits out/\n```",
        "## Sets",
        _overview(counts),
        *_sets(counts),
        "## Benchmark",
        _tiers(),
        *_results(records),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _overview(counts: Mapping[str, Any]) -> str:
    rows = []
    for name, one in pocket_dense_sets().items():
        found = counts.get(name, {})
        objects = f"{len(one.object_labels)} classes, {found.get('objects', 0):,} objects" if one.object_labels else "–"
        rows.append([f"`pocket-dense/{name}`", ", ".join(one.mask_labels), objects, "yes" if one.has_depth else "–"])
    return _table(["source", "classes of pixels", "boxes and masks of objects", "depth"], rows)


def _sets(counts: Mapping[str, Any]) -> Iterable[str]:
    for name, one in pocket_dense_sets().items():
        digests = ", ".join(f"{split} `{value[:12]}`" for split, value in stored_digests()[name].items())
        yield (
            f"### {name}\n\n**{one.title}** {one.description} Source: {one.source}. Licence: {one.licence}. sha256:"
            f" {digests}."
        )
        if found := counts.get(name):
            yield _facts(one, found)
        yield f"![{name}: pictures above, what is known of them below](pocket_dense/{name}.png)"


def _facts(one: DenseSet, found: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{label} {100 * found['pixels'][label]:.1f} %" for label in one.mask_labels)
    text = f"Training pixels by class: {shares}."
    if one.object_labels:
        sizes = found["sizes"]
        text += (
            f" Training objects: {found['objects_train']:,}, of which {100 * sizes['small']:.0f} % are small (a mask of"
            f" fewer than {SMALL:.0f} pixels), {100 * sizes['medium']:.0f} % medium and {100 * sizes['large']:.0f} %"
            f" large (more than {LARGE:.0f}); {100 * found['overlapping']:.0f} % of the boxes overlap another one."
        )
    if one.has_depth:
        text += f" Depth goes from {found['nearest']:.1f} to {found['farthest']:.1f} m."
    return text


def _tiers() -> str:
    chosen = suite(SUITE)
    rows = []
    for name, tier in chosen.tiers.items():
        rules = PROTOCOLS[tier.protocol]
        points = len(rules.grid.points())
        tried = f"{points} learning rates" if points > 1 else "stated"
        tasks = ", ".join(tier.tasks or chosen.tasks)
        rows.append([f"`{name}`", tier.protocol, tasks, str(rules.optimisation["epochs"]), tried, str(tier.seeds)])
    return _table(["tier", "protocol", "tasks", "epochs", "search", "seeds"], rows)


def _results(records: Sequence[RunRecord]) -> Iterable[str]:
    made = boards(records)
    if not made:
        yield (
            "No run is recorded in results/pocket_dense yet. `vpeft bench --suite pocket-dense --out"
            " results/pocket_dense` makes the runs and goes on where it was stopped."
        )
        return
    yield as_markdown(made).replace("\n## ", "\n### ").removeprefix("## ").join(["### ", ""]).strip()


def counted() -> dict[str, Any]:
    """Objects, pixels and depths of every set, as docs/pocket_dense/counts.json keeps them."""
    found: dict[str, Any] = {}
    for name, one in pocket_dense_sets().items():
        splits = one.splits()
        train = splits["train"]
        often = np.bincount(train.mask.ravel(), minlength=len(one.mask_labels)) / train.mask.size
        row: dict[str, Any] = {"pixels": {label: round(float(often[k]), 4) for k, label in enumerate(one.mask_labels)}}
        if one.object_labels:
            seen = [train.objects(index) for index in range(len(train))]
            areas = np.array([int(thing.mask.sum()) for things in seen for thing in things])
            row["objects"] = sum(len(part.objects(index)) for part in splits.values() for index in range(len(part)))
            row["objects_train"] = len(areas)
            row["sizes"] = {
                "small": round(float((areas < SMALL).mean()), 4),
                "medium": round(float(((areas >= SMALL) & (areas <= LARGE)).mean()), 4),
                "large": round(float((areas > LARGE).mean()), 4),
            }
            row["overlapping"] = round(_overlapping([[thing.box for thing in things] for things in seen]), 4)
        if train.depth is not None:
            row |= {"nearest": int(train.depth.min()) / 1000, "farthest": int(train.depth.max()) / 1000}
        found[name] = row
    return found


def _overlapping(pictures: Sequence[Sequence[tuple[int, int, int, int]]]) -> float:
    """The share of boxes that overlap another box of their picture."""
    touched = total = 0
    for boxes in pictures:
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            others = (box for j, box in enumerate(boxes) if j != k)
            touched += any(x0 < a1 and a0 < x1 and y0 < b1 and b0 < y1 for a0, b0, a1, b1 in others)
            total += 1
    return touched / total


def draw() -> None:
    """A contact sheet for each set: the pictures, and below each what is known of it."""
    from matplotlib.figure import Figure

    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, one in pocket_dense_sets().items():
        pictures = one.load("train")
        kinds = ["picture", "objects" if one.object_labels else "mask"] + ["depth"] * one.has_depth
        bands = 2
        figure = Figure(figsize=(ACROSS * 1.3, bands * len(kinds) * 1.3), layout="constrained")
        grid = figure.subplots(bands * len(kinds), ACROSS)
        for band in range(bands):
            for column in range(ACROSS):
                for row, kind in enumerate(kinds):
                    axes = grid[band * len(kinds) + row, column]
                    _panel(axes, kind, one, pictures, band * ACROSS + column)
                    axes.set_axis_off()
        path = FOLDER / f"{name}.png"
        figure.savefig(path, dpi=110)
        with Image.open(path) as drawn:
            drawn.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _panel(axes: Any, kind: str, one: DenseSet, pictures: DensePictures, index: int) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    image = pictures.images[index]
    if kind == "picture":
        axes.imshow(image, interpolation="nearest")
    elif kind == "depth" and pictures.depth is not None:
        axes.imshow(pictures.depth[index] / 1000, cmap="viridis", vmin=2, vmax=14, interpolation="nearest")
    elif kind == "mask":
        colours = np.zeros((256, 3), np.uint8)
        # land, lake, sea, what does not count
        colours[[0, 1, 2, 255]] = [[196, 178, 120], [60, 200, 220], [20, 50, 130], [235, 235, 235]]
        axes.imshow(colours[pictures.mask[index]], interpolation="nearest")
    else:
        shown = image.astype(np.float64) * 0.45
        colours = colormaps["tab10"](np.arange(10))[:, :3]
        for thing in pictures.objects(index):
            ink = colours[thing.label % len(colours)]
            shown[thing.mask] = 255 * (0.25 * image[thing.mask] / 255 + 0.75 * ink)
        axes.imshow(shown.astype(np.uint8), interpolation="nearest")
        for thing in pictures.objects(index):
            x0, y0, x1, y1 = thing.box
            axes.add_patch(
                Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, color=colours[thing.label], linewidth=0.8)
            )
            axes.text(x0, y0 - 1, one.object_labels[thing.label], color="white", fontsize=5, va="bottom")


def main() -> int:
    records = list(Ledger(LEDGER)) if LEDGER.exists() else []
    if "--check" in sys.argv[1:]:
        counts = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
        stale = [] if PAGE.exists() and PAGE.read_text() == page(records, counts) else [PAGE]
        stale += [
            path for path in (COUNTS, *(FOLDER / f"{name}.png" for name in pocket_dense_sets())) if not path.exists()
        ]
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale. Run: make docs")
        return 1 if stale else 0
    draw()
    counts = counted()
    COUNTS.write_text(json.dumps(counts, indent=1) + "\n")
    PAGE.write_text(page(records, counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
