"""Structural tags: free text in which every trigger begins a tag, and a tag holds JSON after its schema."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from services.attention.constraint.endings import Guide, Unguided
from services.attention.constraint.guides import JsonGuide
from services.attention.constraint.json_schemas import Schema
from services.runtime.errors import InvalidRequest


class Tag(NamedTuple):
    """`begin`, then JSON, then `end`."""

    begin: str
    schema: Schema
    end: str


def tags_grammar(tags: Sequence[Tag], triggers: Sequence[str], json_options: Schema) -> str:
    """The grammar in llguidance's Lark. InvalidRequest if a tag begins with no trigger, or a trigger begins none."""
    for index, tag in enumerate(tags):
        if not tag.begin.startswith(tuple(triggers)):
            raise InvalidRequest(f"tags.{index}: {json.dumps(tag.begin)} begins with none of the triggers")
    for index, trigger in enumerate(triggers):
        if not trigger or not any(tag.begin.startswith(trigger) for tag in tags):
            raise InvalidRequest(f"triggers.{index}: {json.dumps(trigger)} begins none of the tags")
    # The text before a trigger is a lazy lexeme: it ends where the trigger is complete for the first time.
    lines = [
        f"start: ({' | '.join(f'tag_{index}' for index in range(len(tags)))})* rest",
        "rest: TEXT",
        "TEXT: /(?s:.*)/",
        *(f"trigger_{index}[lazy]: TEXT {json.dumps(trigger)}" for index, trigger in enumerate(triggers)),
    ]
    for index, tag in enumerate(tags):
        first = next(at for at, trigger in enumerate(triggers) if tag.begin.startswith(trigger))
        begin = tag.begin[len(triggers[first]) :]
        parts = [json.dumps(text) if text else "" for text in (begin, tag.end)]
        schema = f"%json {json.dumps({**tag.schema, 'x-guidance': json_options})}"
        lines.append(f"tag_{index}: trigger_{first} {parts[0]} {schema} {parts[1]}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Closing:
    """In a text that is given, with so much of it missing."""

    rest: bytes

    def after(self, text: bytes) -> "Closing":
        return Closing(self.rest[len(text) :])

    def proposals(self) -> Sequence[bytes]:
        return [self.rest]

    def narrowed(self, allowed: bytes) -> bytes:
        return allowed

    @property
    def can_end(self) -> bool:
        return not self.rest

    @property
    def key(self) -> object:
        return self.rest

    @property
    def is_between(self) -> bool:
        return True


@dataclass(frozen=True)
class TagsGuide:
    """A place in a text with tags.

    tags    each with the guide at the start of its JSON
    begun   the end of the text since the last tag, from its trigger on once that is complete
    tag     the one whose JSON or end has begun, with what is there of it
    """

    tags: tuple[tuple[Tag, JsonGuide], ...]
    triggers: tuple[bytes, ...]
    begun: bytes = b""
    tag: tuple[Tag, JsonGuide | Closing] | None = None

    def after(self, text: bytes) -> Guide:
        at = self
        for index in range(len(text)):
            at = at._after_byte(text[index : index + 1])
        return at

    def _after_byte(self, byte: bytes) -> "TagsGuide":
        if self.tag is not None:
            tag, guide = self.tag
            is_end = isinstance(guide, JsonGuide) and guide.can_end and tag.end.encode().startswith(byte)
            after = (Closing(tag.end.encode()) if is_end else guide).after(byte)
            is_over = after.can_end and not (isinstance(after, JsonGuide) and tag.end)
            return replace(self, begun=b"", tag=None) if is_over else replace(self, tag=(tag, after))
        begun = self.begun + byte
        if not self._is_triggered:
            begun = next((one for one in self.triggers if begun.endswith(one)), begun[-self._longest :])
        opened = next(((tag, guide) for tag, guide in self.tags if tag.begin.encode() == begun), None)
        return replace(self, begun=begun, tag=opened)

    @property
    def _longest(self) -> int:
        return max(map(len, self.triggers))

    @property
    def _is_triggered(self) -> bool:
        """Whether a tag must follow."""
        return self.begun.startswith(self.triggers)

    def proposals(self) -> Sequence[bytes]:
        if self.tag is not None:
            tag, guide = self.tag
            end = [tag.end.encode()] if isinstance(guide, JsonGuide) and guide.can_end else []
            return [*end, *guide.proposals()]
        begins = [tag.begin.encode() for tag, _ in self.tags] if self._is_triggered else []
        return sorted((one[len(self.begun) :] for one in begins if one.startswith(self.begun)), key=len)

    def narrowed(self, allowed: bytes) -> bytes:
        return self.tag[1].narrowed(allowed) if self.tag else Unguided().narrowed(allowed)

    @property
    def key(self) -> object:
        return self.tag[1].key if self.tag else None

    @property
    def is_between(self) -> bool:
        return self.tag is not None and self.tag[1].is_between
