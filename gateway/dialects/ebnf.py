"""Grammars in EBNF, as llama.cpp (GBNF), XGrammar and SGLang write them, in the Lark that the engines read.

    root ::= "a" item+ | [0-9]{2,3}   # a comment

Every rule stays a rule of the grammar and every character class a token of one character, so the language is the same:
nothing is decided about longer tokens that the grammar does not say.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from services.runtime.errors import InvalidRequest

ROOT = "root"
MAX_CHARS = 100_000
MAX_DEPTH = 100

_TOKEN = re.compile(
    r"""
    (?P<skip>[ \t\r]+|\#[^\n]*)
    |(?P<line>\n)
    |(?P<name>[A-Za-z_][A-Za-z0-9_-]*)
    |(?P<define>::=)
    |(?P<text>"(?:[^"\\\n]|\\.)*")
    |(?P<chars>\[(?:[^\]\\\n]|\\.)*\])
    |(?P<repeat>[*+?]|\{[ ]*\d+[ ]*(?:,[ ]*\d*[ ]*)?\})
    |(?P<sign>[|().])
    """,
    re.VERBOSE,
)
# Escapes that JSON strings or Lark's expressions would read otherwise.
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
_CODE = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


def lark_of_ebnf(grammar: str, field: str) -> str:
    """Return the grammar in Lark. InvalidRequest, which names the field and the place, for what is no EBNF."""
    if len(grammar) > MAX_CHARS:
        raise InvalidRequest(f"{field}: more than {MAX_CHARS} characters", field=field)
    return _Translator(grammar, field).translate()


class _Translator:
    def __init__(self, grammar: str, field: str) -> None:
        self._grammar = grammar
        self._field = field
        self._tokens = list(self._read())
        self._at = 0
        self._depth = 0
        self._used: dict[str, int] = {}  # names of rules, by where they are used first

    def translate(self) -> str:
        rules: dict[str, str] = {}
        self._skip_lines()
        while self._at < len(self._tokens):
            name = self._take("name", "a rule").text
            self._take("define", "::= after the name of a rule")
            if name in rules:
                raise self._error(f"the rule {name:.60} is there twice")
            rules[name] = self._alternatives(in_group=False)
            self._skip_lines()
        if ROOT not in rules:
            raise self._error(f"there is no rule {ROOT}")
        for name, at in self._used.items():
            if name not in rules:
                raise self._error(f"there is no rule {name:.60}", at)
        lines = [f"start: {_rule_name(ROOT)}", *(f"{_rule_name(name)}: {rules[name]}" for name in rules)]
        return "\n".join(lines) + "\n"

    def _read(self) -> Iterator[_Token]:
        at = 0
        while at < len(self._grammar):
            match = _TOKEN.match(self._grammar, at)
            if match is None:
                raise self._error(f"{self._grammar[at]!r} means nothing here", at)
            assert match.lastgroup is not None
            if match.lastgroup != "skip":
                yield _Token(match.lastgroup, match.group(), at)
            at = match.end()

    def _alternatives(self, *, in_group: bool) -> str:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"groups are nested deeper than {MAX_DEPTH}")
        alternatives = [self._sequence(in_group=in_group)]
        while self._next("sign", "|", across_lines=True):
            self._skip_lines()
            alternatives.append(self._sequence(in_group=in_group))
        self._depth -= 1
        return " | ".join(alternatives)

    def _sequence(self, *, in_group: bool) -> str:
        parts: list[str] = []
        while True:
            if in_group:
                self._skip_lines()
            part = self._part()
            if part is None:
                return " ".join(parts) or '""'
            repeat = self._next("repeat")
            parts.append(part + _lark_repeat(repeat.text) if repeat else part)

    def _part(self) -> str | None:
        """Return the next literal, class, name or group; None where a sequence ends."""
        token = self._tokens[self._at] if self._at < len(self._tokens) else None
        if token is None or self._begins_rule():
            return None
        match token.kind, token.text:
            case "name", name:
                self._used.setdefault(name, token.at)
                part = _rule_name(name)
            case "text", text:
                part = _lark_text(self._unescape(text[1:-1], token.at))
            case "chars", chars:
                part = self._lark_class(chars[1:-1], token.at)
            case "sign", ".":
                part = r"/(?s:.)/"
            case "sign", "(":
                self._at += 1
                inner = self._alternatives(in_group=True)
                self._skip_lines()
                self._take("sign", "a closing parenthesis", ")")
                return f"({inner})"
            case _:
                return None
        self._at += 1
        return part

    def _lark_class(self, chars: str, at: int) -> str:
        negated = chars.startswith("^")
        members = chars[1:] if negated else chars
        if not members:
            raise self._error("a class without characters", at)
        pieces: list[str] = []
        for piece in re.findall(r"\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\U[0-9A-Fa-f]{8}|\\.|.", members, re.DOTALL):
            # A hyphen that was not escaped makes a range, or stands for itself at an end; so it does in Lark.
            pieces.append("-" if piece == "-" else _in_class(self._unescape(piece, at)))
        return f"/[{'^' if negated else ''}{''.join(pieces)}]/"

    def _unescape(self, text: str, at: int) -> str:
        def replaced(match: re.Match[str]) -> str:
            code, plain = match.group(1), match.group(2)
            if code:
                return chr(int(code[1:], 16))
            if plain in _CODE:
                raise self._error(f"\\{plain} needs {_CODE[plain]} hexadecimal digits", at)
            return _ESCAPES.get(plain, plain)

        try:
            return re.sub(r"\\(?:(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})|(.))", replaced, text)
        except (ValueError, OverflowError):
            raise self._error("there is no such character", at) from None

    def _begins_rule(self) -> bool:
        following = self._tokens[self._at : self._at + 2]
        return [token.kind for token in following] == ["name", "define"]

    def _next(self, kind: str, text: str | None = None, *, across_lines: bool = False) -> _Token | None:
        """Return the next token if it is this one."""
        at = self._at
        while across_lines and at < len(self._tokens) and self._tokens[at].kind == "line":
            at += 1
        if at < len(self._tokens) and self._tokens[at].kind == kind and text in (None, self._tokens[at].text):
            self._at = at + 1
            return self._tokens[at]
        return None

    def _take(self, kind: str, wanted: str, text: str | None = None) -> _Token:
        token = self._next(kind, text)
        if token is None:
            raise self._error(f"expected {wanted}")
        return token

    def _skip_lines(self) -> None:
        while self._next("line"):
            pass

    def _error(self, complaint: str, at: int | None = None) -> InvalidRequest:
        if at is None:
            at = self._tokens[self._at].at if self._at < len(self._tokens) else len(self._grammar)
        line = self._grammar.count("\n", 0, at) + 1
        return InvalidRequest(f"{self._field}: line {line}: {complaint}", field=self._field)


def _rule_name(name: str) -> str:
    """Return a rule's name in Lark, where rules are written in small letters, without a clash between two names."""
    return "r_" + "".join(letter if letter.islower() or letter.isdigit() else f"_{ord(letter):x}_" for letter in name)


def _lark_repeat(repeat: str) -> str:
    return repeat.replace(" ", "")


def _lark_text(text: str) -> str:
    """Return a literal; one without characters is left out by Lark's rules."""
    return '"' + "".join(_in_text(letter) for letter in text) + '"'


def _in_text(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    return letter if letter.isprintable() else f"\\u{ord(letter):04x}" if ord(letter) < 1 << 16 else letter


def _in_class(letter: str) -> str:
    if letter.isalnum() or ord(letter) > 0x7F:
        return letter
    return f"\\x{ord(letter):02x}"
