"""Choosing a tool and its arguments, or none; two calls at once; reading a result."""

import json
import random
from dataclasses import replace

from services.nano.train.sample import Json, Sample
from services.nano.train.skills.drawing_lots import Draw, assistant, says, system, user
from services.nano.train.skills.numbers import draw_arithmetic, draw_compare
from services.nano.train.skills.talk import draw_introduce
from services.nano.train.skills.tool_box import (
    REQUESTS,
    Tool,
    Use,
    calls_exactly,
    draw_count,
    draw_tools,
    draw_use,
)
from services.nano.train.skills.words import CITIES, COLOURS, DAYS, NAMES, made_up

NO_TOOL = "I can't do that: I have no tool for it."
RESULT_WORDS = {
    "state": ("ready", "late", "full", "free", "lost"),
    "owner": NAMES,
    "day": DAYS,
    "colour": COLOURS,
    "condition": ("sunny", "rainy", "cloudy", "windy", "snowy", "foggy"),
    "weather": ("sunny", "rainy", "cloudy", "windy", "snowy", "foggy"),
    "status": ("ok", "done", "failed", "open", "closed", "pending"),
    "name": NAMES,
    "city": CITIES,
}
RESULT_NUMBERS = ("price", "room", "count", "temperature", "humidity")


def draw_call(rng: random.Random) -> Draw:
    """Draw a request for one of the tools."""
    tools = draw_tools(rng, draw_count(rng))
    use = draw_use(rng, rng.choice(tools))
    thinking = rng.random() < 0.5
    reasoning = use.thought() if thinking else ""
    messages = [*system(rng), user(use.sentence(rng)), assistant("", reasoning, [use.call(0)])]
    return use.thought(), lambda: Sample("tools_call", messages, calls_exactly([use]), _declared(tools), thinking)


def draw_none(rng: random.Random) -> Draw:
    """Draw a request for which no tool fits, or a question that needs none."""
    if rng.random() < 0.3:
        instance, make = rng.choice((draw_compare, draw_arithmetic, draw_introduce))(rng)
        declared = _declared(draw_tools(rng, draw_count(rng)))
        return instance, lambda: replace(make(), skill="tools_none", tools=declared)
    *tools, missing = draw_tools(rng, draw_count(rng) + 1)
    use = draw_use(rng, missing)
    thinking = rng.random() < 0.5
    reasoning = f"No tool can {missing.verb} the {missing.thing}." if thinking else ""
    messages = [*system(rng), user(use.sentence(rng)), assistant(NO_TOOL, reasoning)]
    return use.thought(), lambda: Sample("tools_none", messages, says("can't"), _declared(tools), thinking)


def draw_parallel(rng: random.Random) -> Draw:
    """Draw two requests in one sentence: two tools, or one tool twice."""
    tools = draw_tools(rng, rng.choice((1, 2, 2, 3)))
    chosen = rng.sample(tools, 2) if len(tools) > 1 and rng.random() < 0.6 else [rng.choice(tools)] * 2
    first, second = (draw_use(rng, tool) for tool in chosen)
    if first == second:
        return draw_parallel(rng)
    asked = ask_both(rng, first, second)
    thinking = rng.random() < 0.5
    reasoning = f"{first.thought()} {second.thought()}" if thinking else ""
    messages = [
        *system(rng),
        user(asked),
        assistant("", reasoning, [first.call(0), second.call(1)]),
    ]
    check = calls_exactly([first, second])
    instance = f"{first.thought()} {second.thought()}"
    return instance, lambda: Sample("tools_parallel", messages, check, _declared(tools), thinking)


def draw_result(rng: random.Random) -> Draw:
    """Draw the answer after a call, which repeats the result."""
    tools = draw_tools(rng, rng.choice((1, 1, 2)))
    use = draw_use(rng, rng.choice(tools))
    keys = rng.sample(sorted(RESULT_WORDS), rng.choice((1, 1, 2)))
    result: dict[str, str | int] = {key: _result_word(rng, key) for key in keys}
    if rng.random() < 0.5:
        result[rng.choice(RESULT_NUMBERS)] = rng.randrange(1, 100)
    plain = rng.random() < 0.25
    words = ", ".join(f"{value}" if plain else f"{key} is {value}" for key, value in result.items())
    thinking = rng.random() < 0.5
    messages = [
        *system(rng),
        user(use.sentence(rng)),
        assistant("", use.thought() if thinking else "", [use.call(0)]),
        returned(use, 0, words if plain else json.dumps(result, ensure_ascii=False)),
        assistant(f"The {use.tool.thing}: {words}.", "The result is here." if thinking else ""),
    ]
    check = says(*words.split(", "))
    instance = f"{use.thought()}/{words}"
    return instance, lambda: Sample("tools_result", messages, check, _declared(tools), thinking)


def _result_word(rng: random.Random, key: str) -> str:
    """Sometimes return an unusual word for the key, or a capital, so that the result must be read."""
    word = made_up(rng) if rng.random() < 0.15 else rng.choice(RESULT_WORDS[key])
    return word.capitalize() if rng.random() < 0.25 else word


def returned(use: Use, number: int, result: str) -> Json:
    """Return the message with a call's result."""
    return {"role": "tool", "tool_call_id": f"functions.{use.tool.name}:{number}", "content": result}


def ask_both(rng: random.Random, first: Use, second: Use) -> str:
    """Return two requests in one sentence, or in two."""
    if first.tool == second.tool and first.tool.pairs and rng.random() < 0.7:
        return rng.choice(first.tool.pairs).format(*(next(iter(use.values().values())) for use in (first, second)))
    if not first.tool.sentences and not second.tool.sentences and rng.random() < 0.7:
        return rng.choice(REQUESTS).format(f"{first.request()} and {second.request()}")
    return f"{first.sentence(rng)} {second.sentence(rng)}"


def _declared(tools: list[Tool]) -> list[Json]:
    return [tool.declaration() for tool in tools]
