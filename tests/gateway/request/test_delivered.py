"""What a parser that starts again on another replica repeats, and what of it is new."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.request.answer_model import CallArguments, CallEnd, CallStart, Content, Reasoning
from gateway.request.parsing import Delivered
from protos.tokenizer_pb2 import Delta, ToolCallArguments, ToolCallEnd, ToolCallStart


def deltas_of(answer, cuts):
    """The deltas of an answer [(channel, text)], its characters grouped as the cuts say."""
    cuts = iter(cuts)
    for index, (channel, text) in enumerate(answer):
        start = 0
        while start < len(text):
            piece = text[start : start + next(cuts, 1)]
            start += len(piece)
            if channel == "arguments":
                yield Delta(tool_call_arguments=ToolCallArguments(index=index, text=piece))
            else:
                yield Delta(**{channel: piece})
        if channel == "arguments":
            yield Delta(tool_call_end=ToolCallEnd(index=index, complete=True))


def opened(answer, deltas):
    """The same with a start before the first piece of each call."""
    begun = set()
    for delta in deltas:
        index = delta.tool_call_arguments.index if delta.HasField("tool_call_arguments") else None
        if index is not None and index not in begun:
            begun.add(index)
            yield Delta(tool_call_start=ToolCallStart(index=index, id=f"functions.f:{index}", name="f"))
        yield delta


def event_of(delta):
    """The whole delta as an event."""
    match delta.WhichOneof("piece"):
        case "reasoning":
            return Reasoning(0, delta.reasoning)
        case "content":
            return Content(0, delta.content)
        case "tool_call_start":
            return CallStart(0, delta.tool_call_start.index, delta.tool_call_start.id, delta.tool_call_start.name)
        case "tool_call_arguments":
            return CallArguments(0, delta.tool_call_arguments.index, delta.tool_call_arguments.text)
        case _:
            return CallEnd(0, delta.tool_call_end.index, delta.tool_call_end.complete)


def together(events):
    """Everything in order, pieces of one channel joined."""
    whole = []
    for event in events:
        key = type(event), getattr(event, "index", 0)
        text = getattr(event, "text", "")
        if whole and whole[-1][0] == key and text:
            whole[-1] = (key, whole[-1][1] + text)
        else:
            whole.append((key, text))
    return whole


ANSWERS = st.tuples(
    st.text(min_size=1, max_size=12),
    st.lists(st.tuples(st.sampled_from(["content", "arguments"]), st.text(min_size=1, max_size=8)), max_size=4),
).map(lambda parts: [("reasoning", parts[0]), *parts[1]])
CUTS = st.lists(st.integers(min_value=1, max_value=5), max_size=40)
ATTEMPTS = st.tuples(CUTS, st.integers(min_value=0, max_value=30))  # how it was cut, deltas until it was lost


@given(answer=ANSWERS, attempts=st.lists(ATTEMPTS, max_size=4), last=CUTS)
def test_nothing_is_repeated_and_nothing_is_missing(answer, attempts, last):
    expected = together(map(event_of, opened(answer, deltas_of(answer, []))))
    delivered = Delivered(0)
    given_out = []
    for cuts, num_deltas in attempts:
        delivered.restart()
        given_out += delivered.new(list(opened(answer, deltas_of(answer, cuts)))[:num_deltas])
    delivered.restart()
    given_out += delivered.new(opened(answer, deltas_of(answer, last)))
    assert together(given_out) == expected


def test_pieces_are_never_empty():
    delivered = Delivered(0)
    assert delivered.new([Delta(content="ab"), Delta(content="")]) == [Content(0, "ab")]
    delivered.restart()
    assert delivered.new([Delta(content="a"), Delta(content="bc")]) == [Content(0, "c")]
