"""From the wire to a plan: what cannot be enforced, or not in time, is refused before the engine hears of it."""

import asyncio
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from protos import attention_pb2 as pb
from services.attention.constraint.compiler import Compiler
from services.attention.constraint.constraint import Constraint
from services.attention.constraint.grammar import Grammar, Grammars
from services.attention.constraint.plan import AnswerPlan, CallableTool, MarkerIds, Use
from services.attention.constraint.recipe_store import RecipeStore
from services.attention.constraint.recipes import Ask, Recipe
from services.attention.constraint.restrictions import Restrictions
from services.checkpoint.markers import Marker
from services.checkpoint.vocabulary import TokenTable
from services.runtime.errors import InvalidRequest, Overloaded

MAX_TOOLS = 128
MAX_CACHED = 512
MAX_DEPTH = 128
NUM_THREADS = 2
NICENESS = 10
QUEUE_S = 20.0
RETRY_S = 5.0
ANY_OBJECT = '{"type": "object"}'
NO_ARGUMENTS = '{"type": "object", "properties": {}, "additionalProperties": false}'
USES = {pb.TOOL_USE_UNSPECIFIED: Use.NEVER, pb.TOOL_USE_AUTO: Use.AUTO, pb.TOOL_USE_REQUIRED: Use.REQUIRED}
CONTENT = ""  # the key of the content beside the names of tools


class Constraints:
    """Makes constraints beside the engine; keeps the grammars used last. One per process.

    shared  recipes of all replicas, if there is a store for them
    """

    def __init__(self, table: TokenTable, compiler: Compiler | None = None, shared: RecipeStore | None = None) -> None:
        self._table = table
        self._shared = shared
        self._markers = MarkerIds(table)
        self.restrictions = Restrictions(table, self._markers)
        self._compiler = compiler or Compiler()
        self._pool = ThreadPoolExecutor(NUM_THREADS, "grammars", _be_nice)
        self._lock = threading.Lock()
        self._grammars: Grammars | None = None
        self._cache: OrderedDict[Ask, Grammar] = OrderedDict()

    @property
    def call_markers(self) -> Sequence[int]:
        """The tokens without which there is no call."""
        return self._markers.ids[Marker.SECTION_BEGIN], self._markers.ids[Marker.CALL_BEGIN]

    async def plan(self, wanted: pb.Constraint, tenant: str) -> AnswerPlan:
        """What one answer must look like. Raises InvalidRequest that names the field, Overloaded if too many wait."""
        asks = asks_of(wanted)
        unknown = await self._look_up(asks.values()) if self._shared else set()
        work: dict[str, asyncio.Future[Recipe]] = {}
        for key, ask in asks.items():
            work[key] = asyncio.wrap_future(self._compiler.recipe(ask, tenant))
            work[key].add_done_callback(partial(self._settled, ask, ask in unknown))
        recipes: dict[str, Recipe] = {}
        for key, recipe in work.items():
            try:
                # Others may wait for the same recipe: it is not cancelled with this request.
                recipes[key] = await asyncio.wait_for(asyncio.shield(recipe), QUEUE_S)
            except InvalidRequest as error:
                field = _field(wanted, key)
                raise InvalidRequest(f"{field}: {error.message}", field=field) from None
            except TimeoutError:
                raise Overloaded("too many grammars wait to be compiled", retry_after_s=RETRY_S) from None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self.plan_from, wanted, asks, recipes)

    async def _look_up(self, asks: Iterable[Ask]) -> set[Ask]:
        """Take over what other replicas know, and return the asks that are still unknown."""
        assert self._shared is not None
        unknown = {ask for ask in asks if not self._compiler.knows(ask)}
        found = await self._shared.find(list(unknown)) if unknown else {}
        for ask, verdict in found.items():
            self._compiler.learn(ask, verdict)
        return unknown - found.keys()

    def _settled(self, ask: Ask, is_new: bool, future: "asyncio.Future[Recipe]") -> None:
        """Share a new verdict. One refusal is enough for a request: those of its other forms are read here only."""
        if future.cancelled():
            return
        error = future.exception()
        if self._shared and is_new and (error is None or isinstance(error, InvalidRequest)):
            self._shared.keep(ask, error or future.result())

    def plan_from(self, wanted: pb.Constraint, asks: Mapping[str, Ask], recipes: Mapping[str, Recipe]) -> AnswerPlan:
        """The plan, once the recipes of its forms are there."""
        grammars = self._get_grammars()
        made = {key: self._grammar(asks[key], recipe, grammars) for key, recipe in recipes.items()}
        left_out = [f"{_field(wanted, key)}: {one}" for key, recipe in recipes.items() for one in recipe.left_out]
        return AnswerPlan(
            grammars,
            self._markers,
            starts_in_reasoning=wanted.starts_in_reasoning,
            content=made.get(CONTENT),
            tools=[CallableTool(name, grammar) for name, grammar in made.items() if name != CONTENT],
            use=USES[wanted.tool_use],
            max_calls=wanted.max_tool_calls,
            first_index=wanted.first_call_index,
            left_out=left_out,
        )

    async def start(
        self, plan: AnswerPlan, token_ids: Sequence[int], num_prompt: int, max_tokens: int, budget_field: str = ""
    ) -> Constraint:
        """The constraint of one generation; InvalidRequest as `Constraint` says."""
        field = budget_field or "max_new_tokens"
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, Constraint, plan, token_ids, num_prompt, max_tokens, field)

    async def close(self) -> None:
        """End the threads and processes that compile, and finish writing what is shared."""
        await asyncio.to_thread(self._compiler.close)
        if self._shared:
            await self._shared.close()
        self._pool.shutdown(wait=False)

    def _get_grammars(self) -> Grammars:
        with self._lock:
            if self._grammars is None:
                self._grammars = Grammars(self._table, self._markers.end)
            return self._grammars

    def _grammar(self, ask: Ask, recipe: Recipe, grammars: Grammars) -> Grammar:
        with self._lock:
            if ask in self._cache:
                self._cache.move_to_end(ask)
                return self._cache[ask]
        made = grammars.grammar(recipe)
        with self._lock:
            self._cache[ask] = made
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return made


def _be_nice() -> None:
    """Let the engine's threads go first: on Linux every thread has a niceness of its own."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def asks_of(wanted: pb.Constraint) -> dict[str, Ask]:
    """The forms that must be compiled: of the tools by their names, and of the content."""
    if len(wanted.tools) > MAX_TOOLS:
        raise InvalidRequest(f"tools: more than {MAX_TOOLS}", field="tools")
    use = USES[wanted.tool_use]
    if use is Use.REQUIRED and not wanted.tools:
        raise InvalidRequest("tool_choice: demands a tool, but there are no tools", field="tool_choice")
    asks = {tool.name: _arguments(tool) for tool in (wanted.tools if use is not Use.NEVER else ())}
    content = _content(wanted)
    return {CONTENT: content, **asks} if content else asks


def only_bans_calls(wanted: pb.Constraint) -> bool:
    """Whether nothing is demanded but that no tool is called, which needs no state."""
    return wanted.WhichOneof("content") is None and wanted.tool_use == pb.TOOL_USE_UNSPECIFIED


def _content(wanted: pb.Constraint) -> Ask | None:
    match wanted.WhichOneof("content"):
        case "json_object" if wanted.json_object:
            return Ask("json", ANY_OBJECT)
        case "json_schema":
            schema = _object_of(wanted.json_schema, _field(wanted, CONTENT))
            return Ask("json", json.dumps(schema), wanted.loose)
        case "choices":
            return Ask("choice", json.dumps(list(wanted.choices.texts)))
        case "regex" | "grammar" | "structural_tag" as name:
            return Ask(name, getattr(wanted, name), wanted.loose)
    return None


def _arguments(tool: pb.CallableTool) -> Ask:
    """By the tool's schema, as far as it can be enforced."""
    if not tool.parameters_json:
        return Ask("json", NO_ARGUMENTS)
    if tool.loose:
        return Ask("json", ANY_OBJECT)
    schema = _object_of(tool.parameters_json, f"tools.{tool.name}")
    return Ask("json", json.dumps({"type": "object", **schema}), loose=True)


def _field(wanted: pb.Constraint, key: str) -> str:
    """What the client calls the form of the content, or of a tool."""
    return f"tools.{key}" if key != CONTENT else wanted.content_field or "constraint.content"


def _object_of(text: str, field: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{field}: not JSON: {error}", field=field) from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{field}: expected an object", field=field)
    layer: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        layer = [inner for one in layer for inner in (one.values() if isinstance(one, dict) else one)]
        layer = [inner for inner in layer if isinstance(inner, dict | list)]
        if not layer:
            return value
    raise InvalidRequest(f"{field}: more than {MAX_DEPTH} levels deep", field=field)
