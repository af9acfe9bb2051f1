"""Images out of requests: uploaded bytes, forms, or paths below an allowed folder; decoded within limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from vpeft.batch import Sample
from vpeft.data.decoding import Limits, MissingImage, TooLargeImage, UnreadableImage
from vpeft.data.images import is_image_name
from vpeft.data.preprocessing import Preprocessing
from vpeft.errors import VpeftError
from vpeft.guarded import parse_json, printable
from vpeft.serving.answers import Refused
from vpeft.serving.catalogue import Card
from vpeft.serving.settings import ServeSettings

MEBI = 2**20
JSON_BYTES = MEBI  # paths of thousands of images


class Named(BaseModel):
    """A request that names images by their paths below the server's folder of images."""

    model_config = ConfigDict(extra="forbid", strict=True)

    adapter: str | None = None
    paths: list[str]
    top: int | None = None


@dataclass
class Asked:
    """What a request asks for.

    Attributes:
        adapter: its name; None where none is named.
        top: the number of answers for each image.
        images: bytes or files, with the name that the answer shows.
    """

    adapter: str | None = None
    top: int | None = None
    images: list[tuple[str, bytes | Path]] = field(default_factory=list)


async def asked(request: Request, settings: ServeSettings) -> Asked:
    """What a request asks for, from its address and its body.

    Raises:
        Refused: 400, 403, 404, 413, 415 or 422, with what is wrong.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        found = await _form(request, settings)
    elif kind == "application/json":
        found = _named(await request.body(), settings)
    elif kind.startswith("image/") or kind in ("", "application/octet-stream", "application/x-www-form-urlencoded"):
        # the last one is what curl says of --data-binary
        data = await request.body()
        found = Asked(images=[("image", data)] if data else [])
    else:
        raise Refused(415, "Send an image as the body, a form with files named image, or JSON with paths.")
    query = request.query_params
    found.adapter = query.get("adapter", found.adapter)
    if "top" in query:
        found.top = _whole(query["top"])
    if found.top is not None and found.top < 1:
        raise Refused(422, "top is a whole number from 1.")
    if not found.images:
        raise Refused(422, "There is no image in the request.")
    if len(found.images) > settings.images_per_request:
        raise Refused(413, f"{len(found.images)} images; at most {settings.images_per_request} are taken at a time.")
    return found


async def _form(request: Request, settings: ServeSettings) -> Asked:
    found = Asked()
    try:
        most = settings.images_per_request
        async with request.form(max_files=most, max_fields=16, max_part_size=64 * 1024) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name not in ("image", "images"):
                        raise Refused(422, f"The form has a file {printable(name, 50)!r}; files are named image.")
                    found.images.append((printable(value.filename or "image", 200), await value.read()))
                elif name == "adapter":
                    found.adapter = value
                elif name == "top":
                    found.top = _whole(value)
                else:
                    raise Refused(422, f"The form has a field {printable(name, 50)!r}; there are image, adapter, top.")
    except (MultiPartException, KeyError, ValueError, AssertionError) as error:
        raise Refused(400, f"The form cannot be read: {printable(str(error), 200)}") from None
    return found


def _named(body: bytes, settings: ServeSettings) -> Asked:
    if len(body) > JSON_BYTES:
        raise Refused(413, f"The JSON has {len(body)} bytes; at most {JSON_BYTES} are read. Upload images as files.")
    try:
        named = Named.model_validate(parse_json(body.decode(), "The body", BadJson))
    except (ValidationError, BadJson, UnicodeDecodeError, json.JSONDecodeError) as error:
        if isinstance(error, ValidationError):
            said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
        else:
            said = str(error)
        raise Refused(422, f"The JSON is not {{adapter, paths, top}}: {printable(said, 300)}") from None
    return Asked(
        named.adapter, named.top, [(printable(path, 300), below(settings.images, path)) for path in named.paths]
    )


class BadJson(VpeftError):
    """A body that is no JSON within its limits."""


def below(root: Path | None, path: str) -> Path:
    """The file of this path below the folder `root`, wherever links lead.

    Raises:
        Refused: 403 where it leads out of the folder or there is no folder, 404 where there is no such image.
    """
    if root is None:
        raise Refused(403, "This server takes uploads alone: it was started without --images FOLDER.")
    try:
        top = root.resolve(strict=True)
        file = (top / path).resolve()
        inside = "\0" not in path and file.is_relative_to(top)
    except (OSError, ValueError, RuntimeError):
        inside = False
    if not inside:
        raise Refused(403, "Paths lead to files below the server's folder of images.")
    if not is_image_name(file) or not file.is_file():
        raise Refused(404, f"There is no image {printable(path, 200)!r}.")
    return file


def decoded(images: Sequence[tuple[str, bytes | Path]], reading: Preprocessing, settings: ServeSettings) -> list[Any]:
    """The images of a request, in the channels of the model and in their own size.

    Raises:
        Refused: 413 for one that is too large, 422 for one that is no image or damaged.
    """
    limits = Limits(max_pixels=settings.max_pixels, max_mib=max(1, int(12 * settings.max_pixels / MEBI)))
    found = []
    for name, source in images:
        try:
            found.append(reading.read(source, limits.max_pixels, limits.max_aspect, limits.max_mib))
        except UnreadableImage as error:
            # without the name of the file and the advice for those who own the machine
            said = printable((str(error).partition(": ")[2] or str(error)).partition("; allow it")[0], 300)
            if isinstance(error, MissingImage):
                raise Refused(404, f"There is no image {name!r}.") from None
            status = 413 if _too_large(error) else 422
            raise Refused(status, f"{name}: {said}") from None
    return found


def samples(images: Sequence[Any], names: Sequence[str], card: Card) -> list[Sample]:
    """Samples as the adapter's task takes them, of several images each where it compares some.

    Raises:
        Refused: 422, where images are left over.
    """
    task, each = card.task, card.task.images_per_sample
    if len(images) % each:
        raise Refused(422, f"The task {task.name} takes {each} images at a time, and {len(images)} were sent.")
    if each == 1:
        return [task.sample_of(image, card.transform, name) for image, name in zip(images, names, strict=True)]
    groups = range(0, len(images), each)
    inputs = [torch.stack([card.transform(image) for image in images[at : at + each]]) for at in groups]
    return [Sample(one, None, " ".join(names[at : at + each])) for one, at in zip(inputs, groups, strict=True)]


def _too_large(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, (TooLargeImage, Image.DecompressionBombError)):
            return True
        error = error.__cause__
    return False


def _whole(text: object) -> int:
    try:
        return int(str(text)[:10])
    except ValueError:
        raise Refused(422, "top is a whole number from 1.") from None
