"""The applications among the shipped recipes: run each, keep its result and its cost, and write docs/applications.md.

    python benchmarks/applications.py                       run what has no record, then write the page
    python benchmarks/applications.py --only medical@pocket run this one again
    python benchmarks/applications.py --page                write the page from the records alone

A recipe is run by the commands in its own comments, in an empty folder, one recipe after the other. Its record stays
valid while its file is as it was. The page lists what was measured and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vpeft.bench.provenance import hardware
from vpeft.cli.loaded import Loaded, open_adapter
from vpeft.data.datasets import open_data
from vpeft.data.image_set import ImageSet
from vpeft.drawing import drawn, picture_of, plain_image
from vpeft.recipes import ShippedRecipe, shipped_recipes
from vpeft.task import Prediction
from vpeft.training.recipe import Recipe
from vpeft.training.result import shown

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "applications.json"
PAGE = ROOT / "docs" / "applications.md"
IMAGES = ROOT / "docs" / "images"
SHOWN = 6  # images of a picture
SIDE, MARGIN = 96, 6
LETTER, WIDEST = 11, 16  # height of the words below an image in pixels, and how many of them fit into a line
COLOURS = (96, 64, 48, 32, 24, 16)  # of a picture's file: the most with which it is small enough
MOST_BYTES = 40_000
RIGHT, WRONG = (0, 110, 0), (190, 0, 0)


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="ids, with commas; these are run again")
    parser.add_argument("--threads", type=int, default=2, help="of a run")
    parser.add_argument("--page", action="store_true", help="run nothing")
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    chosen = [name for name in options.only.split(",") if name]
    known = {name: one for name, one in shipped_recipes().items() if one.application is not None}
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise SystemExit(f"There is no application {', '.join(unknown)}; there are {', '.join(known)}.")
    records = read_records(options.records)
    if not options.page:
        missing = [name for name, one in known.items() if not is_fresh(records.get(name), one)]
        for name in chosen or missing:
            print(name, flush=True)
            records[name] = run(known[name], options.threads)
            write_records(options.records, records)
            print(f"  {sentence(records[name])}, {records[name]['seconds']:.0f} s", flush=True)
    PAGE.write_text(page(known, records), encoding="utf-8")


def read_records(path: Path) -> dict[str, Any]:
    """The records by id of the recipe, none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_records(path: Path, records: Mapping[str, Any]) -> None:
    """Write them, sorted, so that a change of one is one change of the file."""
    path.write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n", encoding="utf-8")


def digest(one: ShippedRecipe) -> str:
    """sha256 of a recipe's file."""
    return hashlib.sha256(one.file.read_bytes()).hexdigest()


def is_fresh(record: Mapping[str, Any] | None, one: ShippedRecipe) -> bool:
    """Whether a record is of the recipe as it is now."""
    return record is not None and record["recipe"] == digest(one)


def run(one: ShippedRecipe, threads: int) -> dict[str, Any]:
    """Run the commands of a recipe in an empty folder; its record, and its picture beside the page."""
    with tempfile.TemporaryDirectory(prefix="vpeft-application-") as text:
        folder = Path(text)
        cost = run_commands(one.commands, folder, threads)
        folders = [folder / name for name in outputs(one.commands)]
        found = [json.loads(next(place.glob("*.json")).read_text(encoding="utf-8")) for place in folders]
        record = {"recipe": digest(one), **cost, "threads": threads, "hardware": hardware(), "load": os.getloadavg()[0]}
        for place, told in zip(folders, found, strict=True):
            record |= told_by(place, told)
        adapter = [place / "adapter.safetensors" for place in folders if (place / "adapter.safetensors").exists()][-1]
        record["adapter_bytes"] = adapter.stat().st_size
        before = Path.cwd()
        os.chdir(folder)  # where the paths of the recipe start
        try:
            IMAGES.mkdir(exist_ok=True)
            write_picture(draw(one, adapter), picture_file(one.id))
        finally:
            os.chdir(before)
    return record


def run_commands(commands: Sequence[str], folder: Path, threads: int) -> dict[str, float]:
    """Run lines of shell in a folder; their seconds, those of the processor, and the largest memory in bytes."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    surroundings = {**os.environ, "PATH": path, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    with (folder / "log").open("wb") as log:
        script = "\n".join(["set -euo pipefail", *commands])
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=folder, env=surroundings, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"It failed:\n{(folder / 'log').read_text(encoding='utf-8')[-3000:]}")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "memory": used.ru_maxrss * 1024,
    }


def outputs(commands: Sequence[str]) -> list[str]:
    """The folders that commands write runs into, in their order."""
    found = []
    for command in commands:
        words = shlex.split(command)
        found += [words[place + 1] for place, word in enumerate(words[:-1]) if word == "--out"]
    return found


def told_by(folder: Path, told: Mapping[str, Any]) -> dict[str, Any]:
    """What one run's record says, in few numbers."""
    if "extension" in told:
        figures = told["extension"]
        return {"extension": {name: figures[name] for name in ("new", "old_before", "old_after")}}
    if "episodes" in told:
        return {"episodes": {name: told[name] for name in ("episodes", "accuracy", "interval")}}
    return {
        "test": {name: told["test"][name] for name in ("values", "leading", "count")},
        "trained": told["plan"]["trainable_with_head"],
        "share": told["plan"]["share"],
    }


# -- pictures -------------------------------------------------------------------------------------------------------


def picture_file(name: str) -> Path:
    """Where the picture of a recipe lies."""
    return IMAGES / f"application_{name.partition('@')[0].replace('-', '_')}.png"


def draw(one: ShippedRecipe, adapter: Path) -> Image.Image:
    """Test images in a row, below each what the adapter says of it."""
    loaded = open_adapter(adapter, device="cpu")
    recipe = Recipe.from_toml(one.file, {"out": "unused"})
    config = recipe.data.model_copy(
        update={
            "target": loaded.task.target_kind,
            "split_by": recipe.data.split_by or loaded.task.split_by,
            "check": "none",
        }
    )
    opened = open_data(config, fewest_classes=1).prepared(loaded.preprocessing).test
    assert opened is not None
    cells = nearest_cells(loaded, opened) if loaded.task.name == "retrieval" else said_cells(loaded, opened)
    return row(cells)


def said_cells(loaded: Loaded, opened: ImageSet) -> list[tuple[Image.Image, list[str], bool]]:
    """Each image with the prediction drawn on it or said below it, and whether it is right."""
    samples = loaded.task.dataset(opened, False)
    cells = []
    for place in evenly(len(samples)):
        sample = samples[place]
        said = loaded.predictions([sample])[0]
        image = shown_image(sample.input, loaded)
        if said.map is not None or said.objects is not None:
            cells.append((drawn(image, said, loaded.labels), list[str](), True))
            continue
        words, right = in_words(said, sample.target, loaded.labels, opened.items[place].label)
        cells.append((picture_of(image), words, right))
    return cells


def in_words(said: Prediction, target: Any, labels: Sequence[str], true: str) -> tuple[list[str], bool]:
    """A prediction in words, and what is true where that is another."""
    if "values" in said.values:  # numbers
        number = float(next(iter(said.values["values"].values())))
        return [f"{number:.0f}", f"true: {float(true):.0f}"], abs(number - float(true)) < 15
    if isinstance(target, Tensor) and target.dim() == 1:  # several labels
        found = {str(row["label"]) for row in said.rows if row.get("probability", 0) >= 0.5}
        there = {name for name, on in zip(labels, target.tolist(), strict=True) if on}
        return [", ".join(name for name in labels if name in found) or "nothing"], found == there
    best = str(said.rows[0]["label"])
    return ([best] if best == true else [best, f"true: {true}"]), best == true


def nearest_cells(loaded: Loaded, opened: ImageSet) -> list[tuple[Image.Image, list[str], bool]]:
    """A query and the nearest of the other test images."""
    samples = loaded.task.dataset(opened, False)
    with torch.inference_mode():
        rows = [
            torch.as_tensor(loaded.outputs([samples[place] for place in range(at, min(at + 64, len(samples)))])[0])
            for at in range(0, len(samples), 64)
        ]
    embedded = torch.cat(rows)
    query = len(samples) // 3
    like = embedded @ embedded[query]
    like[query] = 2
    order = like.argsort(descending=True)[:SHOWN].tolist()
    names = [opened.items[place].label for place in order]
    cells = []
    for place, name in zip(order, names, strict=True):
        image = picture_of(shown_image(samples[place].input, loaded))
        cells.append((image, ["query" if place == query else name, ""], name == names[0]))
    return cells


def shown_image(pixels: Tensor, loaded: Loaded) -> Tensor:
    """An image as it was, uint8 (3, H, W); of a clip the first and the last frame beside each other."""
    if pixels.dim() == 4:
        frames = pixels if pixels.shape[1] == 3 else pixels.transpose(0, 1)
        return torch.cat([plain_image(frames[place], loaded.preprocessing) for place in (0, -1)], dim=2)
    return plain_image(pixels, loaded.preprocessing)


def evenly(count: int) -> list[int]:
    """Places at equal distances."""
    return [(2 * place + 1) * count // (2 * SHOWN) for place in range(SHOWN)]


def row(cells: Sequence[tuple[Image.Image, list[str], bool]]) -> Image.Image:
    """Pictures side by side with words below them, green where they are right and red where not."""
    scaled = [
        one.resize((round(one.width * SIDE / min(one.size)), round(one.height * SIDE / min(one.size))))
        for one, _, _ in cells
    ]
    words = [[line for text in said for line in folded(text)] for _, said, _ in cells]
    deep = max(len(lines) for lines in words)
    high = max(one.height for one in scaled) + MARGIN + deep * (LETTER + 3)
    made = Image.new("RGB", (sum(one.width + MARGIN for one in scaled) - MARGIN, high), "white")
    pen, font, left = ImageDraw.Draw(made), ImageFont.load_default(LETTER), 0
    for picture, lines, (_, _, right) in zip(scaled, words, cells, strict=True):
        made.paste(picture, (left, 0))
        for number, line in enumerate(lines):
            at = (left, picture.height + 3 + number * (LETTER + 3))
            pen.text(at, line, fill=RIGHT if right else WRONG, font=font)
        left += picture.width + MARGIN
    return made


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG of fewer than MOST_BYTES."""
    for colours in COLOURS:
        picture.convert("RGB").quantize(colours).save(path, optimize=True)
        if path.stat().st_size < MOST_BYTES:
            return


def folded(text: str) -> list[str]:
    """A text in lines that fit below an image."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > WIDEST:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


# -- the page -------------------------------------------------------------------------------------------------------

_OPENING = """# Applications

A recipe for each application that surveys of parameter-efficient tuning name. Each runs offline on pictures that come
with packages or are drawn, and takes your own with `--data FOLDER`; `vpeft recipes ID` prints it, to be copied and
changed.

Results and costs are of the runs that the commands make, one run each. Seconds are those of the processor, with start
and test ({hardware}, with other work beside it). `python benchmarks/applications.py` writes the page.

They show that an application runs from one command, and what the numbers of a small frozen backbone look like. They are
no ranking of methods: for that see [search](search.md) and [statistics](statistics.md).
"""


def page(known: Mapping[str, ShippedRecipe], records: Mapping[str, Any]) -> str:
    """The page, of those recipes that have a record of their present file."""
    measured = {name: one for name, one in known.items() if is_fresh(records.get(name), one)}
    machines = sorted({records[name]["hardware"] for name in measured})
    lines = [_OPENING.format(hardware=" and ".join(machines) or "no machine yet")]
    lines += ["| application | recipe | on the test | trained numbers | file | seconds | memory |", "|---" * 7 + "|"]
    ordered = sorted(measured.values(), key=lambda one: (str(one.application), one.id))
    for one in ordered:
        record = records[one.id]
        lines.append(
            f"| [{one.application}](#{anchor(one)}) | `{one.id}` | {sentence(record)} | {record['trained']:,}"
            f" ({record['share']:.1%}) | {record['adapter_bytes'] / 1000:,.0f} kB | {record['processor_seconds']:.0f}"
            f" | {record['memory'] / 2**20:,.0f} MiB |"
        )
    for one in ordered:
        lines += ["", f"## {heading(one)}", "", f"{one.title}.", ""]
        lines += [f"    {command}" for command in one.commands]
        lines += ["", settings(one), "", sentence(records[one.id], long=True)]
        if picture_file(one.id).exists():
            lines += ["", f"![{one.title}](images/{picture_file(one.id).name})"]
        lines += ["", f"Data: {one.source.partition('Data: ')[2]}"]
    return "\n".join(lines) + "\n"


def heading(one: ShippedRecipe) -> str:
    """The heading of a recipe, told apart from others of the same application by its id."""
    name = one.id.partition("@")[0].replace("-", " ")
    return one.application if name in one.application.lower() else f"{one.application}: {name}"


def anchor(one: ShippedRecipe) -> str:
    """How a link names its heading."""
    kept = "".join(letter for letter in heading(one).lower() if letter.isalnum() or letter in " -_")
    return kept.replace(" ", "-")


def settings(one: ShippedRecipe) -> str:
    """Backbone, method, task and length of a recipe, in a sentence."""
    stated = tomllib.loads(one.file.read_text(encoding="utf-8"))
    method = {name: value for name, value in stated["method"].items() if name != "name"}
    fields = ", ".join(f"{name}={value}" for name, value in method.items())
    task = stated.get("task", {"name": "classification"})
    optimisation = stated["optimisation"]
    named = f"{stated['method']['name']}{f'({fields})' if fields else ''}"
    return (
        f"`{named}` on `{stated['backbone']}`, task `{task['name']}`,"
        f" {optimisation['epochs']} epochs of batches of {optimisation['batch']}, learning rate {optimisation['lr']:g}."
    )


def sentence(record: Mapping[str, Any], *, long: bool = False) -> str:
    """The result of a run."""
    test = record["test"]
    values, leading = test["values"], test["leading"]
    said = f"{leading} {shown(values[leading])}"
    if long:
        others = [f"{name} {shown(value)}" for name, value in values.items() if name != leading]
        said = f"On {test['count']} test images: **{said}**" + (f"; {', '.join(others)}." if others else ".")
    if extension := record.get("extension"):
        found = (
            f"new class {extension['new']:.1%}, old classes {extension['old_before']:.1%} before and"
            f" {extension['old_after']:.1%} after"
        )
        return f"{said} Then, with the class added: {found}." if long else found
    if (episodes := record.get("episodes")) and long:
        said += (
            f" Over {episodes['episodes']} episodes of other classes: {episodes['accuracy']:.1%} ±"
            f" {episodes['interval']:.1%}."
        )
    return said


if __name__ == "__main__":
    main()
