"""`vpeft verify FILE`: is this adapter file whole, and does it still compute what it computed when it was saved?"""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from vpeft.cli import show
from vpeft.cli.flags import Switch
from vpeft.cli.loaded import open_adapter
from vpeft.injection.adapter_file import probe, read
from vpeft.interop.hub import adapter_path


def verify(
    adapter: Path,
    /,
    *,
    file_only: Switch = False,
    backbone: str | None = None,
    weights: Path | None = None,
    allow_download: Switch = False,
    json: Switch = False,
) -> None:
    """Check an adapter file: the seal and digests, the weights of its backbone, and the outputs that it keeps.

    The first thing that is wrong is said, and the exit code is then 1.

    Parameters
    ----------
    adapter:
        The file, or hf:USER/NAME.
    file_only:
        Check the file alone, without making its backbone.
    backbone:
        The backbone, if the adapter file cannot create it: py:FILE.py:NAME for your own code.
    weights:
        The backbone's file of weights, if it has moved since training.
    allow_download:
        Download a backbone hf:ID that the adapter names, if it is not on this machine.
    json:
        Print the checks as JSON.
    """
    path = adapter_path(adapter)
    manifest, tensors = read(path)
    sealed = "holds" if manifest.seal is not None else f"none: format {manifest.format} has no seal"
    checks = [
        ("format", str(manifest.format)),
        ("seal", sealed),
        ("digest of the tensors", f"holds: {len(tensors)} tensors, {manifest.parameters} numbers, all finite"),
    ]
    error = None
    if not file_only:
        loaded = open_adapter(path, device="cpu", weights=weights, backbone=backbone, allow_download=allow_download)
        seen = probe(loaded.model, loaded.model.active)
        scale = max((abs(value) for value in manifest.probe), default=1.0) or 1.0
        error = max((abs(a - b) for a, b in zip(seen, manifest.probe, strict=True)), default=0.0) / scale
        checks += [
            ("weights of the backbone", f"are those of {manifest.backbone} ({manifest.base_digest[:12]})"),
            ("kept outputs", f"{len(seen)} are computed again; they differ by {error:.1e} of their size"),
        ]
    if json:
        show.as_json({"file": str(path), "sealed": manifest.seal is not None, "error": error, "checks": dict(checks)})
        return
    show.console().print(show.table(("check", "result"), checks))
    show.console().print(Text("The file is good." if not file_only else "The file is whole."))
