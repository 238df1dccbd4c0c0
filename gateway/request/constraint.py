"""From the internal request to the form that the engines hold an answer to."""

from collections.abc import Sequence

import orjson

from gateway.request.chat_model import FormedAnswer, JsonAnswer, Request, Tool
from protos import attention_pb2 as pb
from protos.tokenizer_pb2 import REASONING, RenderResponse


def constraint_of(request: Request, prompt: RenderResponse) -> pb.Constraint | None:
    """Return what an engine enforces for one prompt's choices; None for a raw prompt without a form.

    Declared tools may be called only with arguments after their schema, except where a tool says `strict: false`. Of
    the text beside calls only `json_answer` is enforced, and never what is thought. Without tools, or where they may
    not be called, no call begins.
    """
    if request.conversation.is_raw and request.json_answer is None:
        return None
    constraint = pb.Constraint(
        starts_in_reasoning=prompt.parser_state == REASONING,
        max_tool_calls=request.output.max_tool_calls,
        first_call_index=prompt.num_history_calls,
        budget_field=request.sampling.budget_field,
    )
    if request.json_answer is not None:
        _form(constraint, request.json_answer)
    if request.conversation.tools and not request.output.drop_tool_calls:
        _allow(constraint, request.conversation.tools, request)
    return constraint


def _form(constraint: pb.Constraint, answer: JsonAnswer | FormedAnswer) -> None:
    constraint.content_field = answer.field
    match answer:
        case JsonAnswer(schema_json=""):
            constraint.json_object = True
        case JsonAnswer(schema_json=schema):
            constraint.json_schema = schema
            constraint.loose = answer.loose
        case FormedAnswer("regex", (pattern,)):
            constraint.regex = pattern
        case FormedAnswer("grammar", (grammar,)):
            constraint.grammar = grammar
        case FormedAnswer("structural_tag", (tags,)):
            constraint.structural_tag = tags
        case _:
            constraint.choices.texts.extend(answer.texts)


def _allow(constraint: pb.Constraint, tools: Sequence[Tool], request: Request) -> None:
    forced = request.forced_call
    if forced is not None and forced.name:
        tools = [tool for tool in tools if tool.name == forced.name]
        constraint.max_tool_calls = 1
    constraint.tool_use = pb.TOOL_USE_AUTO if forced is None else pb.TOOL_USE_REQUIRED
    for tool in tools:
        constraint.tools.add(
            name=tool.name,
            parameters_json="" if tool.parameters is None else orjson.dumps(tool.parameters).decode(),
            loose=tool.is_loose,
        )
