"""Repeating a text and looking up a key: other skills need both, and they are learned fastest in isolation."""

import random
from collections.abc import Callable

from services.nano.train.sample import Answer, Sample
from services.nano.train.skills.drawing_lots import Draw, assistant, user
from services.nano.train.skills.words import (
    ANIMALS,
    CITIES,
    COLOURS,
    DAYS,
    FOODS,
    NAMES,
    PARAMETERS,
    THINGS,
    draw_value,
    made_up,
)

ITEMS = (*NAMES, *CITIES, *DAYS, *COLOURS, *FOODS, *ANIMALS, *THINGS)


def draw_repeat(rng: random.Random) -> Draw:
    """Draw a list to repeat, with or without thoughts."""
    items = [
        rng.choice((rng.choice(ITEMS), made_up(rng), str(rng.randrange(1, 1000)))) for _ in range(rng.randrange(3, 11))
    ]
    said = " ".join(items)
    thinking = rng.random() < 0.3
    messages = [user(f"Repeat: {said}"), assistant(said, f"{said}." if thinking else "")]
    return said, lambda: Sample("repeat", messages, _is(said), thinking=thinking)


def draw_lookup(rng: random.Random) -> Draw:
    """Draw some keys with values, and a question for one of them."""
    kinds = rng.sample(sorted(PARAMETERS), rng.randrange(2, 6))
    values = {rng.choice(PARAMETERS[kind][0]): str(draw_value(rng, kind)) for kind in kinds}
    key = rng.choice(sorted(values))
    facts = ", ".join(f"{name} = {value}" for name, value in values.items())
    thinking = rng.random() < 0.3
    messages = [user(f"{facts}. What is {key}?"), assistant(values[key], f"{key} = {values[key]}." if thinking else "")]
    return f"{facts}/{key}", lambda: Sample("lookup", messages, _is(values[key]), thinking=thinking)


def _is(text: str) -> Callable[[Answer], bool]:
    return lambda answer: not answer.tool_calls and answer.content.strip() == text
