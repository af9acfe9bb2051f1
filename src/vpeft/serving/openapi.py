"""The OpenAPI document of the server."""

from __future__ import annotations

from typing import Any

from vpeft.serving.settings import ServeSettings, Tokens
from vpeft.serving.uploads import Named
from vpeft.version import __version__

_ERRORS = {
    400: "The body cannot be read.",
    401: "No token, or a wrong one.",
    403: "The path leads out of the folder of images, or the token does not allow it.",
    404: "There is no such adapter, image or address.",
    408: "The body came too slowly.",
    409: "The adapter cannot be served, or there is one of this name already.",
    413: "The body, an image or an adapter is too large.",
    415: "Bodies of this type are not read.",
    422: "What is no image, or not usable; the sentence says why.",
    429: "Too many requests; Retry-After says when to ask again.",
    503: "Too much waits, or the server is closing; Retry-After says when to ask again.",
}


def document(settings: ServeSettings, tokens: Tokens) -> dict[str, Any]:
    """The document, for the limits and tokens of this server."""
    adapter = _query("adapter", "The adapter; may be left out where there is one alone.")
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    images = {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "adapter": {"type": "string"},
                        "top": {"type": "integer", "minimum": 1},
                    },
                    "required": ["image"],
                }
            },
            "application/json": {"schema": {"$ref": "#/components/schemas/Named"}},
        },
    }
    row = {"type": "object", "properties": {"image": {"type": "string"}}, "additionalProperties": True}
    paths: dict[str, Any] = {
        "/predict": {
            "post": _call(
                "Predictions for images, as the adapter's task defines them.",
                {"predictions": {"type": "array", "items": row}, "task": {"type": "string"}},
                body=images,
                query=[adapter, _query("top", "Answers for each image."), _query("map", "true adds maps, base64.")],
            )
        },
        "/embed": {
            "post": _call(
                "Pooled features of images; without an adapter, those of the frozen backbone.",
                {"embeddings": {"type": "array", "items": row}},
                body=images,
                query=[adapter],
            )
        },
        "/explain": {
            "post": _call(
                "How far the first answer falls when parts of an image are covered.",
                {"falls": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}},
                body=images,
                query=[adapter],
            )
        },
        "/adapters": {
            "get": _call("All adapters.", {"adapters": {"type": "array", "items": row}}),
            "post": _call(
                "Add an adapter file.",
                {"name": {"type": "string"}},
                body={
                    "required": True,
                    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
                },
                query=[_query("name", "Its name."), _query("replace", "true puts it in the place of another.")],
                status=201,
            ),
        },
        "/adapters/{name}": {
            "parameters": [name],
            "get": _call("One adapter.", {"name": {"type": "string"}}),
            "delete": _call("Remove an adapter.", {}, status=204),
        },
        "/health": {"get": _call("Whether the server computes.", {"status": {"type": "string"}})},
        "/metrics": {"get": _call("Numbers for Prometheus.", {})},
    }
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "vpeft",
            "version": __version__,
            "description": f"Many adapters on one backbone. Bodies have at most {settings.body_mib:g} MiB, images at"
            f" most {settings.max_pixels} pixels, a request at most {settings.images_per_request} images.",
        },
        "paths": paths,
        "components": {"schemas": {"Named": Named.model_json_schema()}},
    }
    if tokens.use is not None:
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"token": []}]
    return made


def _query(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}


def _call(
    text: str,
    answer: dict[str, Any],
    *,
    body: dict[str, Any] | None = None,
    query: list[dict[str, Any]] | None = None,
    status: int = 200,
) -> dict[str, Any]:
    error = {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}}
    good: dict[str, Any] = {"description": text}
    if answer:
        good["content"] = {"application/json": {"schema": {"type": "object", "properties": answer}}}
    made: dict[str, Any] = {
        "summary": text,
        "responses": {
            str(status): good,
            **{str(code): {"description": words, "content": error} for code, words in _ERRORS.items()},
        },
    }
    if body is not None:
        made["requestBody"] = body
    if query:
        made["parameters"] = query
    return made
