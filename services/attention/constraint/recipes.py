"""Recipes: the form that a client asks for as a grammar of llguidance, with its shortest text.

Everything that may take long on a hostile grammar happens here. The recipe that comes out is compiled again in the
engine's process for the model's vocabulary, which takes about as long as the library needed here.
"""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from services.attention.constraint.automaton import TextDemands, automaton_of
from services.attention.constraint.endings import Guide, Unguided, find_ending
from services.attention.constraint.guides import ChoiceGuide, JsonGuide, TextGuide
from services.attention.constraint.json_schemas import Schema, paths_of, rewritten
from services.attention.constraint.schema_fitting import Fitting
from services.attention.constraint.schema_ways import SchemaWays, TooLargeError
from services.attention.constraint.tags import Tag, TagsGuide, tags_grammar
from services.runtime.errors import InvalidRequest, NumericError

# Compact JSON: no white space but one space where people put it, and never more.
JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
OPTIONS = '%llguidance {"no_forcing": true}\n'
MAX_GRAMMAR_BYTES = 256 * 1024
# Enough for any grammar that a person wrote; a search that needs more is given up.
MAX_VISITS = 20_000
FEW_VISITS = 2_000
NUM_BYTE_WORDS = 9  # of the mask over the 262 tokens of the byte vocabulary
UNKNOWN_WEIGHT = 10**9
SLACK = 64  # bytes that a number, a name or an escape in hand may need beside its value
# Rows hold four items for every optional property.
LIMITS = LLParserLimits(verbose_errors=False, max_items_in_row=12_000)

Kind = Literal["json", "regex", "grammar", "choice", "structural_tag"]


class Ask(NamedTuple):
    """A form that a text must have, as the client gave it.

    text   a schema in JSON, a regular expression, a grammar, a list of texts in JSON, or in JSON
           {"tags": [[begin, schema, end]], "triggers": [text]}
    loose  what cannot be enforced of a schema is left out instead of refused
    """

    kind: Kind
    text: str
    loose: bool = False


@dataclass(frozen=True)
class Recipe:
    """A grammar that compiles and has an ending.

    source    what the guide is made of: the schema as it is enforced, or the text of the ask
    grammar   in llguidance's Lark
    ending    the shortest text that was found, as latin-1 so that any byte has a place in JSON
    weight    a container that opens, or some characters, never make the shortest ending longer by more bytes
    left_out  of a schema, each with its reason
    """

    kind: Kind
    source: str
    grammar: str
    ending: str
    weight: int
    left_out: tuple[str, ...] = ()

    def dump(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def load(fields: dict[str, Any]) -> "Recipe":
        return Recipe(**{**fields, "left_out": tuple(fields["left_out"])})


class ByteMatcher:
    """A place in a text, byte by byte, for the search of endings."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._mask = np.zeros(NUM_BYTE_WORDS, dtype=np.int32)

    def copy(self) -> "ByteMatcher":
        return ByteMatcher(self._matcher.deep_copy())

    def consume(self, text: bytes) -> bool:
        """False: the grammar does not allow it, and this is of no more use."""
        return self._matcher.try_consume_tokens(list(text)) == len(text)

    def forced(self) -> bytes:
        """What comes next in any case."""
        return self._matcher.compute_ff_bytes()

    def next_bytes(self) -> bytes:
        """Every byte that may come next; none where the text can neither end nor go on."""
        if self._matcher.is_stopped():
            return b""
        return bytes(mask_of(self._matcher, self._mask, 256).nonzero()[0].tolist())

    @property
    def is_accepting(self) -> bool:
        return self._matcher.is_accepting()


def mask_of(matcher: LLMatcher, words: NDArray[np.int32], size: int) -> NDArray[np.bool_]:
    """The first tokens of a matcher's mask; NumericError if the grammar is too complex here."""
    matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    if matcher.is_error() and "NoExtension" in matcher.get_error():
        return np.zeros(size, dtype=np.bool_)
    if matcher.is_error():
        raise NumericError(f"the grammar is too complex: {matcher.get_error().strip().splitlines()[0]}")
    return np.unpackbits(words.view(np.uint8), count=size, bitorder="little").view(np.bool_)


def guide_of(kind: Kind, source: str) -> Guide:
    """Where the endings of a grammar come from, at its start."""
    match kind:
        case "json":
            return JsonGuide(SchemaWays(json.loads(source), search_scalar))
        case "regex" if automaton := automaton_of(source, whole=True):
            return TextGuide(TextDemands((automaton,)))
        case "choice":
            return ChoiceGuide(tuple(text.encode() for text in json.loads(source)))
        case "structural_tag":
            asked = json.loads(source)
            tags = (Tag(*tag) for tag in asked["tags"])
            guides = tuple((tag, JsonGuide(SchemaWays(tag.schema, search_scalar))) for tag in tags)
            return TagsGuide(guides, tuple(trigger.encode() for trigger in asked["triggers"]))
    return Unguided(source.encode())


def make_recipe(ask: Ask) -> Recipe:
    """The recipe of a form; InvalidRequest says what is wrong with it."""
    if len(ask.text.encode()) > MAX_GRAMMAR_BYTES:
        raise InvalidRequest(f"more than {MAX_GRAMMAR_BYTES} bytes")
    match ask.kind:
        case "json":
            return _json_recipe(json.loads(ask.text), loose=ask.loose)
        case "regex":
            grammar = json.loads(LLMatcher.grammar_from_regex(ask.text))["grammars"][0]["lark_grammar"]
            automaton = automaton_of(ask.text, whole=True)
            weight = 4 * automaton.farthest + SLACK if automaton else UNKNOWN_WEIGHT
            return _checked(ask.kind, ask.text, grammar, weight)
        case "structural_tag":
            return _tags_recipe(json.loads(ask.text), loose=ask.loose)
        case "grammar":
            return _checked(ask.kind, ask.text, ask.text, UNKNOWN_WEIGHT)
    texts = json.loads(ask.text)
    if not texts or not all(texts):
        raise InvalidRequest("expected texts that are not empty")
    grammar = "start: " + " | ".join(json.dumps(text) for text in texts)
    return _checked(ask.kind, ask.text, grammar, max(len(text.encode()) for text in texts))


def _tags_recipe(asked: Any, *, loose: bool) -> Recipe:
    try:
        given = [Tag(*tag) for tag in asked["tags"]]
        triggers = [str(trigger) for trigger in asked["triggers"]]
        is_fine = given and triggers and all(isinstance(tag.schema, dict) for tag in given)
    except (KeyError, TypeError, AttributeError):
        is_fine = False
    if not is_fine:
        raise InvalidRequest("expected tags, each a text, a schema and a text, and triggers")
    tags, left_out, weight = [], [], 0
    for index, (begin, schema, end) in enumerate(given):
        try:
            inside = _json_recipe(schema, loose=loose)
        except InvalidRequest as error:
            raise InvalidRequest(f"tags.{index}: {error.message}") from None
        tags.append(Tag(begin, json.loads(inside.source), end))
        left_out += [f"tags.{index}: {one}" for one in inside.left_out]
        weight = max(weight, inside.weight + len(f"{begin}{inside.ending}{end}".encode()))
    grammar = tags_grammar(tags, triggers, JSON_OPTIONS)
    source = json.dumps({"tags": tags, "triggers": triggers})
    return _checked("structural_tag", source, grammar, weight, tuple(left_out))


def _json_recipe(schema: Schema, *, loose: bool) -> Recipe:
    try:
        fitting = Fitting(schema, complaint_about)
    except TooLargeError:
        raise InvalidRequest("it has too many parts") from None
    if fitting.left_out and not loose:
        raise InvalidRequest(fitting.left_out[0])
    fitted = fitting.schema
    try:
        ways = SchemaWays(fitted, search_scalar)
        if ways.shortest(ways.demands) is None:
            raise InvalidRequest("no finite value meets it, or none of less than 16 KiB")
        # Parts that nothing finite meets must not be entered.
        fitted = rewritten(fitted, lambda one, path: one if _is_met(ways, one) or not path else False)  # type: ignore[arg-type,return-value]
        ways = SchemaWays(fitted, search_scalar)
        sizes = [size for path in paths_of(fitted) for size in ways.sizes((_at(fitted, path),))]
    except TooLargeError:
        raise InvalidRequest("it has too many parts") from None
    joins = any("allOf" in _at(fitted, path) for path in paths_of(fitted))
    weight = (sum(sizes) if joins else max(sizes, default=0)) + 4 * _farthest(fitted) + SLACK
    return _checked("json", json.dumps(fitted), json_grammar(fitted), weight, tuple(fitting.left_out))


def _is_met(ways: SchemaWays, schema: Schema) -> bool:
    return ways.shortest((schema,)) is not None


def _at(schema: Schema, path: tuple[str, ...]) -> Any:
    part: Any = schema
    for step in path:
        part = part[int(step)] if isinstance(part, list) else part[step]
    return part


def _farthest(schema: Schema) -> int:
    """Characters that a text inside a pattern may lack."""
    patterns = [part.get("pattern") for path in paths_of(schema) if isinstance(part := _at(schema, path), dict)]
    automata = [automaton_of(pattern, whole=False) for pattern in patterns if pattern]
    return max((one.farthest if one else UNKNOWN_WEIGHT for one in automata), default=0)


def json_grammar(schema: Schema) -> str:
    """The grammar of JSON after a schema."""
    return f"start: %json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS})}"


@lru_cache(maxsize=1)
def byte_tokenizer() -> LLTokenizer:
    return LLTokenizer("byte")


def compiled(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """InvalidRequest with the library's complaint if it refuses the grammar."""
    matcher = LLMatcher(tokenizer, OPTIONS + grammar, limits=LIMITS, log_level=0)
    if matcher.is_error():
        raise InvalidRequest(_complaint(matcher.get_error()))
    return matcher


def complaint_about(schema: Schema) -> str | None:
    """What the library says against a schema."""
    try:
        compiled(byte_tokenizer(), json_grammar(schema))
    except InvalidRequest as error:
        return error.message
    return None


def search_scalar(schema: Schema) -> str | None:
    """A short text of a schema of numbers or strings, found by its matcher alone."""
    try:
        matcher = ByteMatcher(compiled(byte_tokenizer(), json_grammar(schema)))
        ending = find_ending(matcher, Unguided(), FEW_VISITS)
    except (InvalidRequest, NumericError):
        return None
    return None if ending is None else ending.decode(errors="replace")


def _checked(kind: Kind, source: str, grammar: str, weight: int, left_out: tuple[str, ...] = ()) -> Recipe:
    """The recipe, if its grammar compiles and an ending is found."""
    matcher = ByteMatcher(compiled(byte_tokenizer(), grammar))
    try:
        ending = find_ending(matcher, guide_of(kind, source), MAX_VISITS)
    except NumericError as error:
        raise InvalidRequest(error.message) from None
    if ending is None:
        raise InvalidRequest("no text is found that it allows")
    return Recipe(kind, source, grammar, ending.decode("latin-1"), min(weight, UNKNOWN_WEIGHT), left_out)


def _complaint(message: str) -> str:
    """What the library says of a grammar, without its own places and options."""
    lines = message.strip().splitlines()
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    text = lines[0].rpartition("failed to compile JSON schema: ")[2]
    if "regex parse error" in text and reasons:
        return reasons[0]
    if "coerce_one_of" in text:
        return "oneOf cannot be enforced unless its branches exclude each other; use anyOf"
    return text
