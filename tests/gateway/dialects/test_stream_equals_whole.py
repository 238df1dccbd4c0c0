"""Any answer, cut anywhere into deltas: on every dialect the stream adds up to what is answered at once."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.dialects.chat.answer import ChatStyle, ChunkWriter, whole_answer
from gateway.dialects.messages.answer import BlockWriter, whole_message
from gateway.dialects.responses.answer import ItemWriter, Resource, whole_response
from gateway.dialects.responses.output import ItemBuilder
from gateway.dialects.responses.request import parse_responses
from gateway.request.answer_model import AnswerEvent, CallEnd, Finish, Usage, assemble
from gateway.request.parsing import Delivered
from services.checkpoint.answer_form import Place
from services.tokenizer.parser import Parser
from services.tokenizer.parser_options import ParserOptions
from tests.gateway.dialects.message_streams import read_message_stream
from tests.gateway.dialects.response_streams import read_response_stream
from tests.gateway.streams import read_stream
from tests.services.tokenizer.answers import Notes
from tests.services.tokenizer.test_parser_properties import TOOLS, answers

OPTIONS = st.builds(
    ParserOptions,
    start=st.sampled_from([Place.REASONING, Place.CONTENT]),
    tools=st.sampled_from([TOOLS, TOOLS[:1], ()]),
    drop_tool_calls=st.booleans(),
)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def events_of(vocabulary, token_ids, options, cuts, *, truncated) -> list[AnswerEvent]:
    """The events of these tokens when they come in such portions."""
    parser, delivered = Parser(vocabulary, options, Notes()), Delivered(0)
    events: list[AnswerEvent] = []
    start = 0
    for cut in (*cuts, len(token_ids)):
        parser.feed(token_ids[start:cut])
        events += delivered.new(parser.take_deltas())
        start = cut
    parser.end(truncated=truncated)
    events += delivered.new(parser.take_deltas())
    reason = "length" if truncated else "tool_calls" if parser.num_complete_calls else "stop"
    return [*events, Finish(0, reason)]


def usage():
    return Usage(5, completion=[9], reasoning=[3])


STYLE = ChatStyle(
    "m",
    "f",
    show_reasoning=True,
    show_logprobs=False,
    show_prompt_logprobs=False,
    include_usage=True,
    continuous_usage=False,
    reasoning_fields="reasoning_content",
)


def chat(events):
    writer = ChunkWriter(STYLE, usage())
    return read_stream(writer.write(events) + writer.last())


def check_chat(events, choice):
    (whole,) = whole_answer(STYLE, [choice], usage())["choices"]
    streamed, message = chat(events), whole["message"]
    assert (streamed.text[0], streamed.thoughts[0]) == (message["content"], message["reasoning_content"])
    assert streamed.finish[0] == whole["finish_reason"]
    calls = [[call["id"], *call["function"].values()] for call in message.get("tool_calls", [])]
    # Of a call in which the answer ended, by its budget or by a stop token, pieces are out already.
    assert streamed.calls[0][: len(calls)] == calls
    assert len(streamed.calls[0]) - len(calls) == sum(isinstance(e, CallEnd) and not e.complete for e in events)


def check_message(events, choice):
    whole = whole_message("m", choice, usage(), show_thinking=True)
    streamed = read_message_stream(BlockWriter("m", usage(), show_thinking=True).write(events))
    texts = {kind: "".join(block.get(kind, "") for block in whole["content"]) for kind in ("thinking", "text")}
    assert (streamed.thoughts, streamed.text) == (texts["thinking"], texts["text"])
    assert streamed.message["stop_reason"] == whole["stop_reason"]
    called = [(i, block["name"]) for i, block in enumerate(streamed.blocks) if block["type"] == "tool_use"]
    calls = [(name, streamed.inputs[index]) for index, name in called]
    assert calls[: len(choice.tool_calls)] == [(call.name, call.arguments) for call in choice.tool_calls]


def check_response(events, events_at_once):
    asked = parse_responses({"model": "m", "input": "Hi"})
    whole = whole_response(Resource(asked), ItemBuilder({}), events_at_once, usage())
    writer = ItemWriter(Resource(asked), ItemBuilder({}), usage())
    streamed = read_response_stream(writer.write(events) + writer.last()).response
    assert streamed["status"] == whole["status"]
    assert [without_id(item) for item in streamed["output"]] == [without_id(item) for item in whole["output"]]


def without_id(item):
    return {key: value for key, value in item.items() if key != "id"}


def test_every_dialect(vocabulary):
    @FEW
    @given(answers(vocabulary), OPTIONS, st.booleans(), st.data())
    def check(token_ids, options, truncated, data):
        at_once = events_of(vocabulary, token_ids, options, (), truncated=truncated)
        (choice,) = assemble(at_once, 1)
        drawn = sorted(data.draw(st.lists(st.integers(0, len(token_ids)), max_size=6)))
        for cuts in (range(1, len(token_ids)), drawn):
            events = events_of(vocabulary, token_ids, options, cuts, truncated=truncated)
            assert assemble(events, 1) == [choice]
            check_chat(events, choice)
            check_message(events, choice)
            check_response(events, at_once)

    check()
