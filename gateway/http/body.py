"""Request bodies: read within a bound, decoded, checked, and every complaint names its field."""

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from gateway.http.errors import BodyTooLarge, ClientGone
from services.runtime.errors import InvalidRequest

MAX_MESSAGE_CHARS = 400
MAX_QUOTE_CHARS = 60


class Body(BaseModel):
    """Base of all request schemas: exact types, unknown fields ignored, null the same as absent."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


def _whole(value: object) -> object:
    """1.0 is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_whole)]
PositiveInt = Annotated[Int, Field(ge=1)]
NaturalInt = Annotated[Int, Field(ge=0)]

B = TypeVar("B", bound=Body)


def text_or_list(value: object) -> str | None:
    """Which of the two forms a field has that may be a string or a list."""
    match value:
        case str():
            return "~text"
        case list():
            return "~list"
        case _:
            return None


def text_or_object(value: object) -> str | None:
    """Which of the two forms a field has that may be a string or an object."""
    match value:
        case str():
            return "~text"
        case dict():
            return "~object"
        case _:
            return None


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The JSON object in the body.

    Raises InvalidRequest for anything else, BodyTooLarge beyond max_bytes, ClientGone if the sender leaves.
    """
    content_type = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise InvalidRequest(f"Content-Type must be application/json, not {quote(content_type)}", field="Content-Type")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise InvalidRequest("Content-Encoding must be gzip, or the body sent as it is", field="Content-Encoding")
    raw = await read_bytes(request, max_bytes)
    if encoding == "gzip":
        raw = await asyncio.to_thread(_unzip, raw, max_bytes)
    try:
        decoded = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error.msg} at character {error.pos}") from error
    if not isinstance(decoded, dict):
        raise InvalidRequest("the body must be a JSON object")
    return decoded


async def read_bytes(request: Request, max_bytes: int) -> bytes:
    """The body as it came. Raises BodyTooLarge beyond max_bytes, ClientGone if the sender leaves."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise BodyTooLarge(f"the body has {declared} bytes, at most {max_bytes} are accepted")
    pieces: list[bytes] = []
    num_bytes = 0
    try:
        async for piece in request.stream():
            num_bytes += len(piece)
            if num_bytes > max_bytes:
                raise BodyTooLarge(f"the body is larger than the {max_bytes} bytes that are accepted")
            pieces.append(piece)
    except ClientDisconnect as error:
        raise ClientGone("the client left while it sent the body") from error
    return b"".join(pieces)


def _unzip(raw: bytes, max_bytes: int) -> bytes:
    """The one gzip member that the bytes are; never more memory than the bound, whatever it would unfold to."""
    unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        body = unzip.decompress(raw, max_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest("the body is not valid gzip", field="Content-Encoding") from error
    if len(body) > max_bytes:
        raise BodyTooLarge(f"the body unfolds to more than the {max_bytes} bytes that are accepted")
    if not unzip.eof or unzip.unused_data:
        raise InvalidRequest("the body is not one whole gzip file", field="Content-Encoding")
    return body


def check(schema: type[B], body: Mapping[str, Any]) -> B:
    """The body as an instance of its schema; InvalidRequest names the first field that is wrong."""
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _complaint(first, body) from error


def quote(value: object) -> str:
    """What a client sent, short enough to be repeated in a message."""
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
    """`messages.0.content` from pydantic's location, which also holds names of union members."""
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
