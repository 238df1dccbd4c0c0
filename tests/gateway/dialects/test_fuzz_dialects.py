"""Whatever is sent to the Anthropic and the Responses dialect: never a 5xx, and every refusal in the dialect's form."""

import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.messages.schema import MessagesRequest
from gateway.dialects.responses.schema import ResponsesRequest
from tests.gateway.dialects.message_streams import check_message, read_message_stream
from tests.gateway.dialects.response_streams import read_response_stream
from tests.gateway.fuzzing import MANY, VALUES, client_of_site

pytestmark = pytest.mark.slow

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
RESPONSES = "/v1/responses"
BASES = {
    MESSAGES: {"model": "kimi-k2.6", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]},
    COUNT: {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}]},
    RESPONSES: {"model": "kimi-k2.6", "input": "Hi"},
}
FIELDS = {
    MESSAGES: sorted({*MessagesRequest.model_fields, "context_management", "x"}),
    COUNT: sorted({*MessagesRequest.model_fields, "context_management", "x"}),
    RESPONSES: sorted({*ResponsesRequest.model_fields, "previous_response_id", "conversation", "x"}),
}


@pytest.fixture(scope="module")
def http(vocabulary):
    with client_of_site(vocabulary) as client:
        yield client


def post(http: httpx.Client, path: str, raw: bytes | str) -> None:
    """Sends it, and checks what holds for every answer."""
    response = http.post(path, content=raw, headers={"content-type": "application/json"})
    if response.status_code == 200:
        check_answer(path, response)
        return
    assert 400 <= response.status_code < 500, response.text
    body = response.json()
    if path == RESPONSES:
        assert body["error"].keys() == {"message", "type", "param", "code"}
    else:
        assert body.keys() == {"type", "error", "request_id"}
        assert body["error"].keys() == {"type", "message"}
    assert 0 < len(body["error"]["message"]) <= 500


def check_answer(path: str, response: httpx.Response) -> None:
    streamed = response.headers["content-type"].startswith("text/event-stream")
    if path == COUNT:
        assert response.json().keys() == {"input_tokens"}
    elif path == MESSAGES:
        assert read_message_stream(response.content).error is None if streamed else check_message(response.json())
    elif streamed:
        assert read_response_stream(response.content).response["status"] != "failed"
    else:
        # Not for the SDK's types: what a response repeats may be what only this server accepts.
        assert response.json()["output"][0]["type"] in ("reasoning", "message")


def blocks(*kinds: str) -> st.SearchStrategy:
    text = st.text(max_size=5)
    return st.fixed_dictionaries(
        {"type": st.sampled_from(kinds)},
        optional={
            "text": text,
            "thinking": text,
            "signature": text,
            "id": text,
            "name": text,
            "input": st.dictionaries(text, VALUES, max_size=2),
            "tool_use_id": text,
            "content": text | VALUES,
            "source": st.fixed_dictionaries(
                {"type": st.sampled_from(["base64", "url", "text", "file"])}, optional={"data": text, "url": text}
            ),
        },
    )


USER = blocks("text", "image", "document", "tool_result", "search_result", "tool_reference", "audio")
ASSISTANT = blocks("text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "x")
TURNS = st.one_of(
    st.fixed_dictionaries({"role": st.just("user"), "content": st.text(max_size=9) | st.lists(USER, max_size=4)}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": st.text(max_size=9) | st.lists(ASSISTANT, max_size=4)}
    ),
    st.fixed_dictionaries({"role": st.just("system"), "content": st.lists(blocks("text"), max_size=2) | VALUES}),
)
ITEMS = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning", "item_reference", "x"])},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "developer"]),
        "content": st.text(max_size=9) | st.lists(blocks("input_text", "output_text", "text"), max_size=3) | VALUES,
        "call_id": st.text(max_size=9),
        "name": st.text(max_size=5),
        "arguments": st.text(max_size=9),
        "output": st.text(max_size=9) | VALUES,
        "summary": st.lists(st.fixed_dictionaries({"text": st.text(max_size=5)}), max_size=2),
        "encrypted_content": st.text(max_size=9),
    },
)


@MANY
@given(path=st.sampled_from(sorted(BASES)), raw=st.binary(max_size=200) | VALUES.map(json.dumps))
def test_any_body(http, path, raw):
    post(http, path, raw)


@MANY
@given(data=st.data(), path=st.sampled_from(sorted(BASES)))
def test_any_value_in_any_field(http, data, path):
    changes = data.draw(st.dictionaries(st.sampled_from(FIELDS[path]), VALUES, min_size=1, max_size=3))
    post(http, path, json.dumps({**BASES[path], **changes}))


@MANY
@given(turns=st.lists(TURNS, min_size=1, max_size=5), stream=st.booleans(), path=st.sampled_from([MESSAGES, COUNT]))
def test_nearly_right_conversations(http, turns, stream, path):
    thinking = {"type": "adaptive"}
    post(http, path, json.dumps({**BASES[path], "messages": turns, "stream": stream, "thinking": thinking}))


@MANY
@given(items=st.lists(ITEMS, min_size=1, max_size=5), stream=st.booleans())
def test_nearly_right_items(http, items, stream):
    post(http, RESPONSES, json.dumps({**BASES[RESPONSES], "input": items, "stream": stream}))
