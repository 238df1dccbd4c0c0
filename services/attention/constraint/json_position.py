"""Where in a JSON text one is: open containers, and the string or number in hand.

Meant for texts that a grammar has checked: what is no JSON is not noticed.
"""

from typing import NamedTuple

QUOTE, BACKSLASH, OPEN_OBJECT = b'"\\{'
CLOSERS = b"}]"


class JsonPosition(NamedTuple):
    """A place in a JSON text, as a value.

    outline      the text since the start of the outline, with finished values as `v` and characters of the value in
                 hand as `x`; keys stay. Two places with one outline go on alike, whatever the values before.
    containers   per open container, `{` or `[`, where in the outline it began; -1: before the outline
    in_string    between quotes
    is_escaped   after a backslash in a string
    is_key       the string is a key, or the next string is one
    num_digits   characters of the number or word in hand
    """

    outline: bytes = b""
    containers: tuple[tuple[int, int], ...] = ()
    in_string: bool = False
    is_escaped: bool = False
    is_key: bool = False
    num_digits: int = 0

    def fresh(self) -> "JsonPosition":
        """The same place with an outline that starts here."""
        return self._replace(outline=b"", containers=tuple((kind, -1) for kind, _ in self.containers))

    def after(self, text: bytes) -> "JsonPosition":
        """The place after more text."""
        position = self
        for byte in text:
            position = position._after_byte(byte)
        return position

    def _after_byte(self, byte: int) -> "JsonPosition":
        if self.in_string:
            return self._in_string(byte)
        if byte in CLOSERS:
            return self._closed(byte)
        match byte:
            case 0x20:
                after = self
            case 0x22:  # a quote
                after = self._replace(outline=self.outline + b'"', in_string=True)
            case 0x7B | 0x5B:  # { [
                opened = (*self.containers, (byte, len(self.outline)))
                outline = self.outline + bytes([byte])
                after = self._replace(outline=outline, containers=opened, is_key=byte == OPEN_OBJECT)
            case 0x2C:  # ,
                in_object = bool(self.containers) and self.containers[-1][0] == OPEN_OBJECT
                after = self._replace(outline=self._finished() + b",", is_key=in_object, num_digits=0)
            case 0x3A:  # :
                after = self._replace(outline=self.outline + b":", is_key=False)
            case _:
                after = self._replace(outline=self.outline + b"x", num_digits=self.num_digits + 1)
        return after

    def _in_string(self, byte: int) -> "JsonPosition":
        if self.is_escaped:
            return self._replace(outline=self.outline + b"x", is_escaped=False)
        if byte == BACKSLASH:
            return self._replace(outline=self.outline + b"\\", is_escaped=True)
        if byte != QUOTE:
            return self._replace(outline=self.outline + (bytes([byte]) if self.is_key else b"x"))
        if self.is_key:
            return self._replace(outline=self.outline + b'"', in_string=False)
        begun = self.outline.rfind(b'"')
        return self._replace(outline=self.outline[: max(begun, 0)] + b"v", in_string=False)

    def _closed(self, byte: int) -> "JsonPosition":
        *outer, (_, begun) = self.containers or ((byte, -1),)
        outline = self.outline + bytes([byte]) if begun < 0 else self.outline[:begun] + b"v"
        return self._replace(outline=outline, containers=tuple(outer), is_key=False, num_digits=0)

    def _finished(self) -> bytes:
        """The outline with the number or word in hand as a value."""
        return self.outline[: len(self.outline) - self.num_digits] + b"v" if self.num_digits else self.outline
