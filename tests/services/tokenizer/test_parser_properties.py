"""What holds for every answer, however its tokens are grouped and wherever it is cut."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.checkpoint.answer_form import Place
from services.checkpoint.markers import Marker
from services.tokenizer.parser_options import ParserOptions
from services.tokenizer.tools import DeclaredTool
from tests.services.tokenizer.answers import Call, parse

TOOLS = (
    DeclaredTool("get_weather", frozenset({"city"})),
    DeclaredTool("file_edit", frozenset({"path", "text"})),
    DeclaredTool("search-docs", frozenset({"query"})),
)
STOPS = ["STOP", "\n\n", "OPS", "é!"]

texts = st.text(st.sampled_from(' aé中😀\n"{}:STOPfunctions.get_weather0123<|>/think'), max_size=12)
ids = st.sampled_from(
    [
        *("functions.get_weather:0", " functions.file_edit:3 \n", "get_weather_1"),
        *("functions.search_docs:2", "call_9", "7", "nothing:0"),
    ]
)
json_texts = st.dictionaries(st.sampled_from(["city", "path", "text", "query", "é"]), texts, max_size=3).map(json.dumps)
arguments = st.one_of(
    texts, json_texts, json_texts.map(json.dumps), st.tuples(texts, json_texts, texts).map("".join), st.just("")
)
marker_texts = st.sampled_from(list(Marker)).map(lambda marker: marker.value)


@st.composite
def answers(draw, vocabulary):
    """Token ids: text, calls in good and in bad form, stray markers, markers typed as text, bytes that are no text."""
    token_ids = []
    for kind in draw(st.lists(st.sampled_from(["text", "call", "marker", "typed", "bytes"]), max_size=8)):
        match kind:
            case "text":
                token_ids += vocabulary.encode(draw(texts))
            case "typed":
                token_ids += vocabulary.encode(draw(marker_texts))
            case "marker":
                token_ids += vocabulary.encode_with_special(draw(marker_texts))
            case "bytes":
                token_ids += draw(st.lists(st.integers(0, 255), max_size=3))
            case "call":
                for text, marker in (
                    ("", Marker.SECTION_BEGIN),
                    ("", Marker.CALL_BEGIN),
                    (draw(ids), Marker.CALL_ARGUMENTS),
                    (draw(arguments), Marker.CALL_END),
                ):
                    token_ids += [*vocabulary.encode(text), vocabulary.marker_ids[marker]]
    return token_ids[: draw(st.integers(0, len(token_ids)))] if draw(st.booleans()) else token_ids


option_sets = st.builds(
    ParserOptions,
    start=st.sampled_from([Place.REASONING, Place.CONTENT, Place.RAW]),
    tools=st.sampled_from([TOOLS, TOOLS[:1], ()]),
    num_history_calls=st.just(1),
    history_call_ids=st.just(["functions.get_weather:0"]),
    drop_tool_calls=st.booleans(),
    stop=st.lists(st.sampled_from(STOPS), max_size=2),
    include_stop=st.booleans(),
    keep_special=st.booleans(),
    max_tool_calls=st.integers(0, 2),
)


def outcome(parsed):
    parser = parsed.parser
    counts = {key: count for key, count in parsed.notes.items() if key != "text"}
    return parsed.answer.order, parser.stop, parser.num_reasoning_tokens, parser.num_complete_calls, counts


@pytest.mark.parametrize("name", ["tiny", "kimi"])
def test_grouping_does_not_matter(name, request):
    vocabulary = request.getfixturevalue(name)

    @settings(max_examples=200, deadline=None)
    @given(answers(vocabulary), option_sets, st.booleans(), st.data())
    def check(token_ids, options, truncated, data):
        whole = outcome(parse(vocabulary, token_ids, options, truncated=truncated))
        one_by_one = range(1, len(token_ids))
        drawn = sorted(data.draw(st.lists(st.integers(0, len(token_ids)), max_size=6)))
        for cuts in (one_by_one, drawn):
            assert outcome(parse(vocabulary, token_ids, options, cuts=cuts, truncated=truncated)) == whole

    check()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_grouping_of_a_short_answer(tiny, data):
    token_ids = data.draw(answers(tiny))[:9]
    options = data.draw(option_sets)
    whole = outcome(parse(tiny, token_ids, options))
    places = range(1, len(token_ids))
    for count in range(len(token_ids)):
        for cuts in itertools.combinations(places, count):
            assert outcome(parse(tiny, token_ids, options, cuts=cuts)) == whole


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_what_was_handed_out_is_never_taken_back(tiny, data):
    """A second replica that is fed with all tokens again first hands out what the first one did."""
    token_ids = data.draw(answers(tiny))
    options = data.draw(option_sets)
    full = parse(tiny, token_ids, options).answer
    cut = data.draw(st.integers(0, len(token_ids)))
    part = parse(tiny, token_ids[:cut], options, end=False).answer
    assert full.reasoning.startswith(part.reasoning)
    assert full.content.startswith(part.content)
    for early, late in zip(part.calls, full.calls, strict=False):
        assert (early.id, early.name) == (late.id, late.name)
        assert late.arguments.startswith(early.arguments)
    assert len(part.calls) <= len(full.calls)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_marker_token_reaches_the_text(tiny, data):
    """The text of a marker is in reasoning or content only where it was typed."""
    options = data.draw(option_sets.filter(lambda options: options.start is not Place.RAW))
    pieces = data.draw(
        st.lists(st.one_of(marker_texts, st.sampled_from(["a", "b c", "functions.get_weather:0"])), max_size=12)
    )
    answer = parse(tiny, tiny.encode_with_special("".join(pieces)), options).answer
    assert not any(marker.value in answer.reasoning + answer.content for marker in Marker)
    assert len({call.id for call in answer.calls} | {"functions.get_weather:0"}) == len(answer.calls) + 1
    assert all(call.complete is not None for call in answer.calls)


good_calls = st.lists(st.tuples(st.sampled_from(TOOLS), json_texts), max_size=4)


@pytest.mark.parametrize("name", ["tiny", "kimi"])
def test_good_answers_come_back_as_they_were_meant(name, request):
    vocabulary = request.getfixturevalue(name)
    markers = vocabulary.marker_ids

    @settings(max_examples=200, deadline=None)
    @given(texts, texts, good_calls, texts, st.booleans())
    def check(reasoning, content, calls, after, says_so):
        token_ids = vocabulary.encode(reasoning)
        if says_so or content or not calls:
            token_ids += [markers[Marker.THINK_END], *vocabulary.encode(content)]
        token_ids.append(markers[Marker.SECTION_BEGIN])
        for number, (tool, arguments) in enumerate(calls, 5):
            token_ids += [markers[Marker.CALL_BEGIN], *vocabulary.encode(f"functions.{tool.name}:{number}")]
            token_ids += [markers[Marker.CALL_ARGUMENTS], *vocabulary.encode(arguments), markers[Marker.CALL_END]]
        token_ids += [markers[Marker.SECTION_END], *vocabulary.encode(after), markers[Marker.END]]
        parsed = parse(vocabulary, token_ids, ParserOptions(Place.REASONING, TOOLS, 5))
        assert (parsed.answer.reasoning, parsed.answer.content) == (reasoning, content + after)
        assert parsed.answer.calls == [
            Call(f"functions.{tool.name}:{number}", tool.name, arguments, complete=True)
            for number, (tool, arguments) in enumerate(calls, 5)
        ]
        assert parsed.parser.num_reasoning_tokens == len(vocabulary.encode(reasoning))
        assert not parsed.notes

    check()
