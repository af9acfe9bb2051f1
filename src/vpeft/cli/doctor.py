"""`vpeft doctor`: check what is installed, what the machine offers, and whether training works here."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rich.text import Text

from vpeft.cli import show
from vpeft.cli.failure import versions
from vpeft.cli.flags import Switch
from vpeft.errors import VpeftError

_GIB = 2**30


class Finding(NamedTuple):
    """The result of one check; `ok` is None for a mere remark."""

    what: str
    ok: bool | None
    said: str


def doctor(*, json: Switch = False) -> int:
    """Check this installation: versions, devices, extras, and the main job on a small model.

    The exit code is 1 if there is a problem.

    Parameters
    ----------
    json:
        Print JSON instead of a table.
    """
    findings = list(_findings())
    problems = [finding for finding in findings if finding.ok is False]
    if json:
        show.as_json(
            {
                "versions": versions(),
                "findings": [finding._asdict() for finding in findings],
                "problems": len(problems),
            }
        )
        return 1 if problems else 0
    out = show.console()
    out.print(show.table(("package", "version"), versions().items()))
    marks = {True: "ok", False: "PROBLEM", None: "-"}
    rows = [(finding.what, marks[finding.ok], finding.said) for finding in findings]
    out.print()
    out.print(show.table(("looked at", "", "found"), rows))
    out.print(Text(f"\n{len(problems)} problems." if problems else "\nAll is well."))
    return 1 if problems else 0


def _findings() -> Iterator[Finding]:
    yield _processor()
    yield from _devices()
    yield from extras()
    yield videos()
    yield _space()
    yield _attempt("shipped backbone", _shipped_backbone)
    yield _attempt("adapt, save, load", _round_trip)


def _processor() -> Finding:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB if hasattr(os, "sysconf") else 0.0
    return Finding(
        "processor", None, f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.0f} GiB memory"
    )


def _devices() -> Iterator[Finding]:
    import torch

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(f"accelerator {index}", None, f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("accelerator", None, "Apple GPU (mps)")
    if not torch.cuda.device_count() and not torch.backends.mps.is_available():
        yield Finding("accelerator", None, "none that torch can use; everything runs on the CPU")


def extras() -> Iterator[Finding]:
    """Return which extras of vpeft are installed, from the package's metadata."""
    try:
        metadata = importlib.metadata.metadata("vpeft")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("extras", None, "unknown: vpeft runs from its source folder and is not installed")
        return
    wanted: dict[str, list[str]] = {name: [] for name in metadata.get_all("Provides-Extra") or []}
    for line in metadata.get_all("Requires-Dist") or []:
        named = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        package = re.match(r"[\w.-]+", line)
        if named and package and package.group() != "vpeft":
            wanted.setdefault(named.group(1), []).append(package.group())
    for name, packages in wanted.items():
        missing = [package for package in packages if not _installed(package)]
        if packages:
            said = f'without {", ".join(missing)}: pip install "vpeft[{name}]"' if missing else "installed"
            yield Finding(f"extra {name}", None, said)


def videos() -> Finding:
    """Return what reads videos here, as `clip.decoder = auto` chooses it."""
    from vpeft.data.clips.clip import usable_decoder
    from vpeft.data.clips.torchcodec_frames import why_not

    if not _installed("av"):
        return Finding("videos", None, 'cannot be read: pip install "vpeft[video]"')
    pyav = f"PyAV {importlib.metadata.version('av')}"
    if usable_decoder("auto") == "torchcodec":
        return Finding("videos", None, f"torchcodec {importlib.metadata.version('torchcodec')}, checked with {pyav}")
    return Finding("videos", None, f"{pyav}; {why_not()}")


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _space() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    return Finding("space on this disk", free >= 1, f"{free:.0f} GiB free")


def _attempt(what: str, work: Callable[[], str]) -> Finding:
    start = time.perf_counter()
    try:
        said = work()
    except VpeftError as error:
        return Finding(what, False, str(error))
    return Finding(what, True, f"{said} ({time.perf_counter() - start:.1f} s)")


def _shipped_backbone() -> str:
    from vpeft.backbones.create import create_backbone
    from vpeft.backbones.describe import describe

    facts = describe(create_backbone("pocket_vit")).facts
    return f"pocket_vit: depth {facts.depth}, width {facts.width}, {facts.image_size[0]} x {facts.image_size[1]} pixels"


def _round_trip() -> str:
    """Tune, save, load and compare: the main job without training."""
    import torch

    from vpeft.backbones.create import create_backbone
    from vpeft.injection.load_adapter import load
    from vpeft.injection.tune import tune
    from vpeft.methods import get

    tuned = tune(create_backbone("pocket_vit"), get("lora")(), num_classes=2, show=False)
    with tempfile.TemporaryDirectory() as folder:
        path = tuned.save(Path(folder) / "adapter.safetensors", labels=["a", "b"])
        again = load(create_backbone("pocket_vit"), path)
        size = path.stat().st_size
    images = tuned.description.inputs.blank(1)
    with torch.inference_mode():
        same = torch.equal(tuned.eval()(images), again.eval()(images))
    if not same:
        raise VpeftError("an adapter that was saved and loaded gives other outputs than before")
    return f"the same outputs after saving and loading, {size / 1000:.0f} kB"
