"""The server as an ASGI application: what each address does."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from vpeft.backbones.backbone import Backbone
from vpeft.backbones.describe import describe
from vpeft.batch import Sample
from vpeft.data.preprocessing import Preprocessing
from vpeft.errors import VpeftError
from vpeft.explanation.occlusion import CELLS, occluded, said_of
from vpeft.guarded import printable
from vpeft.serving import page, uploads
from vpeft.serving.answers import Answer, Refused, predicted
from vpeft.serving.catalogue import Card, Catalogue, NotServable, UnknownAdapter
from vpeft.serving.engine import Engine
from vpeft.serving.gate import Gate, refused
from vpeft.serving.metrics import Metrics
from vpeft.serving.openapi import document
from vpeft.serving.pool import Pool
from vpeft.serving.settings import ServeSettings, Tokens

LOG = logging.getLogger("vpeft.serving")
Result = TypeVar("Result")
TOP = 5


class Server:
    """The parts of one server; `app` is what answers.

    Args:
        model: the backbone, which nobody else uses meanwhile, or its description.
        settings: of the server.
        tokens: who may ask.
    """

    def __init__(self, model: Any, settings: ServeSettings, tokens: Tokens) -> None:
        self.settings, self.tokens, self.metrics = settings, tokens, Metrics()
        description: Backbone = model if isinstance(model, Backbone) else describe(model)
        self.preprocessing = Preprocessing.from_model(description.root)
        self.catalogue = Catalogue(settings.folder, self.preprocessing)
        self.pool = Pool(description, self.catalogue, settings.loaded, settings.pinned, self.metrics)
        self.engine = Engine(
            self.pool, settings.batch, settings.wait_ms, settings.queue, settings.timeout_s, self.metrics
        )
        self._changing = threading.Lock()
        self._threads: anyio.CapacityLimiter | None = None
        routes = [
            Route("/", page.page),
            Route("/page.js", page.script),
            Route("/page.css", page.style),
            Route("/health", self.health),
            Route("/metrics", self.counted),
            Route("/openapi.json", self.described),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/embed", self.embed, methods=["POST"]),
            Route("/explain", self.explain, methods=["POST"]),
            Route("/adapters", self.adapters, methods=["GET"]),
            Route("/adapters", self.add, methods=["POST"]),
            Route("/adapters/{name}", self.adapter, methods=["GET"]),
            Route("/adapters/{name}", self.remove, methods=["DELETE"]),
        ]
        self.app = Starlette(
            routes=routes,
            lifespan=self.lifespan,
            middleware=[
                Middleware(Gate, settings, tokens, self.metrics),
                Middleware(TrustedHostMiddleware, allowed_hosts=list(settings.called), www_redirect=False),
            ],
            exception_handlers={
                HTTPException: _refusal,
                VpeftError: _mistake,
                ClientDisconnect: _gone,
                Exception: _bug,
            },
        )

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Load what is pinned before the first request, and compute what waits after the last one."""
        self._threads = anyio.CapacityLimiter(self.settings.decoders)
        self.engine.start()
        for name in self.settings.pinned:
            await asyncio.wrap_future(self.engine.call(partial(_get, name)))
        LOG.info("ready", extra={"facts": {"adapters": len(self.catalogue.names()), "pid": os.getpid()}})
        try:
            yield
        finally:
            await to_thread.run_sync(self.engine.close, self.settings.drain_s)
            LOG.info("closed", extra={"facts": {"pid": os.getpid(), "waiting": self.engine.waiting}})

    # -- what answers ---------------------------------------------------------------------------------------------

    async def predict(self, request: Request) -> Answer:
        """Predictions for images with an adapter."""
        asked = await uploads.asked(request, self.settings)
        card = await self._card(request, asked.adapter)
        given = await self._in_thread(self._samples, asked, card)
        answers = await self._computed(self.engine.submit("predict", card.name, given))
        top, with_map = asked.top or TOP, request.query_params.get("map") in ("1", "true")
        said = await self._in_thread(lambda: [predicted(one, top, with_map) for one in answers])
        return Answer({"adapter": card.name, "task": card.task.name, "predictions": said})

    async def embed(self, request: Request) -> Answer:
        """Pooled features of images, with an adapter's edits or of the frozen backbone."""
        asked = await uploads.asked(request, self.settings)
        card = None if asked.adapter is None else await self._card(request, asked.adapter)
        reading = self.preprocessing if card is None else card.preprocessing
        transform = reading.transform()

        def prepared() -> list[Sample]:
            images = uploads.decoded(asked.images, reading, self.settings)
            return [Sample(transform(image), None, name) for image, (name, _) in zip(images, asked.images, strict=True)]

        given = await self._in_thread(prepared)
        features = await self._computed(self.engine.submit("embed", None if card is None else card.name, given))
        said = [{"image": one.id, "embedding": row.tolist()} for one, row in zip(given, features, strict=True)]
        return Answer({"adapter": None if card is None else card.name, "embeddings": said})

    async def explain(self, request: Request) -> Answer:
        """How much each part of an image matters to the first answer, by covering it: a grid of numbers."""
        asked = await uploads.asked(request, self.settings)
        card = await self._card(request, asked.adapter)
        if card.task.images_per_sample != 1:
            raise Refused(422, f"The task {card.task.name} compares images; a map is made of one.")
        asked.images = asked.images[:1]
        (whole,) = await self._in_thread(self._samples, asked, card)
        covered = await self._in_thread(occluded, whole, CELLS)
        answers: list[Any] = []
        step = max(1, min(self.settings.batch, self.settings.queue // 2))
        every = [whole, *covered]
        for at in range(0, len(every), step):
            part: list[Any] = await self._computed(self.engine.submit("predict", card.name, every[at : at + step]))
            answers += part
        found = said_of(answers, CELLS)
        if found is None:
            raise Refused(422, f"The task {card.task.name} has no single number whose change a map could show.")
        return Answer({"adapter": card.name, **found})

    async def adapters(self, request: Request) -> Answer:
        """All adapters of the folder."""
        return Answer(await self._in_thread(self._listed))

    async def adapter(self, request: Request) -> Answer:
        """What one adapter's file says of itself."""
        card = await self._card(request, request.path_params["name"])
        return Answer({**card.facts, **self._where(card.name)})

    async def add(self, request: Request) -> Answer:
        """Add an adapter: its file is tried on the backbone first, and then kept."""
        name = request.query_params.get("name")
        data = await self._file(request)
        if name is None:
            raise Refused(422, "Which name shall it have? POST /adapters?name=NAME")
        self.catalogue.require_name(name)
        replace = request.query_params.get("replace") in ("1", "true")

        def added() -> Card:
            with self._changing:
                if self.catalogue.has(name) and not replace:
                    raise Refused(
                        409, f"There is an adapter {name!r} already. Add replace=true to put this in its place."
                    )
                with tempfile.TemporaryDirectory(prefix="vpeft-serve-") as folder:
                    path = Path(folder) / f"{name}.safetensors"
                    path.write_bytes(data)
                    self.engine.call(partial(_tried, path, name)).result(self.settings.timeout_s)
                self.catalogue.keep(name, data)
                return self.catalogue.card(name)

        card = await self._in_thread(added)
        LOG.info("added", extra={"facts": {"adapter": name, "digest": card.facts["digest"]}})
        return Answer(card.facts, status_code=201, headers={"location": f"/adapters/{name}"})

    async def remove(self, request: Request) -> Response:
        """Remove an adapter. Requests that came before are answered with it if they are computed already."""
        name = request.path_params["name"]

        def removed() -> None:
            with self._changing:
                self.catalogue.remove(name)
                self.engine.call(partial(_dropped, name)).result(self.settings.timeout_s)

        await self._in_thread(removed)
        LOG.info("removed", extra={"facts": {"adapter": printable(name, 100)}})
        return Response(status_code=204)

    async def health(self, request: Request) -> Answer:
        """Whether the server computes."""
        alive = self.engine.alive
        facts = {"status": "ok" if alive else "closing", "loaded": len(self.pool.names), "waiting": self.engine.waiting}
        return Answer(facts, status_code=200 if alive else 503)

    async def counted(self, request: Request) -> Response:
        """Prometheus's numbers."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def described(self, request: Request) -> Answer:
        """The OpenAPI document."""
        return Answer(document(self.settings, self.tokens))

    # -- parts ----------------------------------------------------------------------------------------------------

    async def _card(self, request: Request, name: str | None) -> Card:
        names = [] if name is not None else await self._in_thread(self.catalogue.names)
        if name is None and len(names) != 1:
            shown = ", ".join(names[:20]) or "none yet"
            raise Refused(
                422, f"Which adapter? Add ?adapter=NAME. There are: {shown}{', ...' if len(names) > 20 else ''}."
            )
        card = await self._in_thread(self.catalogue.card, name if name is not None else names[0])
        request.state.facts = {"adapter": card.name}
        return card

    def _samples(self, asked: uploads.Asked, card: Card) -> list[Sample]:
        images = uploads.decoded(asked.images, card.preprocessing, self.settings)
        return uploads.samples(images, [name for name, _ in asked.images], card)

    def _listed(self) -> dict[str, Any]:
        found, damaged = [], []
        for name in self.catalogue.names():
            try:
                found.append({**self.catalogue.card(name).facts, **self._where(name)})
            except VpeftError as error:
                damaged.append({"name": name, "error": str(error)})
        return {"adapters": found, "not_usable": damaged}

    def _where(self, name: str) -> dict[str, bool]:
        return {"loaded": name in self.pool.names, "pinned": name in self.pool.pinned}

    async def _file(self, request: Request) -> bytes:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return await request.body()
        async with request.form(max_files=1, max_fields=4) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            if len(files) != 1:
                raise Refused(422, "Send one adapter file.")
            return await files[0].read()

    async def _in_thread(self, do: Callable[..., Result], *given: Any) -> Result:
        """Decoding and reading of files, off the event loop and not more at a time than the machine has room for."""
        return await to_thread.run_sync(partial(do, *given), limiter=self._threads)

    async def _computed(self, answer: Future[Result]) -> Result:
        return await asyncio.wrap_future(answer)


def _get(name: str, pool: Pool) -> None:
    pool.get(name)


def _tried(path: Path, name: str, pool: Pool) -> None:
    pool.try_file(path, name)


def _dropped(name: str, pool: Pool) -> None:
    pool.drop(name)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refused(error)


async def _mistake(request: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, UnknownAdapter) else 409 if isinstance(error, NotServable) else 422
    return refused(Refused(status, printable(str(error), 600)))


async def _gone(request: Request, error: Exception) -> Response:
    return refused(Refused(400, "The body ended before all of it was sent."))


async def _bug(request: Request, error: Exception) -> Response:
    LOG.error("bug", exc_info=error)
    return refused(Refused(500, "The server could not answer this. Its log says why."))


Handler = Callable[[Request], Coroutine[Any, Any, Response]]
