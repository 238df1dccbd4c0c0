"""Answers under a constraint whose tokens are drawn at random, and what they say."""

import json
from functools import cache

import numpy as np
import pytest

from protos import attention_pb2 as pb
from services.attention.constraint.constraint import Constraint
from services.attention.constraint.recipes import make_recipe
from services.attention.constraint.requests import CONTENT, Constraints, asks_of
from services.checkpoint.answer_form import Place
from services.runtime.errors import InvalidRequest
from services.tokenizer.parser import Parser
from services.tokenizer.parser_options import ParserOptions
from tests.services.tokenizer.declared import declared_tools

NUM_PROMPT = 3
recipe_of = cache(make_recipe)


class Quiet:
    """Forgets what the parser reports, but for what a constraint should make impossible."""

    def __init__(self):
        self.repairs = []

    def call_dropped(self, reason):
        self.repairs.append(reason)

    def name_repaired(self):
        self.repairs.append("name")

    def arguments_invalid(self):
        self.repairs.append("arguments")

    def text_dropped(self):
        self.repairs.append("text")


class Desk:
    """Makes constraints and draws answers under them."""

    def __init__(self, table, vocabulary):
        self.constraints = Constraints(table)
        self.table = table
        self.vocabulary = vocabulary

    def constraint(self, wanted, token_ids, budget):
        return Constraint(self.plan(wanted), token_ids, NUM_PROMPT, NUM_PROMPT + budget)

    def plan(self, wanted):
        """The plan, with its recipes made in this process."""
        asks, recipes = asks_of(wanted), {}
        for key, ask in asks.items():
            try:
                recipes[key] = recipe_of(ask)
            except InvalidRequest as error:
                field = wanted.content_field if key == CONTENT else f"tools.{key}"
                raise InvalidRequest(f"{field}: {error.message}", field=field) from None
        return self.constraints.plan_from(wanted, asks, recipes)

    def least(self, wanted):
        """The smallest budget that is accepted."""
        try:
            self.constraint(wanted, [0] * NUM_PROMPT, 1)
        except InvalidRequest as error:
            assert error.field == "max_new_tokens"
            least = int(str(error).rsplit(" ", 1)[1])
        else:
            return 1
        with pytest.raises(InvalidRequest):
            self.constraint(wanted, [0] * NUM_PROMPT, least - 1)
        return least

    def draw(self, wanted, budget, seed=0, closing=0.3, moving=False):
        """Tokens of one answer; sometimes one that closes something, so that not all answers fill their budget."""
        random = np.random.default_rng(seed)
        token_ids = [0] * NUM_PROMPT
        constraint = self.constraint(wanted, token_ids, budget)
        stops = self.constraints._markers.ends
        while len(token_ids) < NUM_PROMPT + budget and token_ids[-1] not in stops:
            if moving:
                constraint = self.constraint(wanted, token_ids, budget)
            rule = constraint.rule()
            allowed = np.flatnonzero(rule.mask)
            special = allowed[allowed >= len(self.table.ordinary)]
            token_id = int(random.choice(special if len(special) and random.random() < closing else allowed))
            token_ids.append(rule.settle(token_id) if rule.settle else token_id)
        return token_ids[NUM_PROMPT:]

    def parse(self, token_ids, tools=(), reasoning=False):
        """Reasoning, content, calls as (id, name, arguments), and what the parser had to repair."""
        options = ParserOptions(Place.REASONING if reasoning else Place.CONTENT, tools=declared_tools(list(tools)))
        observer = Quiet()
        parser = Parser(self.vocabulary, options, observer)
        parser.feed(token_ids)
        parser.end(truncated=False)
        thought, content, calls = "", "", {}
        for delta in parser.take_deltas():
            match delta.WhichOneof("piece"):
                case "reasoning":
                    thought += delta.reasoning
                case "content":
                    content += delta.content
                case "tool_call_start":
                    calls[delta.tool_call_start.index] = [delta.tool_call_start.id, delta.tool_call_start.name, ""]
                case "tool_call_arguments":
                    calls[delta.tool_call_arguments.index][2] += delta.tool_call_arguments.text
                case "tool_call_end":
                    assert delta.tool_call_end.complete
        return thought, content, list(calls.values()), observer.repairs


def tool(name, parameters=None):
    """As a client declares it."""
    function = {"name": name} if parameters is None else {"name": name, "parameters": parameters}
    return {"type": "function", "function": function}


def callable_tools(tools):
    """As the engine gets them."""
    functions = [one["function"] for one in tools]
    return [
        pb.CallableTool(name=f["name"], parameters_json=json.dumps(f["parameters"]) if "parameters" in f else "")
        for f in functions
    ]


def objects(required=(), **properties):
    """A schema of an object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
