"""The OpenAPI document as JSON and as a page that needs nothing from outside: no script, no other host."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from html import escape
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "code,td:first-child{font-family:ui-monospace,monospace}summary{cursor:pointer;padding:.3em 0}"
    "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left;vertical-align:top}"
)


class ApiDocs:
    """Serves the document, which is made when it is first asked for."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self._make = make
        self.routes = [
            Route("/openapi.json", self._serve_json),
            Route("/docs", self._serve_page),
            Route("/redoc", self._serve_page),
        ]

    @cached_property
    def _document(self) -> dict[str, Any]:
        return self._make()

    @cached_property
    def _page(self) -> str:
        return "".join(page_of(self._document))

    async def _serve_json(self, request: Request) -> Response:
        return Response(orjson.dumps(self._document), media_type="application/json")

    async def _serve_page(self, request: Request) -> Response:
        return HTMLResponse(self._page)


def page_of(document: Mapping[str, Any]) -> Iterator[str]:
    """Write an OpenAPI document as one HTML page: every operation, then every schema with its fields."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    yield f"<h1>{title}</h1><p>The same for programs: <a href=/openapi.json>openapi.json</a></p><h2>Operations</h2>"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield f"<details><summary><code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}"
            yield "</summary>"
            for media, content in operation.get("requestBody", {}).get("content", {}).items():
                yield f"<p>Body ({media}): {_type_of(content['schema'])}</p>"
            for status, response in operation["responses"].items():
                for media, content in response.get("content", {}).items():
                    yield f"<p>Answer {status} ({media}): {_type_of(content['schema'])}</p>"
            yield "</details>"
    yield "<h2>Schemas</h2>"
    for name, schema in document["components"]["schemas"].items():
        yield f"<details id={escape(name)} open><summary><code>{escape(name)}</code></summary>"
        yield f"<p>{escape(schema.get('description', ''))}</p>{_fields_of(schema)}</details>"


def _fields_of(schema: Mapping[str, Any]) -> str:
    """Return the table of an object's fields, or nothing for what has none."""
    required = schema.get("required", ())
    rows = [
        f"<tr><td>{escape(name)}<td>{_type_of(field)}<td>{'required' if name in required else ''}"
        for name, field in schema.get("properties", {}).items()
    ]
    return f"<table><tr><th>field<th>type<th>{''.join(rows)}</table>" if rows else ""


def _type_of(schema: Mapping[str, Any]) -> str:
    """Return a schema in few words, with links to those that have a name."""
    if (reference := schema.get("$ref")) is not None:
        name = escape(reference.rpartition("/")[2])
        return f"<a href=#{name}>{name}</a>"
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return " or ".join(_type_of(member) for member in schema[union])
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(orjson.dumps(value).decode())}</code>" for value in values)
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type_of(schema.get('items', {}))}"
    bounds = "".join(
        f" {sign} {schema[key]}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in schema
    )
    if kind == "object" and schema.get("properties"):
        return _fields_of(schema)
    return escape(" or ".join(kind) if isinstance(kind, list) else str(kind)) + escape(bounds)
