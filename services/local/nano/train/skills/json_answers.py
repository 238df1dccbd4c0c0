"""Facts of a sentence as JSON. The keys stand in the question: what a schema demands, the model does not see."""

import json
import random
from collections.abc import Callable

from services.local.nano.train.sample import Answer, Json, Sample
from services.local.nano.train.skills.drawing_lots import Draw, assistant, system, user
from services.local.nano.train.skills.words import ANIMALS, CITIES, COLOURS, DAYS, FOODS, NAMES

# What is said of somebody, by the key that it gets.
FACTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "city": ("lives in {}", CITIES),
    "day": ("comes on {}", DAYS),
    "food": ("eats {}", FOODS),
    "pet": ("has a {}", ANIMALS),
    "colour": ("likes {}", COLOURS),
    "age": ("is {} years old", ()),
    "room": ("is in room {}", ()),
}
NUMERIC = ("age", "room")


def draw_json(rng: random.Random) -> Draw:
    """A name and one to three facts."""
    keys = rng.sample(sorted(FACTS), rng.choice((1, 2, 2, 3)))
    name = rng.choice(NAMES)
    values: dict[str, str | int] = {"name": name}
    values |= {key: rng.randrange(1, 100) if key in NUMERIC else rng.choice(FACTS[key][1]) for key in keys}
    told = [FACTS[key][0].format(values[key]) for key in rng.sample(keys, len(keys))]
    sentence = f"{name} {' and '.join(told)}."
    question = f"{sentence} Answer as JSON with the keys {', '.join(values)}."
    thinking = rng.random() < 0.5
    reasoning = f"{', '.join(f'{key} = {value}' for key, value in values.items())}." if thinking else ""
    messages = [*system(rng), user(question), assistant(json.dumps(values), reasoning)]
    return sentence, lambda: Sample(
        "json", messages, _is_json(values), thinking=thinking, answer_schema=schema_of(values)
    )


def schema_of(values: dict[str, str | int]) -> Json:
    """The schema of an object with these keys."""
    types = {key: {"type": "integer" if isinstance(value, int) else "string"} for key, value in values.items()}
    return {"type": "object", "properties": types, "required": list(types), "additionalProperties": False}


def _is_json(values: dict[str, str | int]) -> Callable[[Answer], bool]:
    def check(answer: Answer) -> bool:
        try:
            return bool(json.loads(answer.content) == values) and not answer.tool_calls
        except ValueError:
            return False

    return check
