"""The OpenAPI document, made from our routes and the pydantic models of what is sent and answered."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from gateway.http.body import Body
from gateway.http.dialect import dialect_of, is_anthropic
from gateway.http.routes import ApiRoute

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
    """Return the `requestBody` of a route whose body follows one of these schemas."""
    references: list[dict[str, Any]] = [{"$ref": REF.format(model=schema.__name__)} for schema in schemas]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def openapi_document(
    title: str,
    version: str,
    routes: Sequence[ApiRoute],
    bodies: Sequence[type[Body]],
    answers: Mapping[tuple[str, str], type],
) -> dict[str, Any]:
    """Return the document with the schemas of all bodies, answers and errors.

    answers  types of answers by lower-case method and path
    """
    _, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=REF)
    answered, answer_definitions = TypeAdapter.json_schemas(
        [(answer, "serialization", TypeAdapter(answer)) for answer in dict.fromkeys(answers.values())],
        ref_template=REF,
    )
    schemas = {
        **definitions["$defs"],
        **answer_definitions["$defs"],
        "OpenAIError": OPENAI_ERROR,
        "AnthropicError": ANTHROPIC_ERROR,
    }
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        method, path = route.method.lower(), route.path_format
        answer = answers.get((method, path))
        schema = None if answer is None else answered[answer, "serialization"]
        paths.setdefault(path, {})[method] = _operation(route, path, schema)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(route: ApiRoute, path: str, answer: dict[str, Any] | None) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": answer}} if answer is not None else {}
    if dialect_of(path) in STREAMING and route.body is not None:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = REF.format(model="AnthropicError" if is_anthropic(path) else "OpenAIError")
    operation: dict[str, Any] = {
        "operationId": f"{route.name}_{route.method.lower()}_{path.strip('/').replace('/', '_')}",
        "summary": route.summary,
        "responses": {
            "200": {"description": "The answer.", **({"content": content} if content else {})},
            "default": {
                "description": "What went wrong.",
                "content": {"application/json": {"schema": {"$ref": error}}},
            },
        },
    }
    if route.body is not None:
        operation["requestBody"] = route.body
    if route.param_convertors:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in route.param_convertors
        ]
    return operation
