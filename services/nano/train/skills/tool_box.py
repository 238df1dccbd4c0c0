"""Tools that never were: composed at random, with a request in words for each and the call that answers it."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.nano.train.sample import Answer, Json
from services.nano.train.skills.everyday import EVERYDAY
from services.nano.train.skills.words import PARAMETERS, PHRASES, THINGS, VERBS, draw_value

REQUESTS = ("Please {}.", "Can you {}?", "Could you {}?", "I need you to {}.")
BEFORE = ("", "", "Hi! ", "Hello. ", "Hey, ", "I have a question. ")
AFTER = (
    "",
    " Thanks.",
    " Please use the tool.",
    " Use a tool.",
    " Let's use the tool.",
    " I need it now.",
    " Please hurry.",
    " Let's check with the tool.",
    " Let's use the tool for that.",
    " Check it using the tool.",
    " Let's look it up.",
)
SHARE_EVERYDAY = 0.35
# How a parameter is described; {} is its kind.
TOLD = ("the {}", "The {}.", "Name of the {}", "{} to use", "")
OPTIONAL: tuple[tuple[str, Json], ...] = (
    ("unit", {"type": "string", "enum": ["celsius", "fahrenheit"]}),
    ("limit", {"type": "integer", "description": "how many results"}),
    ("verbose", {"type": "boolean"}),
    ("format", {"type": "string", "enum": ["short", "long"]}),
)


@dataclass(frozen=True)
class Tool:
    """A tool: what it does to what, and its parameters by name, with the kind of each. Sorted as declarations are.

    optional     properties that no request speaks of, by name
    description  of the tool, and in which form those of its parameters are, "" for none
    sentences    in which people ask for it, values by kind; none for a tool that is composed
    pairs        in which they ask for it twice, with values 0 and 1; only tools with one parameter have any
    """

    name: str
    verb: str
    thing: str
    parameters: tuple[tuple[str, str], ...]
    optional: tuple[tuple[str, Json], ...] = ()
    description: str = ""
    told: str = "the {}"
    sentences: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()

    def declaration(self) -> Json:
        """As in `tools` of a request."""
        schemas: Json = {name: {"type": "integer" if kind == "number" else "string"} for name, kind in self.parameters}
        for name, kind in self.parameters:
            if name != kind and self.told:
                schemas[name]["description"] = self.told.format(kind)
        schema = {"type": "object", "properties": {**schemas, **dict(self.optional)}, "required": list(schemas)}
        description = self.description or f"{self.verb} the {self.thing}"
        function = {"name": self.name, "description": description, "parameters": schema}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Use:
    """A tool with arguments: what a request asks for."""

    tool: Tool
    arguments: tuple[tuple[str, str | int], ...]

    def request(self) -> str:
        """`book the table for Anna on Monday`: the words of the description, then the values."""
        phrases = [PHRASES[kind].format(value) for kind, value in self.values().items()]
        return " ".join([self.tool.verb, "the", self.tool.thing, *phrases])

    def values(self) -> dict[str, str | int]:
        """The arguments by their kinds."""
        kinds = dict(self.tool.parameters)
        return {kinds[name]: value for name, value in self.arguments}

    def sentence(self, rng: random.Random) -> str:
        """What somebody says who wants this."""
        if self.tool.sentences:
            asked = rng.choice(self.tool.sentences).format(**self.values())
        else:
            asked = rng.choice(REQUESTS).format(self.request())
        # What else is said calls for nothing.
        return f"{rng.choice(BEFORE)}{asked}{rng.choice(AFTER)}" if rng.random() < 0.25 else asked

    def thought(self) -> str:
        """`book_table: person = Anna, day = Monday`."""
        return f"{self.tool.name}: {', '.join(f'{name} = {value}' for name, value in self.arguments)}."

    def call(self, number: int) -> Json:
        """The call as it stands in a message; `number` counts through the conversation."""
        function = {"name": self.tool.name, "arguments": json.dumps(dict(self.arguments), ensure_ascii=False)}
        return {"id": f"functions.{self.tool.name}:{number}", "type": "function", "function": function}


def draw_tool(rng: random.Random, *, verb: str = "", thing: str = "") -> Tool:
    """A composed tool with one or two parameters; one in four has a name that says nothing."""
    verb, thing = verb or rng.choice(VERBS), thing or rng.choice(THINGS)
    kinds = rng.sample(sorted(PARAMETERS), rng.choice((1, 1, 2)))
    named = tuple(sorted((rng.choice(PARAMETERS[kind][0]), kind) for kind in kinds))
    name = f"{verb}_{thing}" if rng.random() < 0.75 else f"tool_{rng.randrange(10, 100)}"
    return Tool(name, verb, thing, named, draw_optional(rng))


def draw_optional(rng: random.Random) -> tuple[tuple[str, Json], ...]:
    """Mostly nothing; else a property that may be left out."""
    return (rng.choice(OPTIONAL),) if rng.random() < 0.15 else ()


def draw_tools(rng: random.Random, count: int) -> list[Tool]:
    """Tools of which no two have a name, or an act and a thing, in common; they may share one of the two."""
    tools = [draw_everyday(rng) if rng.random() < SHARE_EVERYDAY else draw_tool(rng) for _ in range(count)]
    if count > 1 and rng.random() < 0.4 and not tools[0].sentences:
        # What they share must not decide.
        alike = draw_tool(rng, verb=tools[0].verb) if rng.random() < 0.5 else draw_tool(rng, thing=tools[0].thing)
        tools[1] = alike
    distinct = len({tool.name for tool in tools}) == len({(tool.verb, tool.thing) for tool in tools}) == count
    return tools if distinct else draw_tools(rng, count)


def draw_everyday(rng: random.Random) -> Tool:
    """A tool as people declare them: get_weather, send_email."""
    everyday = rng.choice(EVERYDAY)
    named = tuple(sorted((rng.choice(names), kind) for kind, names in everyday.parameters.items()))
    description, told = rng.choice(everyday.descriptions), rng.choice(TOLD)
    verb, thing = everyday.act
    optional = draw_optional(rng)
    name = rng.choice(everyday.names)
    return Tool(name, verb, thing, named, optional, description, told, everyday.sentences, everyday.pairs)


def draw_use(rng: random.Random, tool: Tool) -> Use:
    """Arguments for a tool."""
    return Use(tool, tuple((name, draw_value(rng, kind)) for name, kind in tool.parameters))


def draw_count(rng: random.Random) -> int:
    """How many tools are declared: one to four, mostly few."""
    return rng.choice((1, 1, 2, 2, 2, 3, 3, 4))


def calls_exactly(uses: Sequence[Use]) -> Callable[[Answer], bool]:
    """These calls and no others, with equal arguments, in any order."""
    wanted = sorted((use.tool.name, json.dumps(dict(use.arguments), sort_keys=True)) for use in uses)
    return lambda answer: sorted(map(call_key, answer.tool_calls)) == wanted


def call_key(call: Json) -> tuple[str, str]:
    """Name and arguments of a call in a form that is equal for equal calls."""
    function = call["function"]
    try:
        arguments = json.dumps(json.loads(function["arguments"]), sort_keys=True)
    except ValueError:
        arguments = function["arguments"]
    return function["name"], arguments
