"""Randomly composed tools, each with a request in words and the call that answers it."""

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
# Descriptions of a parameter; {} is its kind.
PARAMETER_TEXTS = ("the {}", "The {}.", "Name of the {}", "{} to use", "")
OPTIONAL: tuple[tuple[str, Json], ...] = (
    ("unit", {"type": "string", "enum": ["celsius", "fahrenheit"]}),
    ("limit", {"type": "integer", "description": "how many results"}),
    ("verbose", {"type": "boolean"}),
    ("format", {"type": "string", "enum": ["short", "long"]}),
)


@dataclass(frozen=True)
class Tool:
    """A tool: verb and thing, and its parameters by name with the kind of each, sorted as in declarations.

    optional        properties that no request mentions, by name
    description     description of the tool
    parameter_text  description of each parameter; {} is its kind
    sentences       requests with placeholders for values by kind; none for a composed tool
    pairs           requests for two calls, with values 0 and 1; only tools with one parameter have any
    """

    name: str
    verb: str
    thing: str
    parameters: tuple[tuple[str, str], ...]
    optional: tuple[tuple[str, Json], ...] = ()
    description: str = ""
    parameter_text: str = "the {}"
    sentences: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()

    def declaration(self) -> Json:
        """As in `tools` of a request."""
        schemas: Json = {name: {"type": "integer" if kind == "number" else "string"} for name, kind in self.parameters}
        for name, kind in self.parameters:
            if name != kind and self.parameter_text:
                schemas[name]["description"] = self.parameter_text.format(kind)
        schema = {"type": "object", "properties": {**schemas, **dict(self.optional)}, "required": list(schemas)}
        description = self.description or f"{self.verb} the {self.thing}"
        function = {"name": self.name, "description": description, "parameters": schema}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Use:
    """A tool with arguments, the content of a request."""

    tool: Tool
    arguments: tuple[tuple[str, str | int], ...]

    def request(self) -> str:
        """Return the words of the description, then the values: `book the table for Anna on Monday`."""
        phrases = [PHRASES[kind].format(value) for kind, value in self.values().items()]
        return " ".join([self.tool.verb, "the", self.tool.thing, *phrases])

    def values(self) -> dict[str, str | int]:
        """Return the arguments by kind."""
        kinds = dict(self.tool.parameters)
        return {kinds[name]: value for name, value in self.arguments}

    def sentence(self, rng: random.Random) -> str:
        """Return a sentence that requests this."""
        if self.tool.sentences:
            asked = rng.choice(self.tool.sentences).format(**self.values())
        else:
            asked = rng.choice(REQUESTS).format(self.request())
        # The other sentences need no call.
        return f"{rng.choice(BEFORE)}{asked}{rng.choice(AFTER)}" if rng.random() < 0.25 else asked

    def thought(self) -> str:
        """`book_table: person = Anna, day = Monday`."""
        return f"{self.tool.name}: {', '.join(f'{name} = {value}' for name, value in self.arguments)}."

    def call(self, number: int) -> Json:
        """Return the call in the form of a message; `number` counts the calls of the conversation."""
        function = {"name": self.tool.name, "arguments": json.dumps(dict(self.arguments), ensure_ascii=False)}
        return {"id": f"functions.{self.tool.name}:{number}", "type": "function", "function": function}


def draw_tool(rng: random.Random, *, verb: str = "", thing: str = "") -> Tool:
    """Draw a composed tool with one or two parameters; one in four has a meaningless name."""
    verb, thing = verb or rng.choice(VERBS), thing or rng.choice(THINGS)
    kinds = rng.sample(sorted(PARAMETERS), rng.choice((1, 1, 2)))
    named = tuple(sorted((rng.choice(PARAMETERS[kind][0]), kind) for kind in kinds))
    name = f"{verb}_{thing}" if rng.random() < 0.75 else f"tool_{rng.randrange(10, 100)}"
    return Tool(name, verb, thing, named, draw_optional(rng))


def draw_optional(rng: random.Random) -> tuple[tuple[str, Json], ...]:
    """Draw an optional property in some cases."""
    return (rng.choice(OPTIONAL),) if rng.random() < 0.15 else ()


def draw_tools(rng: random.Random, count: int) -> list[Tool]:
    """Draw tools with different names and different acts or things; two tools may share an act or a thing."""
    tools = [draw_everyday(rng) if rng.random() < SHARE_EVERYDAY else draw_tool(rng) for _ in range(count)]
    if count > 1 and rng.random() < 0.4 and not tools[0].sentences:
        # The shared part must not suffice to choose.
        alike = draw_tool(rng, verb=tools[0].verb) if rng.random() < 0.5 else draw_tool(rng, thing=tools[0].thing)
        tools[1] = alike
    distinct = len({tool.name for tool in tools}) == len({(tool.verb, tool.thing) for tool in tools}) == count
    return tools if distinct else draw_tools(rng, count)


def draw_everyday(rng: random.Random) -> Tool:
    """Draw a tool as in real use: get_weather, send_email."""
    everyday = rng.choice(EVERYDAY)
    named = tuple(sorted((rng.choice(names), kind) for kind, names in everyday.parameters.items()))
    description, parameter_text = rng.choice(everyday.descriptions), rng.choice(PARAMETER_TEXTS)
    verb, thing = everyday.act
    optional = draw_optional(rng)
    name = rng.choice(everyday.names)
    return Tool(name, verb, thing, named, optional, description, parameter_text, everyday.sentences, everyday.pairs)


def draw_use(rng: random.Random, tool: Tool) -> Use:
    """Draw arguments for a tool."""
    return Use(tool, tuple((name, draw_value(rng, kind)) for name, kind in tool.parameters))


def draw_count(rng: random.Random) -> int:
    """Draw the number of declared tools: one to four, with small numbers more likely."""
    return rng.choice((1, 1, 2, 2, 2, 3, 3, 4))


def calls_exactly(uses: Sequence[Use]) -> Callable[[Answer], bool]:
    """Return a check for exactly these calls, with equal arguments, in any order."""
    wanted = sorted((use.tool.name, json.dumps(dict(use.arguments), sort_keys=True)) for use in uses)
    return lambda answer: sorted(map(call_key, answer.tool_calls)) == wanted


def call_key(call: Json) -> tuple[str, str]:
    """Return name and arguments of a call in a canonical form."""
    function = call["function"]
    try:
        arguments = json.dumps(json.loads(function["arguments"]), sort_keys=True)
    except ValueError:
        arguments = function["arguments"]
    return function["name"], arguments
