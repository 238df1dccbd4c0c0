"""The OpenAPI page: request schemas are ours, since we read bodies ourselves."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from gateway.http.body import Body
from gateway.http.dialect import dialect_of, is_anthropic

STREAMING = frozenset({"chat", "completions", "messages", "responses"})
OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ANTHROPIC_ERROR = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": "string"},
    },
}
REF = "#/components/schemas/{model}"


def json_body(*schemas: type[Body]) -> dict[str, Any]:
    """How a route declares its body: by one schema, or by the ones that it may follow."""
    references: list[dict[str, Any]] = [{"$ref": REF.format(model=schema.__name__)} for schema in schemas]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def openapi_document(
    title: str,
    version: str,
    routes: Sequence[BaseRoute],
    bodies: Sequence[type[Body]],
    answers: Mapping[tuple[str, str], dict[str, Any]],
) -> dict[str, Any]:
    """The document with the schemas of all bodies, and with errors as they are; answers by method and path."""
    document = get_openapi(title=title, version=version, routes=routes)
    _, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=REF)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions["$defs"], OpenAIError=OPENAI_ERROR, AnthropicError=ANTHROPIC_ERROR)
    for path, operations in document["paths"].items():
        error = REF.format(model="AnthropicError" if is_anthropic(path) else "OpenAIError")
        for method, operation in operations.items():
            responses = operation["responses"]
            # FastAPI's own refusals, which never happen here.
            responses.pop("422", None)
            if answer := answers.get((method, path)):
                responses["200"]["content"] = {"application/json": {"schema": answer}}
            if dialect_of(path) in STREAMING and operation.get("requestBody"):
                responses["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
            responses["default"] = {
                "description": "What went wrong.",
                "content": {"application/json": {"schema": {"$ref": error}}},
            }
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document
