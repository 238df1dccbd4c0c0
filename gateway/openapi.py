"""The OpenAPI page: request schemas are ours, since we read bodies ourselves."""

from collections.abc import Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from gateway.body import Body

REF = "#/components/schemas/{model}"


def json_body(*schemas: type[Body]) -> dict[str, Any]:
    """How a route declares its body: by one schema, or by the ones that it may follow."""
    references: list[dict[str, Any]] = [{"$ref": REF.format(model=schema.__name__)} for schema in schemas]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def openapi_document(
    title: str, version: str, routes: Sequence[BaseRoute], bodies: Sequence[type[Body]]
) -> dict[str, Any]:
    """The document with the schemas of all bodies."""
    document = get_openapi(title=title, version=version, routes=routes)
    _, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=REF)
    document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
    return document
