"""How far an answer under a plan has come: reasoning, then content or a section of calls, then the end of the turn.

The states are those of the parser (text-model.md 6.3), without its repairs: what it would repair cannot come. Each
says which tokens may come next, where a token leads, and how the answer can be completed.
"""

from dataclasses import dataclass, replace
from typing import Protocol

from services.attention.constraint.grammar import Mask, Matcher
from services.attention.constraint.plan import Plan, Use


class State(Protocol):
    """Where in an answer the next token comes. Used by one thread at a time."""

    def mask(self, room: int) -> Mask:
        """The tokens that may come next, of `room` that are left with this one."""

    def after(self, token_id: int) -> "State | None":
        """The state after a token, None if it may not come; this one is of no more use."""

    def ending(self, max_visits: int) -> list[int] | None:
        """Tokens after which the answer is complete, few of them; None if none are found, empty if nothing is owed."""

    def copy(self) -> "State":
        """An independent state of the same answer."""


def start(plan: Plan) -> State:
    """Before the first token."""
    return Reasoning(plan) if plan.starts_in_reasoning else Reasoning(plan).next_state()


@dataclass(frozen=True)
class Reasoning:
    """Anything may be thought; what is owed comes after it."""

    plan: Plan

    def mask(self, room: int) -> Mask:
        markers = self.plan.markers
        ends = () if self.plan.owes_content or self.plan.use is Use.REQUIRED else markers.ends
        return self.plan.ordinary(markers.think_end, *_sections(self.plan, room), *ends)

    def after(self, token_id: int) -> State | None:
        markers = self.plan.markers
        if token_id == markers.think_end:
            return self.next_state()
        if token_id == markers.section_begin:
            return Section(self.plan, 0) if self.plan.more_calls(0) else None
        return self if self.plan.is_ordinary(token_id) or token_id in markers.ends else None

    def ending(self, max_visits: int) -> list[int] | None:
        rest = self.next_state().ending(max_visits)
        return [self.plan.markers.think_end, *rest] if rest else rest

    def copy(self) -> State:
        return self

    def next_state(self) -> State:
        """Behind the reasoning."""
        if self.plan.use is Use.REQUIRED:
            return CallsOnly(self.plan)
        if self.plan.content is not None:
            return Content(self.plan, self.plan.content.start.copy())
        return FreeContent(self.plan)


@dataclass(frozen=True)
class FreeContent:
    """Any text, and a section where tools may be called."""

    plan: Plan

    def mask(self, room: int) -> Mask:
        return self.plan.ordinary(*_sections(self.plan, room), *self.plan.markers.ends)

    def after(self, token_id: int) -> State | None:
        if token_id == self.plan.markers.section_begin:
            return Section(self.plan, 0) if self.plan.more_calls(0) else None
        # Where the end of the turn is ignored the text goes on.
        return self if self.plan.is_ordinary(token_id) or token_id in self.plan.markers.ends else None

    def ending(self, _: int) -> list[int] | None:
        return []

    def copy(self) -> State:
        return self


@dataclass(frozen=True)
class CallsOnly:
    """A section was demanded and has not begun."""

    plan: Plan

    def mask(self, _: int) -> Mask:
        return self.plan.only(self.plan.markers.section_begin)

    def after(self, token_id: int) -> State | None:
        return Section(self.plan, 0) if token_id == self.plan.markers.section_begin else None

    def ending(self, _: int) -> list[int] | None:
        return self.plan.section()

    def copy(self) -> State:
        return self


@dataclass(frozen=True)
class Content:
    """Text after a grammar; a section may take its place as long as it has not begun."""

    plan: Plan
    matcher: Matcher
    is_begun: bool = False

    def mask(self, room: int) -> Mask:
        mask = self.matcher.mask()
        mask[[] if self.is_begun else _sections(self.plan, room)] = True
        mask[list(self.plan.markers.ends)] = self.matcher.is_accepting
        return mask

    def after(self, token_id: int) -> State | None:
        if token_id in self.plan.markers.ends:
            return Done(self.plan) if self.matcher.is_accepting else None
        if token_id == self.plan.markers.section_begin:
            return Section(self.plan, 0) if not self.is_begun and self.plan.more_calls(0) else None
        return replace(self, is_begun=True) if self.matcher.consume(token_id) else None

    def ending(self, max_visits: int) -> list[int] | None:
        rest = self.matcher.ending(max_visits)
        return None if rest is None else [*rest, self.plan.markers.end]

    def copy(self) -> State:
        return replace(self, matcher=self.matcher.copy())


@dataclass(frozen=True)
class Section:
    """Between the calls of a section."""

    plan: Plan
    num_calls: int

    def mask(self, room: int) -> Mask:
        markers = self.plan.markers
        if self.num_calls == 0:
            return self.plan.only(markers.call_begin)
        fits = self.plan.more_calls(self.num_calls) and len(self.ending_with_call()) <= room
        return self.plan.only(markers.section_end, *([markers.call_begin] if fits else ()))

    def after(self, token_id: int) -> State | None:
        markers = self.plan.markers
        if token_id == markers.call_begin and self.plan.more_calls(self.num_calls):
            return Header(self.plan, self.num_calls)
        return Done(self.plan) if token_id == markers.section_end and self.num_calls else None

    def ending(self, _: int) -> list[int] | None:
        markers = self.plan.markers
        return [markers.section_end, markers.end] if self.num_calls else self.ending_with_call()

    def ending_with_call(self) -> list[int]:
        """The shortest ending with one more call."""
        return [*self.plan.call(self.num_calls), self.plan.markers.section_end, self.plan.markers.end]

    def copy(self) -> State:
        return self


@dataclass(frozen=True)
class Header:
    """In the id of a call: `functions.` and a declared name, then the next index."""

    plan: Plan
    num_calls: int
    text: bytes = b""

    def mask(self, _: int) -> Mask:
        rests = self._rests()
        mask = self.plan.only(*(token_id for rest in rests for token_id in self.plan.grammars.prefixes(rest)))
        mask[self.plan.markers.arguments] = b"" in rests
        return mask

    def after(self, token_id: int) -> State | None:
        if token_id == self.plan.markers.arguments:
            tools = [tool for tool in self.plan.tools if self.plan.header(tool, self.num_calls) == self.text]
            return Arguments(self.plan, self.num_calls, tools[0].arguments.start.copy()) if tools else None
        if not self.plan.is_ordinary(token_id):
            return None
        longer = replace(self, text=self.text + self.plan.grammars.table.ordinary[token_id])
        return longer if longer._rests() else None

    def ending(self, _: int) -> list[int] | None:
        plan, markers = self.plan, self.plan.markers
        endings = [
            [*plan.grammars.tokenize(header[len(self.text) :]), markers.arguments, *tool.arguments.ending]
            for tool in plan.tools
            if (header := plan.header(tool, self.num_calls)).startswith(self.text)
        ]
        return [*min(endings, key=len), *_close(plan)]

    def copy(self) -> State:
        return self

    def _rests(self) -> list[bytes]:
        headers = [self.plan.header(tool, self.num_calls) for tool in self.plan.tools]
        return [header[len(self.text) :] for header in headers if header.startswith(self.text)]


@dataclass(frozen=True)
class Arguments:
    """In the arguments of a call."""

    plan: Plan
    num_calls: int
    matcher: Matcher

    def mask(self, _: int) -> Mask:
        mask = self.matcher.mask()
        mask[self.plan.markers.call_end] = self.matcher.is_accepting
        return mask

    def after(self, token_id: int) -> State | None:
        if token_id == self.plan.markers.call_end:
            return Section(self.plan, self.num_calls + 1) if self.matcher.is_accepting else None
        return self if self.matcher.consume(token_id) else None

    def ending(self, max_visits: int) -> list[int] | None:
        rest = self.matcher.ending(max_visits)
        return None if rest is None else [*rest, *_close(self.plan)]

    def copy(self) -> State:
        return replace(self, matcher=self.matcher.copy())


@dataclass(frozen=True)
class Done:
    """Nothing is left but the end of the turn."""

    plan: Plan

    def mask(self, _: int) -> Mask:
        return self.plan.only(*self.plan.markers.ends)

    def after(self, token_id: int) -> State | None:
        return self if token_id in self.plan.markers.ends else None

    def ending(self, _: int) -> list[int] | None:
        return [self.plan.markers.end]

    def copy(self) -> State:
        return self


def _sections(plan: Plan, room: int) -> list[int]:
    """The marker that begins a section, if one may come and fits."""
    return [plan.markers.section_begin] if plan.more_calls(0) and len(plan.section()) <= room else []


def _close(plan: Plan) -> list[int]:
    return [plan.markers.call_end, plan.markers.section_end, plan.markers.end]
