"""The OpenAPI page: request schemas are ours, since we read bodies ourselves."""

from collections.abc import Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from gateway.body import Body

REF = "#/components/schemas/{model}"


def json_body(schema: type[Body]) -> dict[str, Any]:
    """How a route declares its body."""
    reference = {"$ref": REF.format(model=schema.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


def openapi_document(
    title: str, version: str, routes: Sequence[BaseRoute], bodies: Sequence[type[Body]]
) -> dict[str, Any]:
    """The document with the schemas of all bodies."""
    document = get_openapi(title=title, version=version, routes=routes)
    _, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=REF)
    document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
    return document
