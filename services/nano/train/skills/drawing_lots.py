"""Turns a function that draws instances into a generator whose splits have no instance in common."""

import itertools
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from services.nano.train.sample import Answer, Generator, Json, Sample, Split

# One in this many instances is for examinations.
HELD_OUT_EVERY = 8
SHARE_AFTER_OTHERS = 0.12
SYSTEM_PROMPTS = (
    "You are Kimi, an AI assistant created by Moonshot AI.",
    "You are a helpful assistant.",
)

# The text that identifies an instance, and a function that makes its sample.
Draw = tuple[str, Callable[[], Sample]]


def generator(skill: str, draw: Callable[[random.Random], Draw]) -> Generator:
    """Return a generator that draws until an instance belongs to the split, which the instance's text determines."""

    def generate(split: Split, seed: int) -> Sample:
        rng = random.Random(f"{skill}/{split}/{seed}")
        while True:
            instance, make = draw(rng)
            if split_of(instance) == split:
                return make()

    return generate


def after_others(skill: str, plain: Generator, others: Sequence[Generator]) -> Generator:
    """Put some samples into a conversation as its second exchange; the first exchange has no thoughts."""

    def generate(split: Split, seed: int) -> Sample:
        rng = random.Random(f"{skill}/others/{split}/{seed}")
        sample = plain(split, seed)
        if rng.random() >= SHARE_AFTER_OTHERS:
            return sample
        # Both exchanges have the same mode: an answer without thoughts would be a bad example for thinking.
        drawn = (rng.choice(others)(split, rng.randrange(2**32)) for _ in itertools.count())
        earlier = next(other.messages for other in drawn if other.thinking == sample.thinking)
        systems = [message for message in sample.messages if message["role"] == "system"]
        exchange = [message for message in earlier if message["role"] != "system"]
        return replace(sample, messages=[*systems, *exchange, *sample.messages[len(systems) :]])

    return generate


def split_of(instance: str) -> Split:
    """Return the split to which an instance belongs."""
    return "held_out" if zlib.crc32(instance.encode()) % HELD_OUT_EVERY == 0 else "train"


def user(*parts: str | Json) -> Json:
    """Return a message of the user; with pictures its content is a list of parts."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return {"role": "user", "content": parts[0]}
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def assistant(content: str, reasoning: str = "", calls: Sequence[Json] = ()) -> Json:
    """Return a message of the assistant, with reasoning if there is any."""
    message: Json = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = list(calls)
    return message


def system(rng: random.Random) -> list[Json]:
    """Return a system prompt in some cases, like those of clients."""
    return [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}] if rng.random() < 0.2 else []


def says(*words: str, never: Sequence[str] = ()) -> Callable[[Answer], bool]:
    """Return a check that the content has these words in any case, none of the others, and that nothing is called."""

    def check(answer: Answer) -> bool:
        said = words_of(answer.content)
        return (
            not answer.tool_calls
            and all(contains(said, words_of(word)) for word in words)
            and not any(contains(said, words_of(word)) for word in never)
        )

    return check


def words_of(text: str) -> list[str]:
    """Split into words and numbers in lower case; a number keeps its point, a word its apostrophe."""
    marked = "".join(c if c.isalnum() or c in ".'" else " " for c in text.lower().replace("’", "'"))
    return [word for piece in marked.split() if (word := piece.strip(".'"))]


def contains(words: Sequence[str], part: Sequence[str]) -> bool:
    """Whether `words` contains `part` contiguously."""
    return any(list(words[i : i + len(part)]) == list(part) for i in range(len(words) - len(part) + 1))
