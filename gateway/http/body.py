"""Schemas of request bodies, and complaints that name the field."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails

from services.runtime.errors import InvalidRequest

MAX_MESSAGE_CHARS = 400
MAX_QUOTE_CHARS = 60
MAX_INT = 2**63  # what is beyond cannot be written into an answer


def _fail_fast(schema: object) -> None:
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for inner in schema.values():
            _fail_fast(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            _fail_fast(inner)


class Body(BaseModel):
    """Base of all request schemas: exact types, null the same as absent; unknown fields are kept for a complaint."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)


class Opaque(Body):
    """A part of a body of which nothing but the declared fields is looked at."""

    model_config = ConfigDict(extra="ignore")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let the first wrong item of a list end its check: a million wrong ones cost no more than one."""
        schema = handler(source)
        _fail_fast(schema)
        return schema


def _whole(value: object) -> object:
    """Return 1.0 as 1: both are integers in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_whole)]
PositiveInt = Annotated[Int, Field(ge=1, lt=MAX_INT)]
NaturalInt = Annotated[Int, Field(ge=0, lt=MAX_INT)]

B = TypeVar("B", bound=Body)


def text_or_list(value: object) -> str | None:
    """Return the form of a field that may be a string or a list."""
    match value:
        case str():
            return "~text"
        case list():
            return "~list"
        case _:
            return None


def text_or_object(value: object) -> str | None:
    """Return the form of a field that may be a string or an object."""
    match value:
        case str():
            return "~text"
        case dict():
            return "~object"
        case _:
            return None


def check(schema: type[B], body: Mapping[str, Any]) -> B:
    """Return the body as an instance of its schema; InvalidRequest names the first field that is wrong."""
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _complaint(first, body) from error


def quote(value: object) -> str:
    """Return what a client sent, short enough for a message."""
    text = str(value)
    return repr(text if len(text) <= MAX_QUOTE_CHARS else text[:MAX_QUOTE_CHARS] + "...")


def _complaint(error: ErrorDetails, body: Mapping[str, Any]) -> InvalidRequest:
    path = _dotted_path(error["loc"], error["type"], body)
    context = error.get("ctx", {})
    match error["type"]:
        case "missing":
            rule = "this field is required"
        case "model_type" | "model_attributes_type" | "dict_type":
            rule = "must be an object"
        case "union_tag_not_found":
            path += f".{context['discriminator']}".replace("'", "")
            rule = "this field is required"
        case "union_tag_invalid":
            # What pydantic says would repeat the input.
            path += f".{context['discriminator']}".replace("'", "")
            rule = f"must be one of {context['expected_tags']}"
        case _:
            rule = error["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{path}: {rule}"[:MAX_MESSAGE_CHARS], field=path)


def _dotted_path(location: Sequence[int | str], kind: str, body: Mapping[str, Any]) -> str:
    """Return `messages.0.content` from pydantic's location, which also holds names of union members."""
    here: Any = body
    path: list[str] = []
    for position, step in enumerate(location):
        if _holds(here, step):
            here = here[step]
        elif kind != "missing" or position < len(location) - 1:
            continue
        path.append(str(step))
    return ".".join(path)


def _holds(value: Any, step: int | str) -> bool:
    if isinstance(value, list):
        return isinstance(step, int) and step < len(value)
    return isinstance(value, dict) and step in value
