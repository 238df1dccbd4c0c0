"""What answers look like, for the OpenAPI page: fields that clients may count on. Others may stand beside them."""

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

TEXT, NATURAL, YES_NO = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
OPTIONAL_TEXT = {"type": ["string", "null"]}


def _object(**properties: Schema) -> Schema:
    """All of these are always there."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _const(value: str | bool) -> Schema:
    return {"const": value}


USAGE = _object(
    prompt_tokens=NATURAL,
    completion_tokens=NATURAL,
    total_tokens=NATURAL,
    cached_tokens=NATURAL,
    prompt_tokens_details=_object(cached_tokens=NATURAL),
    completion_tokens_details=_object(reasoning_tokens=NATURAL),
)
FINISH = {"enum": ["stop", "length", "tool_calls"]}
CALL = _object(id=TEXT, type=_const("function"), function=_object(name=TEXT, arguments=TEXT))
CHAT_MESSAGE = _object(role=_const("assistant"), content=TEXT, refusal={"type": "null"})
CHAT_MESSAGE["properties"] |= {"reasoning_content": TEXT, "reasoning": TEXT, "tool_calls": _list(CALL)}
CHAT = _object(
    id=TEXT,
    object=_const("chat.completion"),
    created=NATURAL,
    model=TEXT,
    choices=_list(
        _object(index=NATURAL, finish_reason=FINISH, logprobs={"type": ["object", "null"]}, message=CHAT_MESSAGE)
    ),
    usage=USAGE,
)
COMPLETION = _object(
    id=TEXT,
    object=_const("text_completion"),
    created=NATURAL,
    model=TEXT,
    choices=_list(_object(index=NATURAL, text=TEXT, finish_reason=FINISH, logprobs={"type": ["object", "null"]})),
    usage=USAGE,
)
MESSAGE = _object(
    id=TEXT,
    type=_const("message"),
    role=_const("assistant"),
    model=TEXT,
    content=_list(_object(type={"enum": ["thinking", "text", "tool_use"]})),
    stop_reason={"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
    stop_sequence=OPTIONAL_TEXT,
    usage=_object(
        input_tokens=NATURAL,
        output_tokens=NATURAL,
        cache_read_input_tokens=NATURAL,
        cache_creation_input_tokens=NATURAL,
    ),
)
RESPONSE = _object(
    id=TEXT,
    object=_const("response"),
    created_at=NATURAL,
    status={"enum": ["completed", "incomplete"]},
    model=TEXT,
    output=_list(_object(id=TEXT, type={"enum": ["reasoning", "message", "function_call"]})),
    usage=_object(input_tokens=NATURAL, output_tokens=NATURAL, total_tokens=NATURAL),
)
MODEL = _object(
    id=TEXT,
    object=_const("model"),
    type=_const("model"),
    created=NATURAL,
    created_at=TEXT,
    display_name=TEXT,
    owned_by=TEXT,
    context_length=NATURAL,
    supports_image_in=YES_NO,
    supports_video_in=YES_NO,
    supports_reasoning=YES_NO,
)
FILE = _object(
    id=TEXT, object=_const("file"), bytes=NATURAL, created_at=NATURAL, filename=TEXT, purpose=TEXT, status=TEXT
)
TOKENS = _object(
    count=NATURAL, max_model_len=NATURAL, tokens=_list(NATURAL), token_strs={"type": ["array", "null"], "items": TEXT}
)
COUNT = _object(input_tokens=NATURAL)

# By method and path.
ANSWERS: Mapping[tuple[str, str], Schema] = {
    ("post", "/v1/chat/completions"): CHAT,
    ("post", "/v1/completions"): COMPLETION,
    ("post", "/v1/messages"): MESSAGE,
    ("post", "/anthropic/v1/messages"): MESSAGE,
    ("post", "/v1/messages/count_tokens"): COUNT,
    ("post", "/anthropic/v1/messages/count_tokens"): COUNT,
    ("post", "/v1/responses"): RESPONSE,
    ("get", "/v1/models"): _object(object=_const("list"), data=_list(MODEL), has_more=YES_NO),
    ("get", "/v1/models/{name}"): MODEL,
    ("post", "/tokenize"): TOKENS,
    ("post", "/v1/tokenize"): TOKENS,
    ("post", "/detokenize"): _object(prompt=TEXT),
    ("post", "/v1/detokenize"): _object(prompt=TEXT),
    ("post", "/v1/tokenizers/estimate-token-count"): _object(data=_object(total_tokens=NATURAL)),
    ("post", "/v1/files"): FILE,
    ("get", "/v1/files"): _object(object=_const("list"), data=_list(FILE), has_more=YES_NO),
    ("get", "/v1/files/{file_id}"): FILE,
    ("delete", "/v1/files/{file_id}"): _object(id=TEXT, object=_const("file"), deleted=_const(True)),
    ("get", "/version"): _object(version=TEXT),
    ("get", "/health"): _object(status=TEXT),
    ("get", "/ping"): _object(status=TEXT),
}
