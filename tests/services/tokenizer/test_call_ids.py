"""Ids of calls in a conversation."""

import time

import pytest

from services.tokenizer.call_ids import canonical_ids, split_canonical
from services.tokenizer.messages import Call, Message


def conversation(*turns):
    """A list is an assistant message with calls "id name"; a string is a tool message that answers this id."""
    return [
        Message("tool", tool_call_id=turn)
        if isinstance(turn, str)
        else Message("assistant", calls=tuple(Call(*call.split(" "), "{}") for call in turn))
        for turn in turns
    ]


def renamed(*turns):
    return [
        message.tool_call_id if message.role == "tool" else [f"{call.id} {call.name}" for call in message.calls]
        for message in canonical_ids(conversation(*turns))
    ]


@pytest.mark.parametrize(
    "turns, expected",
    [
        pytest.param([], [], id="empty"),
        pytest.param(
            [["functions.f:0 f"], "functions.f:0", ["functions.g:007 g"], "functions.g:007"],
            [["functions.f:0 f"], "functions.f:0", ["functions.g:007 g"], "functions.g:007"],
            id="canonical-ids-stay",
        ),
        pytest.param(
            [["call_a f", "call_b g"], "call_b", "call_a", ["toolu_c f"], "toolu_c"],
            [
                ["functions.f:0 f", "functions.g:1 g"],
                "functions.g:1",
                "functions.f:0",
                ["functions.f:2 f"],
                "functions.f:2",
            ],
            id="foreign-ids-are-numbered-over-the-conversation",
        ),
        pytest.param(
            [["functions_Bash_0 Bash"], "functions_Bash_0"],
            [["functions.Bash:0 Bash"], "functions.Bash:0"],
            id="altered-by-a-client",
        ),
        pytest.param([["functions.g:0 f"]], [["functions.f:0 f"]], id="canonical-for-another-function"),
        pytest.param(
            [["functions.f:1 f", "x g"]], [["functions.f:1 f", "functions.g:2 g"]], id="taken-numbers-are-skipped"
        ),
        pytest.param(
            [["x f"], "x", ["x f"], "x"],
            [["functions.f:0 f"], "functions.f:0", ["functions.f:1 f"], "functions.f:1"],
            id="ids-counted-anew-in-every-turn",
        ),
        pytest.param(
            [["x f", "x f", "x f"], "x", "x", "x"],
            [["functions.f:0 f", "functions.f:1 f", "functions.f:2 f"], *(f"functions.f:{i}" for i in range(3))],
            id="the-same-id-three-times-in-a-turn",
        ),
        pytest.param(
            [["x f"], ["x f"], "x", "x", "x"],
            [["functions.f:0 f"], ["functions.f:1 f"], "functions.f:1", "functions.f:0", "functions.f:1"],
            id="the-latest-turn-is-answered-first",
        ),
        pytest.param(
            [["a f", "b g"], "lost", "b", "lost-too"],
            [["functions.f:0 f", "functions.g:1 g"], "functions.f:0", "functions.g:1", "lost-too"],
            id="unknown-ids-answer-by-order",
        ),
        pytest.param(["alone"], ["alone"], id="an-answer-to-nothing"),
        pytest.param(
            [["a f"], "functions.f:0"], [["functions.f:0 f"], "functions.f:0"], id="the-answer-is-canonical-already"
        ),
        pytest.param([["functions.a.b:3 a.b"]], [["functions.a.b:3 a.b"]], id="name-with-a-dot"),
        pytest.param([["functions.f:१ f"]], [["functions.f:0 f"]], id="digits-of-another-script"),
    ],
)
def test_ids_of_a_conversation(turns, expected):
    assert renamed(*turns) == expected


def test_foreign_and_canonical_histories_are_the_same():
    foreign = renamed(["call_1 f", "call_2 g"], "call_1", "call_2", ["call_3 f"], "call_3")
    own = renamed(
        ["functions.f:0 f", "functions.g:1 g"], "functions.f:0", "functions.g:1", ["functions.f:2 f"], "functions.f:2"
    )
    assert foreign == own


def test_later_turns_do_not_change_earlier_ids():
    turns = [["x f"], "x", ["functions.g:0 g"], "functions.g:0", ["y f"], "y"]
    for length in range(len(turns)):
        assert renamed(*turns[:length]) == renamed(*turns)[:length]


@pytest.mark.parametrize(
    "call_id", ["", "functions.:1", "functions.f:", "functions.f", "f:1", "functions.f:1 ", "functions.f:-1"]
)
def test_other_forms_are_not_canonical(call_id):
    assert split_canonical(call_id) is None


def test_many_repeated_ids_are_matched_quickly():
    turns = 20_000
    ids = renamed(["x f"] * turns, *["x"] * turns)
    assert ids[1:] == [f"functions.f:{i}" for i in range(turns)]


@pytest.mark.slow
def test_a_long_run_of_taken_numbers_is_passed_once():
    count = 40_000
    taken = [f"functions.f:{number} f" for number in range(count, 2 * count)]
    started = time.perf_counter()
    [_, foreign] = renamed(taken, ["x f"] * count)
    assert time.perf_counter() - started < 10
    assert foreign == [f"functions.f:{number} f" for number in range(2 * count, 3 * count)]
