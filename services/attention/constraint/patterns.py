"""Regular expressions as trees, in the syntax of Rust's regex crate, which llguidance reads too.

Only texts that llguidance accepts are looked for here, and every text that is found is checked by llguidance: an
expression that this parser does not know costs a search, not a wrong answer.
"""

from dataclasses import dataclass

from services.attention.constraint.char_ranges import (
    ANY,
    DIGITS,
    NEWLINE,
    POSIX,
    SPACES,
    Ranges,
    category,
    chars,
    inverse,
    union,
    words,
)

MAX_NESTING = 100
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


class UnknownSyntaxError(Exception):
    """The expression has a part that this parser does not know."""


@dataclass(frozen=True)
class Chars:
    """One character out of these."""

    ranges: Ranges


@dataclass(frozen=True)
class Chain:
    """One part after the other."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True)
class Either:
    """One of the parts."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True)
class Repeat:
    """A part again and again; `most` None: without end."""

    part: "Node"
    least: int
    most: int | None


@dataclass(frozen=True)
class Anchor:
    """The start or the end of the text."""

    at_start: bool


Node = Chars | Chain | Either | Repeat | Anchor


def parse_pattern(pattern: str) -> Node:
    """The tree of an expression; UnknownSyntaxError if this parser does not know a part of it."""
    parser = _Parser(pattern)
    node = parser.either()
    if parser.rest:
        raise UnknownSyntaxError(parser.rest[:10])
    return node


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._depth = 0
        self._flags = frozenset[str]()

    @property
    def rest(self) -> str:
        return self._pattern[self._at :]

    def _take(self, text: str) -> bool:
        if not self._pattern.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _next(self) -> str:
        if self._at >= len(self._pattern):
            raise UnknownSyntaxError("the end")
        self._at += 1
        return self._pattern[self._at - 1]

    def _until(self, end: str) -> str:
        text, found, _ = self.rest.partition(end)
        if not found:
            raise UnknownSyntaxError(end)
        self._at += len(text) + len(end)
        return text

    def either(self) -> Node:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise UnknownSyntaxError("nesting")
        branches = [self._sequence()]
        while self._take("|"):
            branches.append(self._sequence())
        self._depth -= 1
        return branches[0] if len(branches) == 1 else Either(tuple(branches))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self.rest[:1] not in ("", "|", ")"):
            part = self._atom()
            if part is not None:
                parts.append(self._repeated(part))
        return parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def _repeated(self, part: Node) -> Node:
        while True:
            if self._take("*"):
                part = Repeat(part, 0, None)
            elif self._take("+"):
                part = Repeat(part, 1, None)
            elif self._take("?"):
                part = Repeat(part, 0, 1)
            elif self._take("{"):
                least, comma, most = self._until("}").replace(" ", "").partition(",")
                if not least.isdecimal() or not (most.isdecimal() or not most):
                    raise UnknownSyntaxError("{")
                part = Repeat(part, int(least), int(most) if most else None if comma else int(least))
            else:
                return part
            self._take("?")  # lazy: the same texts

    def _atom(self) -> Node | None:
        if self._take("("):
            return self._group()
        if self._take("["):
            return self._chars(self._set())
        if self.rest[:1] in ("^", "$") or self.rest[:2] in ("\\A", "\\z"):
            return self._anchor()
        char = self._next()
        if char == ".":
            return Chars(ANY if "s" in self._flags else inverse(NEWLINE))
        return self._chars(self._escape() if char == "\\" else chars(char))

    def _anchor(self) -> Anchor:
        if "m" in self._flags:
            raise UnknownSyntaxError("(?m)")
        self._take("\\")
        return Anchor(at_start=self._next() in "^A")

    def _chars(self, ranges: Ranges) -> Chars:
        if "i" not in self._flags:
            return Chars(ranges)
        letters = [chr(code) for low, high in ranges for code in range(low, min(high, 0x17F) + 1)]
        both = {one for char in letters for one in (char.lower(), char.upper()) if len(one) == 1}
        return Chars(union(ranges, chars("".join(both))))

    def _group(self) -> Node | None:
        outer = self._flags
        if self._take("?"):
            if self._take("P<") or (self.rest[:1] == "<" and self.rest[1:2] not in ("=", "!") and self._take("<")):
                self._until(">")
            else:
                on, _, off = self._flag_text().partition("-")
                if set(on) - set("isU") or set(off) - set("ismxuU"):
                    raise UnknownSyntaxError(f"(?{on}-{off}")
                self._flags = (self._flags | set(on)) - set(off)
                if self._next() == ")":
                    return None  # for the rest of the group around
        node = self.either()
        self._flags = outer
        if not self._take(")"):
            raise UnknownSyntaxError(")")
        return node

    def _flag_text(self) -> str:
        text = ""
        while self.rest[:1].isalpha() or self.rest[:1] == "-":
            text += self._next()
        if self.rest[:1] not in (":", ")"):
            raise UnknownSyntaxError(f"(?{self.rest[:1]}")
        return text

    def _escape(self) -> Ranges:
        char = self._next()
        match char:
            case "d" | "D":
                found = DIGITS
            case "s" | "S":
                found = SPACES
            case "w" | "W":
                found = words()
            case "p" | "P":
                found = self._property(self._until("}") if self._take("{") else self._next())
            case "x" | "u" | "U":
                size = HEX_DIGITS[char]
                digits = self._until("}") if self._take("{") else "".join(self._next() for _ in range(size))
                try:
                    found = chars(chr(int(digits, 16)))
                except ValueError:
                    raise UnknownSyntaxError(f"\\{char}{digits}") from None
            case _ if char in ESCAPED:
                found = chars(ESCAPED[char])
            case _ if char.isalnum():
                raise UnknownSyntaxError(f"\\{char}")
            case _:
                found = chars(char)
        return inverse(found) if char in "DSWP" else found

    def _property(self, name: str) -> Ranges:
        try:
            return category(name)
        except KeyError:
            raise UnknownSyntaxError(f"\\p{{{name}}}") from None

    def _set(self) -> Ranges:
        """The characters of a set whose bracket is open."""
        is_inverse = self._take("^")
        found: list[Ranges] = []
        is_first = True
        while is_first or not self._take("]"):
            if self._take("&&"):
                rest = self._set_rest()
                found = [inverse(union(inverse(union(*found)), inverse(rest)))]
                break
            if self._take("--"):
                rest = self._set_rest()
                found = [inverse(union(inverse(union(*found)), rest))]
                break
            found.append(self._set_item())
            is_first = False
        return inverse(union(*found)) if is_inverse else union(*found)

    def _set_rest(self) -> Ranges:
        """What stands behind `&&` or `--`, to the closing bracket."""
        start = self._at
        rest = self._set()
        if self._pattern[start : start + 1] == "^":
            raise UnknownSyntaxError("&&^")
        return rest

    def _set_item(self) -> Ranges:
        if self._take("[:"):
            name = self._until(":]")
            found = POSIX.get(name.removeprefix("^"))
            if found is None:
                raise UnknownSyntaxError(f"[:{name}:]")
            return inverse(found) if name.startswith("^") else found
        if self._take("["):
            return self._set()
        low = self._escape() if self._take("\\") else chars(self._next())
        is_range = self.rest[:1] == "-" and self.rest[1:2] not in ("]", "-", "")
        if not is_range or len(low) != 1 or low[0][0] != low[0][1]:
            return low
        self._take("-")
        high = self._escape() if self._take("\\") else chars(self._next())
        if len(high) != 1 or high[0][0] < low[0][0]:
            raise UnknownSyntaxError("a range")
        return ((low[0][0], high[0][0]),)


def anywhere(node: Node) -> Node:
    """A text that holds a match somewhere, as `pattern` in JSON schemas asks for."""
    free = Repeat(Chars(ANY), 0, None)
    return Chain((free, node, free))
