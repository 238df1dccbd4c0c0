"""Arguments of a call, in pieces."""

import pytest

from services.tokenizer.arguments import ArgumentText, ClosedArguments

DIGITS = '{"a":' + "9" * 5000 + "}"

# The text, what is handed out before its end, and what in all.
ROWS = [
    pytest.param("", "", "{}", True, None, id="empty"),
    pytest.param(" \n\t", "", "{}", True, None, id="only-white-space"),
    pytest.param('{"a": 1}', '{"a": 1}', '{"a": 1}', True, ["a"], id="object"),
    pytest.param(' {"a":\n 1} \n', '{"a":\n 1}', '{"a":\n 1}', True, ["a"], id="white-space-around"),
    pytest.param('{"a": ', '{"a":', '{"a":', False, None, id="cut"),
    pytest.param('{"a": NaN}', '{"a": NaN}', '{"a": NaN}', False, None, id="nan"),
    pytest.param('{"a": 1}}', '{"a": 1}}', '{"a": 1}}', False, None, id="one-brace-too-many"),
    pytest.param("[1]", "[1]", "[1]", True, None, id="list"),
    pytest.param(DIGITS, DIGITS, DIGITS, True, ["a"], id="digits"),
    pytest.param("[" * 50_000, "[" * 50_000, "[" * 50_000, False, None, id="deep"),
    pytest.param('"{\\"a\\": 1}"', "", '{"a": 1}', True, ["a"], id="doubly-encoded"),
    pytest.param('" {\\"a\\": 1}\\n" ', "", '{"a": 1}', True, ["a"], id="doubly-encoded-white-space"),
    pytest.param('"text"', "", '"text"', True, None, id="string"),
    pytest.param('"[1]"', "", '"[1]"', True, None, id="string-with-a-list"),
    pytest.param('"{\\"a\\"', "", '"{\\"a\\"', False, None, id="string-cut"),
    pytest.param('"{\\"a\\": \\"\\ud800\\"}"', "", '"{\\"a\\": \\"\\ud800\\"}"', True, None, id="half-a-pair"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 10**6])
@pytest.mark.parametrize("text, streamed, whole, is_valid, keys", ROWS)
def test_arguments(text, streamed, whole, is_valid, keys, size):
    arguments = ArgumentText(hold=False)
    ready = "".join(arguments.add(text[i : i + size]) for i in range(0, len(text), size))
    closed = arguments.close()
    assert ready == streamed
    assert ready + closed.rest == whole
    assert (closed.is_valid, closed.keys) == (is_valid, keys if keys is None or streamed else closed.keys)


def test_held_arguments_come_at_the_end():
    arguments = ArgumentText(hold=True)
    assert arguments.add(' {"a"') == ""
    assert arguments.add(": 1} ") == ""
    assert arguments.close() == ClosedArguments('{"a": 1}', is_valid=True, keys=["a"])


def test_endless_white_space_is_read_quickly():
    arguments = ArgumentText(hold=False)
    assert arguments.add('{"a": 1') == '{"a": 1'
    for _ in range(200_000):
        assert arguments.add("\n") == ""
    assert arguments.add("}") == "\n" * 200_000 + "}"
