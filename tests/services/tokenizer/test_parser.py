"""The parser of answers: the golden cases, and the table of TEMPLATE.md row by row."""

import json

import pytest

from protos.tokenizer_pb2 import CONTENT, ParseStart
from services.checkpoint.answer_form import Place
from services.runtime.errors import InvalidRequest
from services.tokenizer.parser import Dropped
from services.tokenizer.parser_options import MAX_STOP_CHARS, MAX_STOPS, ParserOptions, options_from_proto
from services.tokenizer.tools import DeclaredTool
from tests.golden import read_golden
from tests.services.tokenizer.answers import Call, parse

TOOLS = (
    DeclaredTool("get_weather", frozenset({"city"})),
    DeclaredTool("search-docs", frozenset({"query", "limit"})),
    DeclaredTool("file_edit", frozenset({"path", "text"})),
)
OPTIONS = ParserOptions(Place.CONTENT, TOOLS)
SECTION = "<|tool_calls_section_begin|>"
SECTION_END = "<|tool_calls_section_end|>"
BEGIN, ARGS, END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"


def weather(number=0, arguments="{}", end=END):
    return f"{BEGIN}functions.get_weather:{number}{ARGS}{arguments}{end}"


def message_of(parsed, stopped_by):
    """What a client without streaming gets, put together."""
    answer = parsed.answer
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in answer.calls
        if call.complete
    ]
    assert parsed.parser.num_complete_calls == len(calls)
    stopped = "tool_calls" if calls else "stop"
    return {
        "reasoning_content": answer.reasoning or None,
        "content": answer.content or None,
        "tool_calls": calls or None,
        "finish_reason": "length" if stopped_by == "max_tokens" else stopped,
    }


def test_golden_answers(kimi):
    cases = read_golden("answers.json")["cases"]
    assert len(cases) == 40
    for case in cases:
        token_ids = kimi.encode_with_special(case["raw"])
        options = ParserOptions(
            Place.REASONING if case["prompt_ends_with"] == "<think>" else Place.CONTENT,
            [DeclaredTool(tool["name"], frozenset(tool["properties"])) for tool in case["declared_tools"]],
            case["calls_in_history"],
        )
        every_two = [[cut] for cut in range(1, len(token_ids))][:400]
        for cuts in ([], range(1, len(token_ids)), *every_two):
            parsed = parse(kimi, token_ids, options, cuts=cuts, truncated=case["stopped_by"] == "max_tokens")
            assert message_of(parsed, case["stopped_by"]) == case["expected"], (case["id"], list(cuts)[:3])


def read(vocabulary, text, options=OPTIONS, **kwargs):
    return parse(vocabulary, vocabulary.encode_with_special(text), options, **kwargs)


@pytest.mark.parametrize(
    "state, text, reasoning, content, notes",
    [
        # One row per cell of the table that no golden case visits.
        (Place.REASONING, f"a{ARGS}b{END}c{SECTION_END}d", "abcd", "", {}),
        (Place.CONTENT, f"a<think>b{ARGS}c{END}d{SECTION_END}e", "", "abcde", {}),
        (Place.REASONING, f"r{SECTION}{SECTION_END}c", "r", "c", {}),
        (Place.CONTENT, f"{SECTION}<think></think>{SECTION}{ARGS}{END}{SECTION_END}c", "", "c", {}),
        (Place.CONTENT, f"{SECTION} \n{SECTION_END}c", "", "c", {}),
        (Place.CONTENT, f"{SECTION}noise{SECTION_END}c", "", "c", {"text": 1}),
        (Place.CONTENT, f"{BEGIN}f:0{SECTION}x{SECTION_END}c", "", "c", {Dropped.ABORTED: 1, "text": 1}),
        (Place.CONTENT, f"{BEGIN}functions.get_weather:0{END}{SECTION_END}c", "", "c", {Dropped.ABORTED: 1}),
        (Place.CONTENT, f"{BEGIN}functions.get_weather:0{SECTION_END}c", "", "c", {Dropped.ABORTED: 1}),
        (Place.CONTENT, f"{BEGIN}functions.get_weather:0", "", "", {Dropped.UNFINISHED: 1}),
        (Place.CONTENT, f"{BEGIN}<think>functions.get_weather:0{ARGS}", "", "", {Dropped.UNKNOWN: 1}),
        (Place.CONTENT, f"{BEGIN}call_12{ARGS}" + '{"nothing":1}' + END, "", "", {Dropped.UNKNOWN: 1}),
        (Place.CONTENT, f"{BEGIN}call_12{ARGS}" + '{"path":"a"', "", "", {Dropped.UNFINISHED: 1}),
        (Place.CONTENT, "a<|im_end|>b[PAD]c<|media_pad|><|reserved_token_{}|>d", "", "abcd", {}),
        (Place.REASONING, "a<|im_end|>[EOS]b", "ab", "", {}),
    ],
)
def test_table(vocabulary, state, text, reasoning, content, notes):
    text = text.replace("_{}|>", f"_{vocabulary.first_special_id + 5}|>")
    parsed = read(vocabulary, text, ParserOptions(state, TOOLS))
    assert (parsed.answer.reasoning, parsed.answer.content, parsed.answer.calls) == (reasoning, content, [])
    assert dict(parsed.notes) == notes


def test_a_restarted_call_counts_once(vocabulary):
    parsed = read(vocabulary, f"{SECTION}{BEGIN}functions.file{weather(0)}{SECTION_END}")
    assert parsed.answer.calls == [Call("functions.get_weather:0", "get_weather", "{}", True)]
    assert parsed.notes == {Dropped.ABORTED: 1}


def test_markers_in_arguments_are_text(vocabulary):
    inside = f"<think></think>{SECTION}{ARGS}"
    parsed = read(vocabulary, weather(0, '{"city":"' + inside + '"}'))
    assert parsed.answer.calls[0].arguments == '{"city":"' + inside + '"}'


def test_other_special_tokens_in_arguments_are_swallowed(vocabulary):
    parsed = read(vocabulary, weather(0, '{"city":"a<|im_end|>[PAD]b"}'))
    assert parsed.answer.calls[0].arguments == '{"city":"ab"}'


def test_characters_that_look_like_markers_are_text(vocabulary):
    text = "a</think>b" + SECTION + weather(0)
    parsed = parse(vocabulary, vocabulary.encode(text), ParserOptions(Place.REASONING, TOOLS))
    assert parsed.answer.reasoning == text


def test_what_is_known_is_handed_out_at_once(tiny):
    def order(text):
        return read(tiny, text, end=False).answer.order

    start = ("tool_call_start", 0, "functions.get_weather:0", "get_weather")
    head = f"{SECTION}{BEGIN}functions.get_weather:0"
    assert order(head) == []
    assert order(head + ARGS) == [start]
    assert order(head + ARGS + ' {"city": ') == [start, ("tool_call_arguments", 0, '{"city":')]
    assert order(head + ARGS + '{"city": "A') == [start, ("tool_call_arguments", 0, '{"city": "A')]
    assert order(head + ARGS + '"{') == [start]
    assert order(f'{SECTION}{BEGIN}call_1{ARGS}{{"city": "A"}}') == []


def test_calls_can_be_unwanted_and_limited(vocabulary):
    text = f"a{SECTION}{weather(0)}{weather(1)}{SECTION_END}b"
    for options in (ParserOptions(Place.CONTENT, TOOLS, drop_tool_calls=True), ParserOptions(Place.CONTENT)):
        parsed = read(vocabulary, text, options)
        assert (parsed.answer.content, parsed.answer.calls) == ("ab", [])
        assert parsed.notes == {Dropped.UNWANTED: 2}
    parsed = read(vocabulary, text, ParserOptions(Place.CONTENT, TOOLS, max_tool_calls=1))
    assert [call.id for call in parsed.answer.calls] == ["functions.get_weather:0"]
    assert parsed.notes == {Dropped.OVER_LIMIT: 1}
    assert parsed.parser.num_complete_calls == 1


def test_dropped_calls_take_no_index(vocabulary):
    text = f"{SECTION}{BEGIN}functions.nothing:0{ARGS}{{}}{END}{weather(1)}{SECTION_END}"
    parsed = read(vocabulary, text)
    assert [call.id for call in parsed.answer.calls] == ["functions.get_weather:1"]


def test_ids_stay_unique_in_the_conversation(vocabulary):
    options = ParserOptions(Place.CONTENT, TOOLS, 1, ["functions.get_weather:0"])
    parsed = read(vocabulary, f"{SECTION}{weather(0)}{weather(0)}{weather(5)}{SECTION_END}", options)
    assert [call.id for call in parsed.answer.calls] == [f"functions.get_weather:{n}" for n in (1, 2, 5)]


@pytest.mark.parametrize(
    "arguments, truncated, complete, invalid",
    [
        pytest.param('{"city": "A"}', False, True, 0, id="whole-at-a-stop"),
        pytest.param('{"city": "A"}', True, True, 0, id="whole-at-the-end-of-the-budget"),
        pytest.param('"{\\"city\\": 1}"', True, True, 0, id="doubly-encoded"),
        pytest.param('{"city": "A', True, False, 0, id="cut-by-the-budget"),
        pytest.param('{"city": "A', False, False, 1, id="cut-by-the-model"),
        pytest.param("", False, False, 0, id="nothing-yet"),
        pytest.param("12", True, False, 0, id="a-number-could-go-on"),
    ],
)
def test_an_open_call_at_the_end(vocabulary, arguments, truncated, complete, invalid):
    parsed = read(vocabulary, SECTION + weather(0, arguments, end=""), truncated=truncated)
    assert [call.complete for call in parsed.answer.calls] == [complete]
    assert parsed.parser.num_complete_calls == int(complete)
    assert parsed.notes["invalid"] == invalid


def test_stop_strings_are_matched_in_content_only(vocabulary):
    options = ParserOptions(Place.REASONING, TOOLS, stop=["STOP", "\n\n"])
    call = weather(0, '{"city": "STOP"}')
    parsed = read(vocabulary, f"a STOP b</think>c{SECTION}{call}{SECTION_END}d\n\ne STOP", options)
    assert (parsed.answer.reasoning, parsed.answer.content) == ("a STOP b", "cd")
    assert parsed.answer.calls[0].arguments == '{"city": "STOP"}'
    assert parsed.parser.stop == "\n\n"


def test_nothing_follows_a_stop_string(vocabulary):
    options = ParserOptions(Place.CONTENT, TOOLS, stop=["STOP"], include_stop=True)
    parsed = read(vocabulary, f"aSTOPb{SECTION}{weather(0)}{SECTION_END}<think>c")
    assert parsed.answer.calls
    parsed = read(vocabulary, f"aSTOPb{SECTION}{weather(0)}{SECTION_END}<think>c", options)
    assert (parsed.answer.content, parsed.answer.reasoning, parsed.answer.calls) == ("aSTOP", "", [])


def test_a_held_beginning_of_a_stop_string_comes_before_the_call(tiny):
    options = ParserOptions(Place.CONTENT, TOOLS, stop=["\n\n"])
    parsed = read(tiny, f"I look.\n{SECTION}{weather(0)}{SECTION_END}\n", options)
    assert [kind for kind, *_ in parsed.answer.order] == [
        "content",
        "tool_call_start",
        "tool_call_arguments",
        "tool_call_end",
        "content",
    ]
    assert parsed.answer.content == "I look.\n\n"
    assert parsed.parser.stop is None


def test_raw_answers_have_no_channels(vocabulary):
    text = f"a<think>b</think>{SECTION}c<|im_end|>Z"
    raw = ParserOptions(Place.RAW, stop=["Z"])
    assert read(vocabulary, text, raw).answer.content == f"a<think>b</think>{SECTION}c"
    shown = ParserOptions(Place.RAW, stop=["Z"], keep_special=True)
    parsed = read(vocabulary, text + "e", shown)
    assert parsed.answer.content == f"a<think>b</think>{SECTION}c<|im_end|>"
    assert parsed.parser.stop == "Z"


def test_reasoning_tokens_are_counted(tiny):
    parsed = read(tiny, "<think>abc</think>de", ParserOptions(Place.REASONING))
    assert parsed.parser.num_reasoning_tokens == 3


@pytest.mark.parametrize("size", [1, 2, 3])
def test_unfinished_characters_end_as_replacements(tiny, size):
    half = tiny.encode("😀")[:size]
    for state in (Place.REASONING, Place.CONTENT, Place.RAW):
        answer = parse(tiny, [*tiny.encode("a"), *half], ParserOptions(state, TOOLS)).answer
        assert answer.reasoning + answer.content == "a\ufffd"
    token_ids = [*tiny.encode_with_special("x</think>"), *half, *tiny.encode_with_special(SECTION + weather())]
    answer = parse(tiny, token_ids, ParserOptions(Place.REASONING, TOOLS)).answer
    assert (answer.reasoning, answer.content, len(answer.calls)) == ("x", "\ufffd", 1)
    token_ids = [
        *tiny.encode_with_special(weather(0, '{"city":"', end="")),
        *half,
        *tiny.encode_with_special('"}' + END),
    ]
    assert parse(tiny, token_ids, OPTIONS).answer.calls[0].arguments == '{"city":"\ufffd"}'
    token_ids = [*tiny.encode_with_special(weather(0, "x", end="")), *half]
    answer = parse(tiny, [*token_ids, *tiny.encode_with_special(END + SECTION_END + "y")], OPTIONS).answer
    assert (answer.calls[0].arguments, answer.content) == ("x\ufffd", "y")


def test_unknown_tokens_are_refused(tiny):
    with pytest.raises(InvalidRequest, match="512 is no token"):
        parse(tiny, [1, 512], OPTIONS)


def test_a_long_answer_is_parsed(vocabulary):
    text = "x中y" * 70_000
    call = weather(0, json.dumps({"city": text}))
    parsed = read(vocabulary, f"{text}</think>{text}{SECTION}{call}", ParserOptions(Place.REASONING, TOOLS))
    assert (parsed.answer.reasoning, parsed.answer.content) == (text, text)
    assert json.loads(parsed.answer.calls[0].arguments) == {"city": text}


@pytest.mark.parametrize(
    "start, field",
    [
        pytest.param(ParseStart(), "state", id="no-state"),
        pytest.param(ParseStart(state=CONTENT, stop=["a", ""]), "stop[1]", id="empty-stop"),
        pytest.param(ParseStart(state=CONTENT, stop=["a" * (MAX_STOP_CHARS + 1)]), "stop[0]", id="long-stop"),
        pytest.param(ParseStart(state=CONTENT, stop=["a"] * (MAX_STOPS + 1)), "stop", id="many-stops"),
    ],
)
def test_bad_options_name_the_field(start, field):
    with pytest.raises(InvalidRequest) as caught:
        options_from_proto(start)
    assert caught.value.field == field
