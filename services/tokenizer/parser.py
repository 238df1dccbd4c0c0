"""The parser of the model's output: token ids in, pieces of reasoning, content and tool calls out (TEMPLATE.md).

It works on ids, never on decoded text: the characters of a marker, generated as ordinary tokens, are text. Its output
depends on the tokens alone, not on how they were grouped: a second parser that reads all tokens again returns the same
text.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from protos.tokenizer_pb2 import Delta, ToolCallArguments, ToolCallEnd, ToolCallStart
from services.checkpoint.answer_form import REPAIRED, TEXT_IN_CALLS, TRAINED, Place
from services.checkpoint.markers import Marker
from services.tokenizer.arguments import ArgumentText
from services.tokenizer.call_names import CallNames, Named, Unknown
from services.tokenizer.parser_options import ParserOptions
from services.tokenizer.stop_strings import StopStrings
from services.tokenizer.vocabulary import Vocabulary


class Dropped(Enum):
    """Why a call of the model is not returned."""

    UNWANTED = "unwanted"  # no tools, or tool_choice none
    OVER_LIMIT = "over_limit"  # more calls than the client allows
    UNKNOWN = "unknown"  # no declared tool is meant
    ABORTED = "aborted"  # the model gave the call up before its arguments
    UNFINISHED = "unfinished"  # the answer ended in it before anything was handed out


class Observer(Protocol):
    """Counts what the parser repairs and drops."""

    def call_dropped(self, reason: Dropped) -> None: ...
    def name_repaired(self) -> None: ...
    def arguments_invalid(self) -> None: ...
    def text_dropped(self) -> None: ...


@dataclass
class _Call:
    """The call whose arguments are being read. The client knows of it once it is `started`."""

    id_text: str
    arguments: ArgumentText
    index: int = 0
    started: bool = False
    wanted: bool = True


class Parser:
    """Parses one answer: `feed` tokens, then `end`; `take_deltas` returns the pieces that they completed."""

    def __init__(self, vocabulary: Vocabulary, options: ParserOptions, observer: Observer) -> None:
        self._vocabulary = vocabulary
        self._markers = {token_id: marker for marker, token_id in vocabulary.marker_ids.items()}
        self._options = options
        self._observer = observer
        self._place = options.start
        self._names = CallNames(options.tools, options.num_history_calls, options.history_call_ids)
        self._drop_calls = options.drop_tool_calls or not options.tools
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = StopStrings(options.stop, include=options.include_stop)
        self._id: list[bytes] = []
        self._call: _Call | None = None
        self._deltas: list[Delta] = []
        self._num_calls = 0
        self.num_complete_calls = 0
        self._num_tokens = 0
        self._content_positions: list[int] = []
        self.num_reasoning_tokens = 0
        self.stop: str | None = None

    def feed(self, token_ids: Sequence[int]) -> None:
        """Read the next tokens; InvalidRequest if one is not in the vocabulary."""
        skip_special = self._place is Place.RAW and not self._options.keep_special
        pieces = self._vocabulary.token_bytes(token_ids, skip_special=skip_special)
        position = self._num_tokens
        self._num_tokens += len(token_ids)
        if self._place is Place.RAW:
            self._ordinary(pieces, position)
            return
        first_special_id = self._vocabulary.first_special_id
        start = 0
        for index, token_id in enumerate(token_ids):
            if token_id >= first_special_id:
                self._ordinary(pieces[start:index], position + start)
                # Other special tokens mean nothing in an answer, and no reader should see them.
                if token_id in self._markers:
                    self._marker(self._markers[token_id])
                start = index + 1
        self._ordinary(pieces[start:], position + start)

    def end(self, *, truncated: bool) -> None:
        """Complete the pieces that were held back. `truncated`: the budget ended the answer, not the model."""
        match self._place:
            case Place.CALL_ID:
                self._observer.call_dropped(Dropped.UNFINISHED)
            case Place.ARGUMENTS:
                self._close_call(ended=True, truncated=truncated)
            case Place.OVER | Place.SECTION:
                pass
            case _:
                self._leave_text()
        self._place = Place.OVER

    def take_deltas(self) -> list[Delta]:
        """Return the pieces completed since the last call."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def take_content_positions(self) -> list[int]:
        """Return where in the answer the tokens stand that became content since the last call, if that is noted.

        The tokens of a stop string that is met later are among them.
        """
        positions, self._content_positions = self._content_positions, []
        return positions

    def _ordinary(self, pieces: Sequence[bytes], position: int) -> None:
        """Read the text of the tokens from `position` on; empty pieces are hidden tokens."""
        if pieces:
            if self._options.name_content and self._place in (Place.CONTENT, Place.RAW):
                self._content_positions += [position + i for i, piece in enumerate(pieces) if piece]
            self.num_reasoning_tokens += len(pieces) if self._place is Place.REASONING else 0
            self._text(b"".join(pieces))

    def _text(self, data: bytes, *, final: bool = False) -> None:
        match self._place:
            case Place.REASONING:
                self._add(reasoning=self._utf8.decode(data, final))
            case Place.CONTENT | Place.RAW:
                visible, self.stop = self._stops.add(self._utf8.decode(data, final))
                self._add(content=visible)
                if self.stop is not None:
                    self._place = Place.OVER
            case Place.SECTION if data.strip():
                self._observer.text_dropped()
            case Place.CALL_ID:
                self._id.append(data)
            case Place.ARGUMENTS:
                self._argument_text(self._utf8.decode(data, final))

    def _marker(self, marker: Marker) -> None:
        """Take one step by the tables of the answer's form; a marker without a step is swallowed."""
        step = self._place, marker
        to = TRAINED.get(step) or REPAIRED.get(step)
        if to is None:
            if marker in TEXT_IN_CALLS.get(self._place, ()):
                self._text(marker.value.encode())
            return
        match self._place:
            case Place.CALL_ID if to is Place.ARGUMENTS:
                self._open_call(b"".join(self._id).decode(errors="replace").strip())
            case Place.CALL_ID:
                self._observer.call_dropped(Dropped.ABORTED)
            case Place.ARGUMENTS:
                self._close_call(ended=False, truncated=False)
        self._enter(to)

    def _enter(self, place: Place) -> None:
        if self._place in (Place.REASONING, Place.CONTENT):
            self._leave_text()
        self._id.clear()
        if self._place is not Place.OVER:
            self._place = place

    def _leave_text(self) -> None:
        """End the channel: an unfinished character becomes U+FFFD, and no stop string goes on behind a call."""
        self._text(b"", final=True)
        self._add(content=self._stops.flush())

    def _open_call(self, id_text: str) -> None:
        self._call = _Call(id_text, ArgumentText(hold=False))
        if self._drop_calls:
            self._refuse_call(Dropped.UNWANTED)
        elif self._options.max_tool_calls and self._num_calls >= self._options.max_tool_calls:
            self._refuse_call(Dropped.OVER_LIMIT)
        else:
            match self._names.resolve(id_text):
                case Named(name, repaired):
                    self._start_call(name, repaired=repaired)
                case Unknown():
                    self._refuse_call(Dropped.UNKNOWN)
                case _:
                    self._call.arguments = ArgumentText(hold=True)

    def _refuse_call(self, reason: Dropped) -> None:
        assert self._call
        self._call.wanted = False
        self._observer.call_dropped(reason)

    def _start_call(self, name: str, *, repaired: bool) -> None:
        assert self._call
        self._call.index, self._call.started = self._num_calls, True
        call_id = self._names.give_id(self._call.id_text, name, self._num_calls)
        self._num_calls += 1
        self._deltas.append(Delta(tool_call_start=ToolCallStart(index=self._call.index, id=call_id, name=name)))
        if repaired:
            self._observer.name_repaired()

    def _argument_text(self, text: str) -> None:
        assert self._call
        if self._call.wanted:
            self._add_arguments(self._call.arguments.add(text))

    def _close_call(self, *, ended: bool, truncated: bool) -> None:
        """Close the call whose arguments are over, by a marker or because the answer `ended`."""
        assert self._call
        self._argument_text(self._utf8.decode(b"", True))
        call = self._call
        if not call.wanted:
            return
        closed = call.arguments.close()
        complete = not ended or closed.keys is not None
        if not call.started:
            name = self._names.infer(closed.keys or ()) if complete else None
            if name is None:
                self._observer.call_dropped(Dropped.UNKNOWN if complete else Dropped.UNFINISHED)
                return
            self._start_call(name, repaired=True)
        if not closed.is_valid and not truncated:
            self._observer.arguments_invalid()
        if complete:
            self._add_arguments(closed.rest)
            self.num_complete_calls += 1
        self._deltas.append(Delta(tool_call_end=ToolCallEnd(index=call.index, complete=complete)))

    def _add(self, *, reasoning: str = "", content: str = "") -> None:
        if reasoning:
            self._deltas.append(Delta(reasoning=reasoning))
        if content:
            self._deltas.append(Delta(content=content))

    def _add_arguments(self, text: str) -> None:
        assert self._call
        if text:
            self._deltas.append(Delta(tool_call_arguments=ToolCallArguments(index=self._call.index, text=text)))
