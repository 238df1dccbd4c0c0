"""Places in a JSON text: the open containers, and the string or number in hand.

Meant for texts that a grammar checks: errors in the JSON are not noticed.
"""

import json
from typing import NamedTuple

QUOTE, BACKSLASH, OPEN_OBJECT = b'"\\{'


class Container(NamedTuple):
    """An open object with the names of its members so far, or an open array with the number of its items so far.

    The member or item in hand is among them.
    """

    is_object: bool
    names: tuple[str, ...] = ()
    num_items: int = 0


class JsonPlace(NamedTuple):
    """A place in a JSON text, as a value. Two places that are equal go on alike.

    containers  the open ones, outermost first
    hand        the bytes of the string, name, number or word that has begun; a string's quote is the first
    is_name     the string in hand is a member's name, or the next value must be one
    in_string   the string in hand is not closed
    is_escaped  after a backslash in a string
    is_whole    a value is complete: what follows is a comma, a closing bracket or the end
    after_name  a colon must follow
    after_comma a comma was the last
    """

    containers: tuple[Container, ...] = ()
    hand: bytes = b""
    is_name: bool = False
    in_string: bool = False
    is_escaped: bool = False
    is_whole: bool = False
    after_name: bool = False
    after_comma: bool = False

    @property
    def num_digits(self) -> int:
        """Characters of the number or word in hand."""
        return 0 if self.in_string else len(self.hand)

    def after(self, text: bytes) -> "JsonPlace":
        """The place after more text."""
        place = self
        at = 0
        while at < len(text):
            if place.in_string and not place.is_escaped:
                # Most of a text is inside of strings: all of it in one step.
                end = at
                while end < len(text) and text[end] not in b'"\\':
                    end += 1
                if end > at:
                    place = place._replace(hand=place.hand + text[at:end])
                    at = end
                    continue
            place = place._after_byte(text[at])
            at += 1
        return place

    def _after_byte(self, byte: int) -> "JsonPlace":
        if self.in_string:
            return self._after_in_string(byte)
        match byte:
            case 0x20:
                after = self
            case 0x22:  # a quote
                after = self._begin()._replace(hand=b'"', in_string=True)
            case 0x7B | 0x5B:  # { [
                begun = self._begin()
                container = Container(byte == OPEN_OBJECT)
                after = begun._replace(containers=(*begun.containers, container), is_name=container.is_object)
            case 0x7D | 0x5D:  # } ]
                after = JsonPlace(self.containers[:-1], is_whole=True)
            case 0x2C:  # ,
                after = JsonPlace(self.containers, is_name=self.containers[-1].is_object, after_comma=True)
            case 0x3A:  # :
                after = JsonPlace(self.containers)
            case _:
                begun = self if self.hand else self._begin()
                after = begun._replace(hand=begun.hand + bytes([byte]))
        return after

    def _begin(self) -> "JsonPlace":
        """A value or a name begins: an item of an array counts from here on."""
        if not self.containers or self.containers[-1].is_object:
            return self._replace(after_comma=False)
        *outer, last = self.containers
        return JsonPlace((*outer, last._replace(num_items=last.num_items + 1)))

    def _after_in_string(self, byte: int) -> "JsonPlace":
        longer = self._replace(hand=self.hand + bytes([byte]), is_escaped=byte == BACKSLASH and not self.is_escaped)
        if self.is_escaped or byte != QUOTE:
            return longer
        if not self.is_name:
            return JsonPlace(self.containers, is_whole=True)
        *outer, last = self.containers
        name = json.loads(longer.hand)
        return JsonPlace((*outer, last._replace(names=(*last.names, name))), after_name=True)

    @property
    def text_in_hand(self) -> str | None:
        """The characters of the string in hand; None in the middle of a character or of an escape."""
        try:
            return str(json.loads(self.hand + b'"'))
        except ValueError:
            return None
