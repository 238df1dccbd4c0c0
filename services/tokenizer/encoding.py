"""Prompts as token ids: text that a client sent can never become a special token (TEMPLATE.md)."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from protos.media_pb2 import MediaSpan
from services.checkpoint.markers import Marker
from services.tokenizer.template import Pads, Segment, literal
from services.tokenizer.vocabulary import RUN_CHARS, Vocabulary, cut_points


@dataclass
class Prompt:
    """A rendered conversation: its ids, and the places of its media in order of appearance."""

    token_ids: list[int] = field(default_factory=list)
    media: list[MediaSpan] = field(default_factory=list)


def encode_prompt(segments: Iterable[Segment], vocabulary: Vocabulary) -> Prompt:
    """The ids of the segments, equal to the reference's wherever no text looks like a special token.

    Neighbouring text is joined before it is encoded, because tokens may cross the seam. The reference's cuts in long
    texts count the characters of markers too; one that would fall inside a marker is left out.
    """
    segments = list(segments)
    cuts = _cuts(segments)
    prompt = Prompt()
    position = 0
    for is_text, group in groupby(segments, key=lambda segment: isinstance(segment, str)):
        parts = list(group)
        end = position + sum(len(literal(part)) for part in parts)
        if is_text:
            inside = cuts[bisect_right(cuts, position) : bisect_left(cuts, end)]
            _add_text(prompt, "".join(map(literal, parts)), [cut - position for cut in inside], vocabulary)
        else:
            for part in parts:
                _add_special(prompt, part, vocabulary)
        position = end
    return prompt


def _cuts(segments: Sequence[Segment]) -> list[int]:
    text = "".join(map(literal, segments))
    return list(cut_points(text)) if len(text) > RUN_CHARS else []


def _add_text(prompt: Prompt, text: str, cuts: Sequence[int], vocabulary: Vocabulary) -> None:
    start = 0
    for end in (*cuts, len(text)):
        prompt.token_ids += vocabulary.encode_piece(text[start:end])
        start = end


def _add_special(prompt: Prompt, segment: Segment, vocabulary: Vocabulary) -> None:
    if isinstance(segment, Marker):
        prompt.token_ids.append(vocabulary.marker_ids[segment])
        return
    assert isinstance(segment, Pads)
    prompt.media.append(MediaSpan(offset=len(prompt.token_ids), media=segment.media))
    prompt.token_ids += [vocabulary.marker_ids[Marker.MEDIA_PAD]] * segment.media.num_tokens
