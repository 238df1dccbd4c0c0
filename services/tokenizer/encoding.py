"""Prompts as token ids: text that a client sent can never become a special token (TEMPLATE.md)."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import groupby

from protos.media_pb2 import MediaSpan
from protos.tokenizer_pb2 import EncodeResponse, RenderResponse
from services.checkpoint.markers import Marker
from services.tokenizer.memo import Memo
from services.tokenizer.template import Pads, Segment, literal
from services.tokenizer.vocabulary import RUN_CHARS, Vocabulary, cut_points


class PromptEncoder:
    """Encodes prompts, and remembers the ids of pieces of text that no special token and no cut divides.

    A piece's ids depend on its text alone. So a conversation that grows by a turn, or whose early reasoning is dropped,
    costs the encoder only what is new, and its prompt is the same as without a memory.

    max_remembered_bytes  of memory for them
    """

    def __init__(self, vocabulary: Vocabulary, max_remembered_bytes: int) -> None:
        self._vocabulary = vocabulary
        self._remembered = Memo(self._encode_piece, max_remembered_bytes)

    def encode(self, segments: Iterable[Segment]) -> RenderResponse:
        """Return the ids of the segments, and the places of media; equal to the reference's ids for honest text.

        Neighbouring text is joined before it is encoded, because tokens may cross the seam. The reference's cuts in
        long texts count the characters of markers too; one that would fall inside a marker is left out.
        """
        segments = list(segments)
        cuts = _cuts(segments)
        prompt = RenderResponse()
        position = 0
        for is_text, group in groupby(segments, key=lambda segment: isinstance(segment, str)):
            parts = list(group)
            end = position + sum(len(literal(part)) for part in parts)
            if is_text:
                inside = cuts[bisect_right(cuts, position) : bisect_left(cuts, end)]
                self._add_text(prompt, "".join(map(literal, parts)), [cut - position for cut in inside])
            else:
                for part in parts:
                    self._add_special(prompt, part)
            position = end
        return prompt

    def _add_text(self, prompt: RenderResponse, text: str, cuts: Sequence[int]) -> None:
        start = 0
        for end in (*cuts, len(text)):
            # Between messages ids are copied as a block of memory; a list would make a Python object of each.
            prompt.token_ids.MergeFrom(self._remembered(text[start:end]).token_ids)
            start = end

    def _add_special(self, prompt: RenderResponse, segment: Segment) -> None:
        if isinstance(segment, Marker):
            prompt.token_ids.append(self._vocabulary.marker_ids[segment])
            return
        assert isinstance(segment, Pads)
        prompt.media.append(MediaSpan(offset=len(prompt.token_ids), media=segment.media))
        prompt.token_ids.extend([self._vocabulary.marker_ids[Marker.MEDIA_PAD]] * segment.media.num_tokens)

    def _encode_piece(self, text: str) -> EncodeResponse:
        return EncodeResponse(token_ids=self._vocabulary.encode_piece(text))


def _cuts(segments: Sequence[Segment]) -> list[int]:
    text = "".join(map(literal, segments))
    return list(cut_points(text)) if len(text) > RUN_CHARS else []
