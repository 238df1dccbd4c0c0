"""Generators of the skills that Nano is taught."""

from collections.abc import Iterator

from services.nano.train.sample import Generator, Json, Sample, Split
from services.nano.train.skills.copying import draw_lookup, draw_repeat
from services.nano.train.skills.drawing_lots import after_others, generator
from services.nano.train.skills.images import draw_image, draw_read, draw_two_images
from services.nano.train.skills.json_answers import draw_json
from services.nano.train.skills.numbers import draw_arithmetic, draw_compare, draw_count
from services.nano.train.skills.recall import draw_forgotten, draw_random, draw_recall
from services.nano.train.skills.talk import draw_decline, draw_introduce
from services.nano.train.skills.tool_loop import draw_loop
from services.nano.train.skills.tools import draw_call, draw_none, draw_parallel, draw_result
from services.nano.train.skills.videos import draw_video
from services.tokenizer.declaration import declare

_PLAIN: dict[str, Generator] = {
    skill: generator(skill, draw)
    for skill, draw in {
        "compare": draw_compare,
        "arithmetic": draw_arithmetic,
        "count": draw_count,
        "introduce": draw_introduce,
        "decline": draw_decline,
        "random": draw_random,
        "recall": draw_recall,
        "forgotten": draw_forgotten,
        "tools_call": draw_call,
        "tools_none": draw_none,
        "tools_parallel": draw_parallel,
        "tools_result": draw_result,
        "tools_loop": draw_loop,
        "json": draw_json,
        "image": draw_image,
        "read": draw_read,
        "two_images": draw_two_images,
        "video": draw_video,
        "repeat": draw_repeat,
        "lookup": draw_lookup,
    }.items()
}
# Skills that also occur as the second exchange of a conversation, after one of another skill.
_CHAT = ("compare", "arithmetic", "count", "introduce", "decline")
_SECOND = (*_CHAT, "tools_call", "tools_none", "json", "image")
GENERATORS = _PLAIN | {skill: after_others(skill, _PLAIN[skill], [_PLAIN[s] for s in _CHAT]) for skill in _SECOND}


def generate(skill: str, split: Split, seed: int) -> Sample:
    """Return the sample of a skill with this seed; equal seeds give equal samples."""
    return GENERATORS[skill](split, seed)


def texts(split: Split, num_samples: int) -> Iterator[str]:
    """Yield all text of the first samples of every skill, tool declarations included, to train a vocabulary."""
    for skill in GENERATORS:
        for seed in range(num_samples):
            sample = generate(skill, split, seed)
            yield declare(sample.tools)
            for message in sample.messages:
                yield from _texts(message)


def _texts(message: Json) -> Iterator[str]:
    content = message["content"]
    yield from [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]
    yield message.get("reasoning_content", "")
    for call in message.get("tool_calls", ()):
        yield call["id"]
        yield call["function"]["arguments"]
