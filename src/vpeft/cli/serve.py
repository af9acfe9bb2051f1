"""`vpeft serve`: many adapters on one backbone, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from vpeft.cli.flags import Switch, split_list
from vpeft.cli.loaded import Device, backbone_of, pick_device
from vpeft.errors import VpeftError, need_extra
from vpeft.injection.adapter_file import read_manifest

_POSITIVE = Parameter(validator=validators.Number(gte=1))
_TIME = Parameter(validator=validators.Number(gt=0))


class NoFolder(VpeftError):
    """There is no folder of this name to take adapters from."""


class NoBackbone(VpeftError):
    """Nothing says which backbone the adapters are for."""


def serve(
    adapters: Path,
    /,
    *,
    backbone: str | None = None,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 8000,
    images: Path | None = None,
    loaded: Annotated[int, _POSITIVE] = 64,
    pinned: str = "",
    batch: Annotated[int, _POSITIVE] = 16,
    wait_ms: Annotated[float, Parameter(validator=validators.Number(gte=0))] = 5.0,
    queue: Annotated[int, _POSITIVE] = 256,
    timeout: Annotated[float, _TIME] = 30.0,
    rate: Annotated[float | None, _TIME] = None,
    max_body_mib: Annotated[float, _TIME] = 32.0,
    max_pixels: Annotated[int, _POSITIVE] = 50_000_000,
    workers: Annotated[int, _POSITIVE] = 1,
    threads: Annotated[int | None, _POSITIVE] = None,
    device: Device = "auto",
    weights: Path | None = None,
    allow_download: Switch = False,
) -> None:
    """Serve the adapters of a folder over HTTP: predictions, features, a page to try them at /.

    POST an image to /predict?adapter=NAME. Adapters may be added to the folder and removed from it while it runs.
    SIGTERM ends it when what was asked is answered. A token in VPEFT_SERVE_TOKEN is asked of everybody who calls, and
    is needed to listen on an address that other machines reach, and to add and remove adapters by /adapters;
    VPEFT_SERVE_ADMIN_TOKEN is another one for that.

    Parameters
    ----------
    adapters:
        Folder of adapters: NAME.safetensors, or NAME/adapter.safetensors as `vpeft train --out FOLDER/NAME` writes it.
    backbone:
        The backbone of all of them; by default the one that the first file names.
    host:
        Address to listen on.
    port:
        Port to listen on; 0 takes a free one.
    images:
        Folder of images that requests may name by their paths; without it images are uploaded.
    loaded:
        Adapters in memory at a time; others are loaded when they are asked for.
    pinned:
        Names of adapters that are loaded at the start and stay, separated by commas.
    batch:
        Images in one pass.
    wait_ms:
        How long an image waits for others to share its pass, in milliseconds.
    queue:
        Images that may wait; more are answered 503.
    timeout:
        Seconds that a request may take; then it is answered 503.
    rate:
        Requests of one client in a second; more are answered 429.
    max_body_mib:
        Size of a request in MiB; more is answered 413.
    max_pixels:
        Height times width of an image; more is answered 413.
    workers:
        Processes, each with a backbone of its own. Limits hold for each.
    threads:
        Threads of torch in each process.
    device:
        The device; auto uses the best one of this machine.
    weights:
        The backbone's file of weights, if it has moved since training.
    allow_download:
        Download a backbone hf:ID that an adapter names, if it is not on this machine.
    """
    need_extra("starlette", "serve")
    need_extra("uvicorn", "serve")
    need_extra("python_multipart", "serve")
    need_extra("prometheus_client", "serve")
    from vpeft.serving.run import run
    from vpeft.serving.settings import ServeSettings

    settings = ServeSettings(
        folder=adapters,
        backbone=backbone,
        weights=weights,
        allow_download=allow_download,
        device=device,
        threads=threads,
        host=host,
        port=port,
        images=images,
        loaded=loaded,
        pinned=tuple(split_list(pinned)),
        batch=batch,
        wait_ms=wait_ms,
        queue=queue,
        timeout_s=timeout,
        rate=rate,
        body_mib=max_body_mib,
        max_pixels=max_pixels,
        workers=workers,
    )
    _first(adapters, backbone)
    pick_device(device)
    run(settings, "vpeft.cli.serve:application")


def application() -> Any:
    """The application of one process of the server; uvicorn calls it."""
    from vpeft.serving.run import application as made
    from vpeft.serving.run import settings_of_process

    settings = settings_of_process()
    first = _first(settings.folder, settings.backbone)
    model = backbone_of(
        first, backbone=settings.backbone, weights=settings.weights, allow_download=settings.allow_download
    )
    return made(model, settings, pick_device(settings.device))


def _first(folder: Path, backbone: str | None) -> Path | None:
    """The first adapter of the folder that can be read, by which the backbone is made as it was in training.

    None where there is none, but a name of a backbone.

    Raises:
        NoFolder: the folder does not exist.
        NoBackbone: there is neither.
    """
    if not folder.is_dir():
        raise NoFolder(
            f"There is no folder {str(folder)!r}. Give the folder that holds the adapters, NAME.safetensors or"
            " NAME/adapter.safetensors; an empty one is filled over POST /adapters."
        )
    problems = []
    for path in (*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*/adapter.safetensors"))):
        try:
            read_manifest(path)
        except VpeftError as error:
            problems.append(str(error))
        else:
            return path
    if backbone is None:
        raise NoBackbone(
            f"{folder} has no adapters (NAME.safetensors or NAME/adapter.safetensors) that can be read, so nothing says"
            f" which backbone to load. Name it: --backbone NAME. {problems[0] if problems else ''}".rstrip()
        )
    return None
