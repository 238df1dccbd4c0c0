"""How far an answer under a plan has come: which tokens may come next, where they lead, how it can be completed.

Markers lead from place to place as in `services/checkpoint/answer_form.py`, by the steps that the model was trained
to take: the ones that the parser repairs cannot come. The plan only takes steps away.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from services.attention.constraint.grammar import Mask, Matcher
from services.attention.constraint.plan import AnswerPlan, Use
from services.checkpoint.answer_form import TRAINED, Place
from services.checkpoint.markers import Marker


class AnswerState(Protocol):
    """The place of the next token. Used by one thread at a time."""

    def mask(self) -> Mask:
        """The tokens that may come next."""

    def after(self, token_id: int) -> "AnswerState | None":
        """The state after a token, None if it may not come; this one is of no more use."""

    def ending(self, max_visits: int) -> list[int] | None:
        """Few tokens that complete the answer; None if none are found, empty if nothing is owed."""

    def copy(self) -> "AnswerState":
        """An independent state of the same answer."""


def start(plan: AnswerPlan) -> AnswerState:
    """Before the first token."""
    return Reasoning(plan) if plan.starts_in_reasoning else _after_reasoning(plan)


def _after_reasoning(plan: AnswerPlan) -> AnswerState:
    if plan.use is Use.REQUIRED:
        return CallsOnly(plan)
    return FreeContent(plan) if plan.content is None else FormedContent(plan, plan.content.start.copy())


def _step(plan: AnswerPlan, place: Place, token_id: int) -> Place | None:
    """Where the model was trained to go from a place with a token."""
    marker = plan.markers.markers.get(token_id)
    return None if marker is None else TRAINED.get((place, marker))


def _id_for(plan: AnswerPlan, place: Place, to: Place) -> int:
    """The marker that leads from one place to another."""
    return next(plan.markers.ids[marker] for (at, marker), then in TRAINED.items() if at is place and then is to)


@dataclass(frozen=True)
class Reasoning:
    """Anything may be thought; what is owed comes after it."""

    place: ClassVar[Place] = Place.REASONING
    plan: AnswerPlan

    def mask(self) -> Mask:
        plan = self.plan
        may_end = plan.content is None and plan.use is not Use.REQUIRED
        return plan.ordinary(
            _id_for(plan, self.place, Place.CONTENT),
            *_section_ids(plan, self.place),
            *(plan.markers.ends if may_end else ()),
        )

    def after(self, token_id: int) -> AnswerState | None:
        match _step(self.plan, self.place, token_id):
            case Place.CONTENT:
                return _after_reasoning(self.plan)
            case Place.SECTION:
                return _first_section(self.plan)
        return _stay(self, self.plan, token_id)

    def ending(self, max_visits: int) -> list[int] | None:
        rest = _after_reasoning(self.plan).ending(max_visits)
        return [_id_for(self.plan, self.place, Place.CONTENT), *rest] if rest else rest

    def copy(self) -> AnswerState:
        return self


@dataclass(frozen=True)
class FreeContent:
    """Any text, and a section where tools may be called."""

    place: ClassVar[Place] = Place.CONTENT
    plan: AnswerPlan

    def mask(self) -> Mask:
        return self.plan.ordinary(*_section_ids(self.plan, self.place), *self.plan.markers.ends)

    def after(self, token_id: int) -> AnswerState | None:
        if _step(self.plan, self.place, token_id) is Place.SECTION:
            return _first_section(self.plan)
        return _stay(self, self.plan, token_id)

    def ending(self, max_visits: int) -> list[int] | None:
        return []

    def copy(self) -> AnswerState:
        return self


@dataclass(frozen=True)
class CallsOnly:
    """A section was demanded and has not begun."""

    place: ClassVar[Place] = Place.CONTENT
    plan: AnswerPlan

    def mask(self) -> Mask:
        return self.plan.only(_id_for(self.plan, self.place, Place.SECTION))

    def after(self, token_id: int) -> AnswerState | None:
        return _first_section(self.plan) if _step(self.plan, self.place, token_id) is Place.SECTION else None

    def ending(self, max_visits: int) -> list[int] | None:
        return self.plan.section()

    def copy(self) -> AnswerState:
        return self


@dataclass(frozen=True)
class FormedContent:
    """Text after a grammar; a section may take its place as long as it has not begun."""

    place: ClassVar[Place] = Place.CONTENT
    plan: AnswerPlan
    matcher: Matcher
    is_begun: bool = False

    def mask(self) -> Mask:
        mask = self.matcher.mask()
        if not self.is_begun:
            mask[_section_ids(self.plan, self.place)] = True
        mask[list(self.plan.markers.ends)] = self.matcher.is_accepting
        return mask

    def after(self, token_id: int) -> AnswerState | None:
        if token_id in self.plan.markers.ends:
            return Over(self.plan) if self.matcher.is_accepting else None
        if _step(self.plan, self.place, token_id) is Place.SECTION:
            return None if self.is_begun else _first_section(self.plan)
        return replace(self, is_begun=True) if self.matcher.consume(token_id) else None

    def ending(self, max_visits: int) -> list[int] | None:
        rest = self.matcher.ending(max_visits)
        return None if rest is None else [*rest, self.plan.markers.end]

    def copy(self) -> AnswerState:
        return replace(self, matcher=self.matcher.copy())


@dataclass(frozen=True)
class Section:
    """Between the calls of a section; it does not end without one."""

    place: ClassVar[Place] = Place.SECTION
    plan: AnswerPlan
    num_calls: int

    def mask(self) -> Mask:
        plan = self.plan
        begin, end = _id_for(plan, self.place, Place.CALL_ID), _id_for(plan, self.place, Place.CONTENT)
        if self.num_calls == 0:
            return plan.only(begin)
        return plan.only(end, *([begin] if plan.more_calls(self.num_calls) else ()))

    def after(self, token_id: int) -> AnswerState | None:
        match _step(self.plan, self.place, token_id):
            case Place.CALL_ID if self.plan.more_calls(self.num_calls):
                return CallId(self.plan, self.num_calls)
            case Place.CONTENT if self.num_calls:
                return Over(self.plan)
        return None

    def ending(self, max_visits: int) -> list[int] | None:
        close = [_id_for(self.plan, self.place, Place.CONTENT), self.plan.markers.end]
        return close if self.num_calls else [*self.plan.call(0), *close]

    def copy(self) -> AnswerState:
        return self


@dataclass(frozen=True)
class CallId:
    """In the id of a call: a declared name and the next number."""

    place: ClassVar[Place] = Place.CALL_ID
    plan: AnswerPlan
    num_calls: int
    text: bytes = b""

    def mask(self) -> Mask:
        rests = self._rests()
        mask = self.plan.only(*(token_id for rest in rests for token_id in self.plan.grammars.prefixes(rest)))
        mask[_id_for(self.plan, self.place, Place.ARGUMENTS)] = b"" in rests
        return mask

    def after(self, token_id: int) -> AnswerState | None:
        if _step(self.plan, self.place, token_id) is Place.ARGUMENTS:
            tools = [tool for tool in self.plan.tools if self.plan.header(tool, self.num_calls) == self.text]
            return Arguments(self.plan, self.num_calls, tools[0].arguments.start.copy()) if tools else None
        if not self.plan.is_ordinary(token_id):
            return None
        longer = replace(self, text=self.text + self.plan.grammars.table.ordinary[token_id])
        return longer if longer._rests() else None

    def ending(self, max_visits: int) -> list[int] | None:
        plan = self.plan
        begin = _id_for(plan, self.place, Place.ARGUMENTS)
        endings = [
            [*plan.grammars.tokenize(header[len(self.text) :]), begin, *tool.arguments.ending]
            for tool in plan.tools
            if (header := plan.header(tool, self.num_calls)).startswith(self.text)
        ]
        return [*min(endings, key=len), *_close(plan)]

    def copy(self) -> AnswerState:
        return self

    def _rests(self) -> list[bytes]:
        headers = [self.plan.header(tool, self.num_calls) for tool in self.plan.tools]
        return [header[len(self.text) :] for header in headers if header.startswith(self.text)]


@dataclass(frozen=True)
class Arguments:
    """In the arguments of a call."""

    place: ClassVar[Place] = Place.ARGUMENTS
    plan: AnswerPlan
    num_calls: int
    matcher: Matcher

    def mask(self) -> Mask:
        mask = self.matcher.mask()
        mask[_id_for(self.plan, self.place, Place.SECTION)] = self.matcher.is_accepting
        return mask

    def after(self, token_id: int) -> AnswerState | None:
        if _step(self.plan, self.place, token_id) is Place.SECTION:
            return Section(self.plan, self.num_calls + 1) if self.matcher.is_accepting else None
        return self if self.matcher.consume(token_id) else None

    def ending(self, max_visits: int) -> list[int] | None:
        rest = self.matcher.ending(max_visits)
        return None if rest is None else [*rest, *_close(self.plan)]

    def copy(self) -> AnswerState:
        return replace(self, matcher=self.matcher.copy())


@dataclass(frozen=True)
class Over:
    """Nothing is left but the end of the turn."""

    place: ClassVar[Place] = Place.OVER
    plan: AnswerPlan

    def mask(self) -> Mask:
        return self.plan.only(*self.plan.markers.ends)

    def after(self, token_id: int) -> AnswerState | None:
        return self if token_id in self.plan.markers.ends else None

    def ending(self, max_visits: int) -> list[int] | None:
        return [self.plan.markers.end]

    def copy(self) -> AnswerState:
        return self


def _stay(state: Reasoning | FreeContent, plan: AnswerPlan, token_id: int) -> AnswerState | None:
    """Free text goes on, also over an end of the turn that the request ignores."""
    return state if plan.is_ordinary(token_id) or token_id in plan.markers.ends else None


def _section_ids(plan: AnswerPlan, place: Place) -> list[int]:
    """The marker that begins a section, if one may come."""
    return [_id_for(plan, place, Place.SECTION)] if plan.more_calls(0) else []


def _first_section(plan: AnswerPlan) -> AnswerState | None:
    return Section(plan, 0) if plan.more_calls(0) else None


def _close(plan: AnswerPlan) -> list[int]:
    ids = plan.markers.ids
    return [ids[Marker.CALL_END], ids[Marker.SECTION_END], plan.markers.end]
