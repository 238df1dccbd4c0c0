"""Saying something again, and telling the value of a key: what other skills are made of, learnt quickest alone."""

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
    """A list to be said again; in instant mode and in thoughts alike."""
    items = [
        rng.choice((rng.choice(ITEMS), made_up(rng), str(rng.randrange(1, 1000)))) for _ in range(rng.randrange(3, 11))
    ]
    said = " ".join(items)
    thinking = rng.random() < 0.3
    messages = [user(f"Repeat: {said}"), assistant(said, f"{said}." if thinking else "")]
    return said, lambda: Sample("repeat", messages, _is(said), thinking=thinking)


def draw_lookup(rng: random.Random) -> Draw:
    """The value of one of some keys."""
    kinds = rng.sample(sorted(PARAMETERS), rng.randrange(2, 6))
    values = {rng.choice(PARAMETERS[kind][0]): str(draw_value(rng, kind)) for kind in kinds}
    key = rng.choice(sorted(values))
    told = ", ".join(f"{name} = {value}" for name, value in values.items())
    thinking = rng.random() < 0.3
    messages = [user(f"{told}. What is {key}?"), assistant(values[key], f"{key} = {values[key]}." if thinking else "")]
    return f"{told}/{key}", lambda: Sample("lookup", messages, _is(values[key]), thinking=thinking)


def _is(text: str) -> Callable[[Answer], bool]:
    return lambda answer: not answer.tool_calls and answer.content.strip() == text
