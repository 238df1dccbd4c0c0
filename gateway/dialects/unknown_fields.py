"""Fields of a request that its schema does not have: refused by name, or accepted with a warning."""

import difflib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gateway.dialects.tagged_union import LeftOut
from gateway.http.body import Body, Opaque, quote
from services.runtime.errors import InvalidRequest

log = logging.getLogger(__name__)

MAX_UNKNOWN = 64
MAX_NAME_CHARS = 64
# Of two names, by difflib: 0.95 for `max_token` and `max_tokens`, 0.8 for `min_k` and `min_p`.
TYPING_ERROR = 0.85
ANYWHERE = "*."


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a field is refused, and which values ask for nothing and pass."""

    reason: str
    harmless: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class FieldRules:
    """What one dialect says to fields outside its schema.

    Names are dotted paths without list positions; `*.name` is a field at any depth, `name*` all that begin so.

    refused    fields to which another server gives a meaning that is not served here
    no_effect  documented fields on which no answer depends: accepted with a warning, also where others are refused
    """

    refused: Mapping[str, Refusal]
    no_effect: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Extra:
    field: str  # with list positions
    name: str  # without
    key: str
    schema: type[Body]
    value: object


def ignored_fields(body: Body, rules: FieldRules, *, refuse_unknown: bool) -> tuple[str, ...]:
    """Return the names of the fields, and of the kinds of parts, that were accepted without an effect.

    InvalidRequest for a field of `rules.refused`, for one whose name is a typing error, for too many, and for every
    undocumented one if `refuse_unknown`.
    """
    ignored = {f"{name}{part.type}": None for part, _, name in _parts(body, "", "") if isinstance(part, LeftOut)}
    unknown: dict[str, None] = {}
    for extra in _extras(body):
        refusal = _refusal_of(extra.name, rules.refused)
        if refusal is not None:
            if extra.value not in refusal.harmless:
                raise InvalidRequest(f"{extra.field} is not supported: {refusal.reason}", field=extra.field)
        elif extra.name in rules.no_effect or ANYWHERE + extra.key in rules.no_effect:
            ignored[extra.name] = None
        else:
            _refuse_typing_error(extra, rules)
            if refuse_unknown:
                raise InvalidRequest(f"{quote(extra.field)}: there is no such field", field=_short(extra.field))
            unknown[extra.name] = None
        if len(unknown) > MAX_UNKNOWN:
            raise InvalidRequest(f"the body has more than {MAX_UNKNOWN} unknown fields")
    if unknown:
        log.info("unknown fields ignored", extra={"fields": [_short(name) for name in unknown]})
    return (*ignored, *unknown)


def _extras(body: Body) -> Iterator[_Extra]:
    """Return the unknown fields of a schema and of all inside it; null is the same as absent."""
    for part, field, name in _parts(body, "", ""):
        if not isinstance(part, Opaque):
            for key, value in (part.model_extra or {}).items():
                if value is not None:
                    yield _Extra(f"{field}{key}", f"{name}{key}", key, type(part), value)


def _parts(body: Body, field: str, name: str) -> Iterator[tuple[Body, str, str]]:
    """Return a schema and all inside it, each with what stands before the names of its fields."""
    yield body, field, name
    if isinstance(body, Opaque):
        return
    fields = type(body).model_fields
    for attribute in body.model_fields_set & fields.keys():
        value = getattr(body, attribute)
        key = fields[attribute].alias or attribute
        if isinstance(value, Body):
            yield from _parts(value, f"{field}{key}.", f"{name}{key}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, Body):
                    yield from _parts(item, f"{field}{key}.{index}.", f"{name}{key}.")


def _refusal_of(name: str, refused: Mapping[str, Refusal]) -> Refusal | None:
    if name in refused:
        return refused[name]
    return next((rule for key, rule in refused.items() if key.endswith("*") and name.startswith(key[:-1])), None)


def _refuse_typing_error(extra: _Extra, rules: FieldRules) -> None:
    """Raise InvalidRequest if the name is nearly that of a known field in the same place."""
    if len(extra.key) > MAX_NAME_CHARS:
        return
    known = {(field.alias or attribute): None for attribute, field in extra.schema.model_fields.items()}
    place = extra.name.removesuffix(extra.key)
    beside = (name.removeprefix(place) for name in (*rules.refused, *rules.no_effect) if name.startswith(place))
    known |= {name: None for name in beside if "." not in name and "*" not in name}
    written = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in extra.key).replace("-", "_")
    if near := difflib.get_close_matches(written, known, n=1, cutoff=TYPING_ERROR):
        raise InvalidRequest(f"{extra.field}: there is no such field; do you mean {near[0]}?", field=extra.field)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARS else name[:MAX_NAME_CHARS] + "..."
