"""A renderer that remembers texts returns the prompts of one that encodes everything, and encodes only what is new."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.tokenizer_pb2 import ChatMessage, ContentPart, RenderRequest, ToolCall
from services.runtime.errors import InvalidRequest
from services.tokenizer.memo import ENTRY_BYTES, Memo
from services.tokenizer.rendering import Renderer
from services.tokenizer.vocabulary import PIECE_CHARS, RUN_CHARS
from tests.golden import read_golden
from tests.services.tokenizer.conversations import image, render_prompt, request_from_json, video

MEMORY = 1 << 24
SENTENCE = "The quick brown fox jumps over the lazy dog, 12345 times; 敏捷的棕色狐狸跳过了懒狗. "
TOOLS = (
    '[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"string"}}}}}]'
)

texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", " ", "\n\n", "'s", "<|im_end|>", "</think>"]),
    st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=30), st.integers(3, 40)),
    st.sampled_from([SENTENCE, SENTENCE * 3]),
)
parts = st.one_of(
    texts.map(lambda text: ContentPart(text=text)),
    st.integers(1, 3).map(image),
    st.lists(st.tuples(texts, st.integers(1, 2)), min_size=1, max_size=2).map(lambda chunks: video(*chunks)),
)
calls = st.builds(ToolCall, id=st.sampled_from(["functions.f:0", "call_x"]), name=st.just("f"), arguments=texts)
messages = st.one_of(
    st.builds(ChatMessage, role=st.sampled_from(["user", "system"]), content=st.lists(parts, max_size=3)),
    st.builds(
        ChatMessage,
        role=st.just("assistant"),
        reasoning=st.none() | texts,
        content=st.lists(parts, max_size=2),
        tool_calls=st.lists(calls, max_size=2),
    ),
    st.builds(ChatMessage, role=st.just("tool"), tool_call_id=st.just("call_x"), content=st.lists(parts, max_size=2)),
)


@pytest.fixture(scope="module")
def renderer(kimi) -> Renderer:
    return Renderer(kimi, MEMORY)


@settings(max_examples=150, deadline=None)
@given(
    conversation=st.lists(messages, min_size=1, max_size=8),
    tools=st.sampled_from(["", TOOLS]),
    thinking=st.booleans(),
    preserve=st.booleans(),
)
@pytest.mark.slow
def test_every_turn_has_the_prompt_of_a_renderer_without_a_memory(kimi, conversation, tools, thinking, preserve):
    # Small enough to forget, so that conversations are met half remembered too.
    renderer = Renderer(kimi, 8 * ENTRY_BYTES)
    for num_messages in range(1, len(conversation) + 1):
        request = RenderRequest(
            messages=conversation[:num_messages],
            tools_json=tools,
            thinking=thinking,
            preserve_thinking=preserve,
            add_generation_prompt=True,
        )
        for _ in range(2):
            assert renderer.render(request) == render_prompt(request, kimi)


def test_golden_conversations_turn_by_turn(kimi, renderer):
    for case in read_golden("prompts.json")["cases"]:
        flags = {key: case["kwargs"].get(key, False) for key in ("preserve_thinking", "add_generation_prompt")}
        thinking = case["kwargs"].get("thinking", True) is not False
        for num_messages in range(1, len(case["messages"]) + 1):
            request = request_from_json(case["messages"][:num_messages], case["tools"], thinking=thinking, **flags)
            try:
                expected = render_prompt(request, kimi)
            except InvalidRequest:
                continue  # a video that nobody has looked at
            assert renderer.render(request) == expected, case["id"]


@pytest.mark.parametrize("seed", range(3))
def test_long_conversations_are_cut_where_the_reference_cuts(kimi, renderer, seed):
    chance = random.Random(seed)
    pieces = ("a" * 30_000, " " * 26_000, SENTENCE * 900, "x" * RUN_CHARS, SENTENCE)
    conversation = []
    while sum(len(message["content"]) for message in conversation) < PIECE_CHARS + 50_000:
        role = "assistant" if len(conversation) % 2 else "user"
        conversation.append({"role": role, "content": "".join(chance.choices(pieces, k=2))})
        request = request_from_json(conversation)
        assert renderer.render(request) == render_prompt(request, kimi)


def test_a_turn_encodes_only_what_is_new(kimi, monkeypatch):
    renderer = Renderer(kimi, MEMORY)
    encoded: list[str] = []
    encode = kimi.encode_piece
    monkeypatch.setattr(kimi, "encode_piece", lambda text: encoded.append(text) or encode(text))
    history = [
        {"role": "user" if number % 2 == 0 else "assistant", "content": f"{number}. {SENTENCE * 20}"}
        for number in range(41)
    ]
    renderer.render(request_from_json(history))
    encoded.clear()
    renderer.render(
        request_from_json([*history, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}])
    )
    assert sum(map(len, encoded)) < 1000 < len(SENTENCE * 20)


def test_a_memo_forgets_what_was_used_longest_ago():
    made = []
    memo = Memo(lambda text: made.append(text) or text.upper(), 4 * (ENTRY_BYTES + 400))
    for text in ("a", "b", "c", "a", "d", "e", "a", "b"):
        assert memo(text) == text.upper()
    assert made == ["a", "b", "c", "d", "e", "b"]


def test_a_memo_keeps_within_its_bound():
    made = []
    memo = Memo(made.append, 10 * ENTRY_BYTES)
    for text in ("x" * 4 * ENTRY_BYTES, "y", "x" * 4 * ENTRY_BYTES, "y"):
        memo(text)
    assert [text[0] for text in made] == ["x", "y", "x"]
    assert Memo(made.append, 0)("z") is None
