"""Whatever bytes a client sends: never a 5xx, and every refusal in the agreed form."""

import json
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.chat.field_rules import RULES
from gateway.dialects.chat.schema import ChatCompletionRequest
from tests.gateway.fuzzing import MANY, VALUES, client_of_site
from tests.gateway.streams import read_stream

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
REFUSED = [name for name in RULES.refused if "*" not in name and "." not in name]


@pytest.fixture(scope="module")
def http(vocabulary):
    with client_of_site(vocabulary) as client:
        yield client


def check(response: httpx.Response) -> None:
    """What holds for every answer."""
    if response.status_code == 200:
        if response.headers["content-type"].startswith("text/event-stream"):
            assert read_stream(response.content).error is None
        return
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(error["message"]) <= 500


FIELDS = st.sampled_from(sorted({*ChatCompletionRequest.model_fields, *REFUSED, "x"}))
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "input_text", "refusal", "image_url", "audio"])},
    optional={"text": st.text(max_size=5), "refusal": st.text(max_size=5), "image_url": VALUES},
)
CALLS = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": st.text(max_size=5)}, optional={"arguments": VALUES})},
    optional={"id": st.text(max_size=12) | VALUES, "type": VALUES},
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
    optional={
        "content": st.text(max_size=20) | st.lists(PARTS, max_size=3) | VALUES,
        "name": st.text(max_size=5),
        "reasoning": st.text(max_size=5) | st.none(),
        "reasoning_content": st.text(max_size=5),
        "tool_calls": st.lists(CALLS, max_size=3),
        "tool_call_id": st.text(max_size=8),
        "partial": st.booleans(),
    },
)
TOOLS = st.fixed_dictionaries(
    {"type": st.just("function")},
    optional={
        "function": st.fixed_dictionaries(
            {"name": st.text("ab_", min_size=1, max_size=3)},
            optional={"description": st.text(max_size=9), "parameters": VALUES, "strict": st.booleans()},
        )
    },
)


@MANY
@given(raw=st.binary(max_size=200))
def test_bytes(http, raw):
    check(http.post(CHAT, content=raw, headers={"content-type": "application/json"}))


@MANY
@given(body=VALUES)
def test_any_json(http, body):
    check(http.post(CHAT, content=json.dumps(body), headers={"content-type": "application/json"}))


@MANY
@given(changes=st.dictionaries(FIELDS, VALUES, min_size=1, max_size=3))
def test_any_value_in_any_field(http, changes):
    body = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}], **changes}
    check(http.post(CHAT, content=json.dumps(body), headers={"content-type": "application/json"}))


@MANY
@given(messages=st.lists(MESSAGES, min_size=1, max_size=5), tools=st.lists(TOOLS, max_size=3), stream=st.booleans())
def test_nearly_right_conversations(http, messages, tools, stream):
    body = {"model": "kimi-k2.6", "messages": messages, "tools": tools, "stream": stream}
    check(http.post(CHAT, content=json.dumps(body), headers={"content-type": "application/json"}))


@MANY
@given(path=st.text(max_size=30), method=st.sampled_from(["GET", "POST", "PUT", "DELETE"]))
def test_any_path(http, path, method):
    response = http.request(method, "/" + quote(path, safe="/?=&"))
    assert response.status_code < 500
    if response.status_code >= 400:
        check(response)
