"""Stop strings in text that comes in pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.tokenizer.stop_strings import StopStrings


def shown(pieces, stops, *, include=False):
    finder = StopStrings(stops, include=include)
    text = ""
    for piece in pieces:
        visible, stop = finder.add(piece)
        text += visible
        if stop is not None:
            return text, stop
    return text + finder.flush(), None


@pytest.mark.parametrize(
    "text, stops, expected",
    [
        pytest.param("", ["x"], ("", None), id="empty"),
        pytest.param("abc", [], ("abc", None), id="no-stops"),
        pytest.param("a\n\nb", ["\n\n"], ("a", "\n\n"), id="in-the-middle"),
        pytest.param("a\nb\n", ["\n\n"], ("a\nb\n", None), id="half-at-the-end-is-shown"),
        pytest.param("xabcx", ["abcx", "b"], ("xa", "b"), id="the-first-to-be-complete"),
        pytest.param("xabcx", ["bc", "abc"], ("x", "abc"), id="of-two-the-one-that-began-first"),
        pytest.param("aaab", ["aab"], ("a", "aab"), id="overlapping-begin"),
        pytest.param("中文。", ["。"], ("中文", "。"), id="beyond-ascii"),
    ],
)
def test_stops(text, stops, expected):
    assert shown([text], stops) == expected
    assert shown(list(text), stops) == expected


def test_the_stop_string_may_stay():
    assert shown(["a ST", "OP b"], ["STOP"], include=True) == ("a STOP", "STOP")


def test_a_possible_beginning_is_held_back():
    finder = StopStrings(["END"])
    assert finder.add("the EN") == ("the ", None)
    assert finder.add("V") == ("ENV", None)


@given(st.lists(st.text("ab", max_size=4)), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.booleans())
def test_pieces_do_not_matter(pieces, stops, include):
    text, stop = shown(pieces, stops, include=include)
    assert (text, stop) == shown(["".join(pieces)], stops, include=include)
    if not include:
        assert not any(s in text for s in stops)
