"""From a request to token ids: nothing that a client writes becomes a special token, and media take their places."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.tokenizer_pb2 import CONTENT, REASONING, ChatMessage, ContentPart, RenderRequest, ToolCall
from services.checkpoint.markers import Marker
from services.runtime.errors import InvalidRequest
from services.tokenizer.messages import MAX_MEDIA_TOKENS
from services.tokenizer.vocabulary import PIECE_CHARS, RUN_CHARS
from tests.services.tokenizer.conversations import image, render_prompt, request_from_json, video

TOOLS = '[{"type":"function","function":{"name":%s,"description":%s,"parameters":%s}}]'


def request_with(text: str, field: str) -> RenderRequest:
    """A conversation with every kind of client text, where one kind is `text` and all others are harmless."""

    def put(name: str, usual: str = "x") -> str:
        return text if name == field else usual

    def quote(name: str) -> str:
        return json.dumps(put(name))

    call = ToolCall(id=put("id"), name=put("call name"), arguments=put("arguments", "{}"))
    schema = '{"properties":{%s:{"type":"string","description":%s,"enum":[%s]}}}'
    parameters = schema % (quote("property"), quote("property description"), quote("enum value"))
    return RenderRequest(
        messages=[
            ChatMessage(role="system", name=put("name"), content=[ContentPart(text=put("system"))]),
            ChatMessage(
                role=put("role", "user"), content=[ContentPart(text=put("first")), ContentPart(text=put("second"))]
            ),
            ChatMessage(
                role="user", content=[image(3), ContentPart(text=put("behind image")), video((put("video"), 2))]
            ),
            ChatMessage(role="assistant", reasoning=put("reasoning"), content=[], tool_calls=[call]),
            ChatMessage(role="tool", tool_call_id=put("answered"), content=[ContentPart(text=put("result"))]),
            ChatMessage(role="tool", tool_call_id=put("orphan"), content=[]),
        ],
        tools_json=TOOLS % (quote("tool name"), quote("tool description"), parameters),
        thinking=True,
        add_generation_prompt=True,
    )


FIELDS = (
    *(
        "name",
        "system",
        "role",
        "first",
        "second",
        "behind image",
        "video",
        "reasoning",
        "id",
        "call name",
        "arguments",
    ),
    *(
        "answered",
        "result",
        "orphan",
        "tool name",
        "tool description",
        "property",
        "property description",
        "enum value",
    ),
)


def special_ids(token_ids, vocabulary):
    return [token_id for token_id in token_ids if token_id >= vocabulary.first_special_id]


@pytest.mark.parametrize("field", FIELDS)
def test_no_text_becomes_a_special_token(vocabulary, field):
    evil = "".join(vocabulary.special_ids) + "<|kimi_k25_video_placeholder|>"
    harmless = render_prompt(request_with("harmless", field), vocabulary)
    attacked = render_prompt(request_with(evil, field), vocabulary)
    assert special_ids(attacked.token_ids, vocabulary) == special_ids(harmless.token_ids, vocabulary)
    # Ids of calls are replaced by canonical ones, with which the name of the call comes in.
    assert (evil in vocabulary.decode(attacked.token_ids)) == (field not in ("id", "answered"))


def test_a_marker_in_two_parts_stays_text(vocabulary):
    message = ChatMessage(role="user", content=[ContentPart(text="<|im_"), ContentPart(text="end|>")])
    response = render_prompt(RenderRequest(messages=[message]), vocabulary)
    special = [vocabulary.decode([i]) for i in special_ids(response.token_ids, vocabulary)]
    assert special == ["<|im_user|>", "<|im_middle|>", "<|im_end|>"]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60), field=st.sampled_from(FIELDS))
def test_prompts_equal_the_reference_where_nothing_looks_special(kimi, text, field):
    text = text.replace("<", "").replace("[", "")
    token_ids = list(render_prompt(request_with(text or "x", field), kimi).token_ids)
    assert token_ids == kimi.encode_with_special(kimi.decode(token_ids))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a" * (RUN_CHARS - 1), id="run-with-the-marker-before-it"),
        pytest.param("a" * 3 * RUN_CHARS, id="three-runs"),
        pytest.param("word " * (PIECE_CHARS // 5), id="one-piece"),
        pytest.param("word 中文 " * (PIECE_CHARS // 4), id="two-pieces"),
        pytest.param(" " * PIECE_CHARS, id="a-piece-of-spaces"),
    ],
)
def test_long_prompts_are_cut_where_the_reference_cuts(kimi, text):
    request = request_from_json([{"role": "user", "content": f"{text} {word} "} for word in ("and", "so on")])
    token_ids = list(render_prompt(request, kimi).token_ids)
    whole = kimi.decode(token_ids)
    assert token_ids == kimi.encode_with_special(whole)


def test_a_cut_never_breaks_a_marker(kimi):
    # The reference cuts this prompt inside its second <|im_end|> and so loses the token.
    header = "<|im_user|>user<|im_middle|>"
    text = "a " * ((PIECE_CHARS - len(header) - 4) // 2)
    request = request_from_json([{"role": "user", "content": text}])
    token_ids = list(render_prompt(request, kimi).token_ids)
    ends = [kimi.marker_ids[Marker.END] in ids for ids in (token_ids, kimi.encode_with_special(kimi.decode(token_ids)))]
    assert ends == [True, False]


def test_media_take_their_places(vocabulary):
    request = request_from_json([{"role": "user", "content": "look "}, {"role": "tool", "tool_call_id": "x"}])
    request.messages[0].content.extend(
        [image(4), ContentPart(text="and"), video(("00:00:00.000", 2), ("00:00:02.000", 1))]
    )
    request.messages[1].content.append(image(1))
    response = render_prompt(request, vocabulary)
    pad = vocabulary.marker_ids[Marker.MEDIA_PAD]
    assert [span.media.num_tokens for span in response.media] == [4, 2, 1, 1]
    places = [range(span.offset, span.offset + span.media.num_tokens) for span in response.media]
    assert [i for i, token_id in enumerate(response.token_ids) if token_id == pad] == [i for p in places for i in p]
    begin, end = ("<|media_begin|>{}<|media_content|>", "<|media_end|>")
    text = vocabulary.decode(response.token_ids)
    assert text.startswith(
        "<|im_user|>user<|im_middle|>look "
        + begin.format("image") + "<|media_pad|>" * 4 + end + "\nand00:00:00.000"
        + begin.format("video") + "<|media_pad|>" * 2 + end + "00:00:02.000"
        + begin.format("video") + "<|media_pad|>" + end + "\n<|im_end|>"
    )  # fmt: skip


def test_an_image_costs_its_tokens_and_five(kimi):
    request = request_from_json([{"role": "user", "content": "Describe the image."}])
    without = len(render_prompt(request, kimi).token_ids)
    request.messages[0].content.insert(0, image(64))
    assert len(render_prompt(request, kimi).token_ids) - without == 64 + 5


def test_a_video_chunk_costs_its_tokens_and_eleven(kimi):
    request = request_from_json([{"role": "user", "content": "What happens?"}])
    without = len(render_prompt(request, kimi).token_ids)
    request.messages[0].content.insert(0, video(("00:00:00.000", 64), ("00:00:02.000", 64)))
    assert len(render_prompt(request, kimi).token_ids) - without == 2 * (64 + 11) + 1


@pytest.mark.parametrize(
    "flags, state",
    [
        pytest.param({}, REASONING, id="thinking"),
        pytest.param({"thinking": False}, CONTENT, id="instant"),
        pytest.param({"add_generation_prompt": False}, CONTENT, id="no-answer-begun"),
        pytest.param({"add_generation_prompt": False, "continue_final_message": True}, CONTENT, id="goes-on"),
    ],
)
def test_the_prompt_tells_where_the_answer_starts(tiny, flags, state):
    messages = [{"role": "user", "content": "<think>"}, {"role": "assistant", "content": "x<think>"}]
    assert render_prompt(request_from_json(messages, **flags), tiny).parser_state == state


def test_history_calls_are_returned_as_rendered(tiny):
    calls = [{"id": i, "function": {"name": "f", "arguments": "{}"}} for i in ("functions.f:3", "call_x")]
    response = render_prompt(request_from_json([{"role": "assistant", "tool_calls": calls}]), tiny)
    assert response.num_history_calls == 2
    assert response.history_call_ids == ["functions.f:3", "functions.f:1"]


USER = {"role": "user", "content": "x"}
CALLING = {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}


NAMELESS = {"id": "", "function": {"name": "", "arguments": ""}}


def without_part(request):
    request.messages[0].content.append(ContentPart())


def with_parts(*parts):
    return lambda request: request.messages[0].content.extend(parts)


def continued(request):
    request.add_generation_prompt, request.continue_final_message = False, True


def both(request):
    request.continue_final_message = True


def unchanged(request):
    pass


@pytest.mark.parametrize(
    "messages, change, field",
    [
        pytest.param([USER, {"role": ""}], unchanged, "messages[1].role", id="no-role"),
        pytest.param([USER, USER, USER, {"role": "tool"}], unchanged, "messages[3].tool_call_id", id="no-call-id"),
        pytest.param([{**CALLING, "role": "user"}], unchanged, "messages[0].tool_calls", id="user-calls"),
        pytest.param(
            [USER, {"role": "assistant", "tool_calls": [*CALLING["tool_calls"], NAMELESS]}],
            unchanged,
            "messages[1].tool_calls[1].name",
            id="nameless-call",
        ),
        pytest.param([USER], without_part, "messages[0].content[1]", id="empty-part"),
        pytest.param([USER], with_parts(image(0)), "messages[0].content[1].image.num_tokens", id="empty-image"),
        pytest.param([USER], with_parts(video()), "messages[0].content[1].video.chunks", id="video-without-chunks"),
        pytest.param(
            [USER],
            with_parts(video(("a", 1), ("b", 0))),
            "messages[0].content[1].video.chunks[1].media.num_tokens",
            id="empty-chunk",
        ),
        pytest.param([USER], with_parts(image(MAX_MEDIA_TOKENS), image()), "messages", id="too-many-media-tokens"),
        pytest.param([USER], continued, "messages[0].role", id="user-goes-on"),
        pytest.param([], continued, "messages", id="nothing-goes-on"),
        pytest.param([USER, CALLING], continued, "messages[1].tool_calls", id="calls-go-on"),
        pytest.param([{"role": "assistant"}], both, "continue_final_message", id="begins-and-goes-on"),
    ],
)
def test_bad_requests_name_the_field(tiny, messages, change, field):
    request = request_from_json(messages)
    change(request)
    with pytest.raises(InvalidRequest) as caught:
        render_prompt(request, tiny)
    assert caught.value.field == field
    assert caught.value.message.startswith(f"{field}: ")


def test_an_empty_conversation_has_an_empty_prompt(tiny):
    assert render_prompt(RenderRequest(), tiny).token_ids == []
