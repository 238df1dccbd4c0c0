"""Facts of a sentence as JSON. The question names the keys, because the model does not see the schema."""

import json
import random
from collections.abc import Callable

from services.nano.train.sample import Answer, Json, Sample
from services.nano.train.skills.drawing_lots import Draw, assistant, system, user
from services.nano.train.skills.words import draw_value

# Facts about a person: key -> sentence and kind of value.
FACTS: dict[str, tuple[str, str]] = {
    "city": ("lives in {}", "city"),
    "day": ("comes on {}", "day"),
    "food": ("eats {}", "food"),
    "pet": ("has a {}", "animal"),
    "colour": ("likes {}", "colour"),
    "age": ("is {} years old", "number"),
    "room": ("is in room {}", "number"),
}

QUESTIONS = (
    "{sentence} Answer as JSON with the keys {keys}.",
    "{sentence} Give me JSON with {keys}.",
    "Extract {keys} as JSON: {sentence}",
    "Return a JSON object with the keys {keys}. {sentence}",
)


def draw_json(rng: random.Random) -> Draw:
    """Draw a name and one to three facts."""
    keys = rng.sample(sorted(FACTS), rng.choice((1, 2, 2, 3)))
    name = draw_value(rng, "person")
    values: dict[str, str | int] = {"name": name}
    values |= {key: draw_value(rng, FACTS[key][1]) for key in keys}
    facts = [FACTS[key][0].format(values[key]) for key in rng.sample(keys, len(keys))]
    sentence = f"{name} {' and '.join(facts)}."
    question = rng.choice(QUESTIONS).format(sentence=sentence, keys=", ".join(values))
    thinking = rng.random() < 0.5
    reasoning = f"{', '.join(f'{key} = {value}' for key, value in values.items())}." if thinking else ""
    messages = [*system(rng), user(question), assistant(json.dumps(values, ensure_ascii=False), reasoning)]
    return sentence, lambda: Sample(
        "json", messages, _is_json(values), thinking=thinking, answer_schema=schema_of(values)
    )


def schema_of(values: dict[str, str | int]) -> Json:
    """Return the schema of an object with these keys."""
    types = {key: {"type": "integer" if isinstance(value, int) else "string"} for key, value in values.items()}
    return {"type": "object", "properties": types, "required": list(types), "additionalProperties": False}


def _is_json(values: dict[str, str | int]) -> Callable[[Answer], bool]:
    def check(answer: Answer) -> bool:
        try:
            return bool(json.loads(answer.content) == values) and not answer.tool_calls
        except ValueError:
            return False

    return check
