"""How one answer is to be parsed."""

from collections.abc import Sequence
from dataclasses import dataclass

from protos import tokenizer_pb2
from services.checkpoint.answer_form import Place
from services.tokenizer.invalid import invalid
from services.tokenizer.tools import DeclaredTool

# The gateway allows fewer and shorter ones; these bounds keep the search for them cheap.
MAX_STOPS = 64
MAX_STOP_CHARS = 4096


@dataclass(frozen=True)
class ParserOptions:
    """Where the answer starts, what its calls may name, and what ends or changes its text.

    drop_tool_calls  no call is returned; also so when there are no tools
    keep_special     raw only: special tokens appear as their text
    max_tool_calls   further calls are dropped; 0: no limit
    name_content     it is noted which tokens became content
    """

    start: Place
    tools: Sequence[DeclaredTool] = ()
    num_history_calls: int = 0
    history_call_ids: Sequence[str] = ()
    drop_tool_calls: bool = False
    stop: Sequence[str] = ()
    include_stop: bool = False
    keep_special: bool = False
    max_tool_calls: int = 0
    name_content: bool = False


def options_from_proto(start: tokenizer_pb2.ParseStart) -> ParserOptions:
    """Return the options. Raises InvalidRequest that names the field."""
    if len(start.stop) > MAX_STOPS:
        raise invalid("stop", f"{len(start.stop)} stop strings, at most {MAX_STOPS}")
    for index, stop in enumerate(start.stop):
        if not 0 < len(stop) <= MAX_STOP_CHARS:
            raise invalid(f"stop[{index}]", f"a stop string has 1 to {MAX_STOP_CHARS} characters")
    return ParserOptions(
        start=Place.RAW if start.raw else _place(start.state),
        tools=[DeclaredTool(tool.name, frozenset(tool.properties)) for tool in start.tools],
        num_history_calls=start.num_history_calls,
        history_call_ids=start.history_call_ids,
        drop_tool_calls=start.drop_tool_calls,
        stop=start.stop,
        include_stop=start.include_stop,
        keep_special=start.keep_special,
        max_tool_calls=start.max_tool_calls,
        name_content=start.name_content,
    )


def _place(state: tokenizer_pb2.ParserState.ValueType) -> Place:
    match state:
        case tokenizer_pb2.REASONING:
            return Place.REASONING
        case tokenizer_pb2.CONTENT:
            return Place.CONTENT
    raise invalid("state", "the parser needs to know where the answer starts")
