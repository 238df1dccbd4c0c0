"""Constrained generations in the real engine: with random weights, beside others, moved, and short of blocks."""

import json

import jsonschema
import pytest

from protos import attention_pb2 as pb
from tests.services.attention.engine.conftest import ENDS

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1},
        "inner": {"$ref": "#"},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
JSON = pb.Constraint(json_schema=json.dumps(SCHEMA), starts_in_reasoning=True)
CALL = pb.Constraint(
    tools=[pb.CallableTool(name="look_up", parameters_json=json.dumps(SCHEMA))], tool_use=pb.TOOL_USE_REQUIRED
)


def text_of(table, token_ids):
    names = {token_id: text for text, token_id in table.special_ids.items()}
    return b"".join(table.ordinary[i] if i < len(table.ordinary) else names[i].encode() for i in token_ids).decode(
        errors="replace"
    )


def check_json(table, token_ids):
    text = text_of(table, token_ids)
    assert any(text.endswith(end) for end in ENDS)
    body = text.rpartition("</think>")[2]
    for end in ENDS:
        body = body.removesuffix(end)
    jsonschema.validate(json.loads(body), SCHEMA)


def check_call(table, token_ids):
    text = text_of(table, token_ids)
    head = "<|tool_calls_section_begin|><|tool_call_begin|>functions.look_up:0<|tool_call_argument_begin|>"
    assert text.startswith(head)
    jsonschema.validate(json.loads(text.removeprefix(head).partition("<|tool_call_end|>")[0]), SCHEMA)
    assert any(text.endswith("<|tool_calls_section_end|>" + end) for end in ENDS)


@pytest.mark.parametrize("budget", [60, 90, 150])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.0}, {"top_p": 0.5, "top_k": 7}, {"min_new_tokens": 50}])
@pytest.mark.slow
async def test_random_weights_answer_validly(start_rig, ask, table, budget, sampling):
    rig = await start_rig()
    check_json(table, await (await ask(rig, JSON, budget, **sampling)).tokens())
    check_call(table, await (await ask(rig, CALL, budget, **sampling)).tokens())


async def test_a_complete_answer_ends_before_the_least_length(start_rig, ask, table):
    """Nothing but a stop token may follow; it comes once."""
    rig = await start_rig()
    request = await ask(rig, pb.Constraint(json_schema='{"enum": ["red"]}'), 60, min_new_tokens=50)
    assert text_of(table, await request.tokens()).removesuffix(ENDS[0]).removesuffix(ENDS[1]) == '"red"'


async def test_constrained_and_free_rows_do_not_meet(start_rig, ask, reference, table):
    rig = await start_rig()
    alone = [await (await ask(rig, wanted, 80, seed=seed)).tokens() for wanted in (JSON, CALL) for seed in (1, 2)]
    free = rig.submit(list(range(30)), 40)
    together = [await ask(rig, wanted, 80, seed=seed) for wanted in (JSON, CALL) for seed in (1, 2)]
    assert await free.tokens() == reference.generate(list(range(30)), 40)
    assert [await request.tokens() for request in together] == alone


@pytest.mark.parametrize("wanted", [JSON, CALL], ids=["json", "call"])
@pytest.mark.slow
async def test_the_same_tokens_after_a_move_at_every_token(start_rig, ask, table, wanted):
    rig, other = await start_rig(), await start_rig()
    tokens = await (await ask(rig, wanted, 70)).tokens()
    for num_before in range(1, len(tokens)):
        moved = await ask(other, wanted, 70, generated=tokens[:num_before])
        assert await moved.tokens() == tokens[num_before:]


async def test_short_of_blocks_it_comes_back(start_rig, ask, table):
    roomy, narrow = await start_rig(), await start_rig(num_blocks=12)
    expected = [await (await ask(roomy, JSON, 80, seed=seed)).tokens() for seed in range(3)]
    requests = [await ask(narrow, JSON, 80, seed=seed) for seed in range(3)]
    assert [await request.tokens() for request in requests] == expected
