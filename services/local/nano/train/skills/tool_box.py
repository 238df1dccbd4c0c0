"""Tools that never were: composed at random, with a request in words for each and the call that answers it."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.local.nano.train.sample import Answer, Json
from services.local.nano.train.skills.words import PARAMETERS, PHRASES, THINGS, VERBS


@dataclass(frozen=True)
class Tool:
    """A tool: what it does to what, and its parameters by name, with the kind of each. Sorted as declarations are."""

    name: str
    verb: str
    thing: str
    parameters: tuple[tuple[str, str], ...]

    def declaration(self) -> Json:
        """As in `tools` of a request."""
        schemas = {name: {"type": "integer" if kind == "number" else "string"} for name, kind in self.parameters}
        for name, kind in self.parameters:
            if name != kind:
                schemas[name]["description"] = f"the {kind}"
        schema = {"type": "object", "properties": schemas, "required": list(schemas)}
        function = {"name": self.name, "description": f"{self.verb} the {self.thing}", "parameters": schema}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Use:
    """A tool with arguments: what a request asks for."""

    tool: Tool
    arguments: tuple[tuple[str, str | int], ...]

    def request(self) -> str:
        """`book the table for Anna on Monday`: the words of the description, then the values."""
        kinds = dict(self.tool.parameters)
        phrases = [PHRASES[kinds[name]].format(value) for name, value in self.arguments]
        return " ".join([self.tool.verb, "the", self.tool.thing, *phrases])

    def thought(self) -> str:
        """`book_table: person = Anna, day = Monday`."""
        return f"{self.tool.name}: {', '.join(f'{name} = {value}' for name, value in self.arguments)}."

    def call(self, number: int) -> Json:
        """The call as it stands in a message; `number` counts through the conversation."""
        function = {"name": self.tool.name, "arguments": json.dumps(dict(self.arguments))}
        return {"id": f"functions.{self.tool.name}:{number}", "type": "function", "function": function}


def draw_tool(rng: random.Random, *, verb: str = "", thing: str = "") -> Tool:
    """One tool with one or two parameters; one in four has a name that says nothing."""
    verb, thing = verb or rng.choice(VERBS), thing or rng.choice(THINGS)
    kinds = rng.sample(sorted(PARAMETERS), rng.choice((1, 1, 2)))
    named = tuple(sorted((rng.choice(PARAMETERS[kind][0]), kind) for kind in kinds))
    name = f"{verb}_{thing}" if rng.random() < 0.75 else f"tool_{rng.randrange(10, 100)}"
    return Tool(name, verb, thing, named)


def draw_tools(rng: random.Random, count: int) -> list[Tool]:
    """Tools of which no two have a name, or an act and a thing, in common; they may share one of the two."""
    tools = [draw_tool(rng) for _ in range(count)]
    if count > 1 and rng.random() < 0.4:
        # What they share must not decide.
        alike = draw_tool(rng, verb=tools[0].verb) if rng.random() < 0.5 else draw_tool(rng, thing=tools[0].thing)
        tools[1] = alike
    distinct = len({tool.name for tool in tools}) == len({(tool.verb, tool.thing) for tool in tools}) == count
    return tools if distinct else draw_tools(rng, count)


def draw_use(rng: random.Random, tool: Tool) -> Use:
    """Arguments for a tool."""
    return Use(tool, tuple((name, draw_value(rng, kind)) for name, kind in tool.parameters))


def draw_value(rng: random.Random, kind: str) -> str | int:
    """A value for a parameter of this kind."""
    return rng.randrange(1, 100) if kind == "number" else rng.choice(PARAMETERS[kind][1])


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
