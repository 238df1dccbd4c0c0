"""From the wire to a plan: what cannot be enforced, or not in time, is refused before the engine hears of it."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from protos import attention_pb2 as pb
from services.attention.constraint.constraint import Constraint
from services.attention.constraint.grammar import Grammar, Grammars
from services.attention.constraint.json_schemas import relaxed
from services.attention.constraint.plan import Markers, Plan, Tool, Use
from services.checkpoint.markers import Marker
from services.checkpoint.vocabulary import TokenTable
from services.runtime.errors import InvalidRequest

MAX_TOOLS = 128
MAX_CACHED = 512
MAX_DEPTH = 128
COMPILE_S = 20.0
ANY_OBJECT = {"type": "object"}
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
USES = {pb.TOOL_USE_UNSPECIFIED: Use.NEVER, pb.TOOL_USE_AUTO: Use.AUTO, pb.TOOL_USE_REQUIRED: Use.REQUIRED}


class Constraints:
    """Makes constraints on a thread of its own; keeps the grammars used last. One per process."""

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._markers = Markers.of(table)
        self._pool = ThreadPoolExecutor(1, "grammars")
        self._grammars: Grammars | None = None
        self._cache: OrderedDict[tuple[str, str], Grammar] = OrderedDict()

    @property
    def call_markers(self) -> Sequence[int]:
        """The tokens without which there is no call."""
        return self._markers.section_begin, self._markers.call_begin

    async def make(
        self, wanted: pb.Constraint, token_ids: Sequence[int], num_prompt: int, max_tokens: int
    ) -> Constraint:
        """The constraint of one generation, or InvalidRequest that names the field."""
        loop = asyncio.get_running_loop()
        # Once per process, and no fault of the request's: not part of its time.
        await loop.run_in_executor(self._pool, self._get_grammars)
        work = loop.run_in_executor(
            self._pool, lambda: Constraint(self._plan(wanted), token_ids, num_prompt, max_tokens)
        )
        try:
            # The thread goes on if it takes too long; its own bounds end it.
            return await asyncio.wait_for(asyncio.shield(work), COMPILE_S)
        except TimeoutError:
            work.add_done_callback(lambda done: done.exception())
            raise InvalidRequest(f"the constraint took more than {COMPILE_S:g} s to compile") from None

    def _plan(self, wanted: pb.Constraint) -> Plan:
        if len(wanted.tools) > MAX_TOOLS:
            raise InvalidRequest(f"tools: more than {MAX_TOOLS}", field="tools")
        use = USES[wanted.tool_use]
        if use is Use.REQUIRED and not wanted.tools:
            raise InvalidRequest("tool_choice: demands a tool, but there are no tools", field="tool_choice")
        grammars = self._get_grammars()
        called = wanted.tools if use is not Use.NEVER else []
        return Plan(
            grammars,
            self._markers,
            starts_in_reasoning=wanted.starts_in_reasoning,
            content=self._content(wanted, grammars),
            tools=[Tool(tool.name, self._arguments(tool, grammars)) for tool in called],
            use=use,
            max_calls=wanted.max_tool_calls,
            first_index=wanted.first_call_index,
        )

    def _get_grammars(self) -> Grammars:
        if self._grammars is None:
            self._grammars = Grammars(self._table, self._table.marker_ids[Marker.END])
        return self._grammars

    def _content(self, wanted: pb.Constraint, grammars: Grammars) -> Grammar | None:
        field = wanted.content_field or "constraint.content"
        match wanted.WhichOneof("content"):
            case "json_object" if wanted.json_object:
                return self._json(ANY_OBJECT, grammars, field)
            case "json_schema":
                schema = _object_of(wanted.json_schema, field)
                return self._loose(schema, {}, grammars, field) if wanted.loose else self._json(schema, grammars, field)
            case "regex":
                return self._cached("regex", wanted.regex, lambda: grammars.regex(wanted.regex, field))
            case "grammar":
                return self._cached("lark", wanted.grammar, lambda: grammars.lark(wanted.grammar, field))
            case "choices":
                texts = list(wanted.choices.texts)
                return self._cached("choice", json.dumps(texts), lambda: grammars.choice(texts, field))
        return None

    def _arguments(self, tool: pb.CallableTool, grammars: Grammars) -> Grammar:
        """By the tool's schema, as far as it can be enforced: no tool is refused."""
        field = f"tools.{tool.name}"
        if not tool.parameters_json:
            return self._json(NO_ARGUMENTS, grammars, field)
        try:
            schema = {"type": "object", **_object_of(tool.parameters_json, field)}
        except InvalidRequest:
            schema = ANY_OBJECT
        return self._loose(ANY_OBJECT if tool.loose else schema, ANY_OBJECT, grammars, field)

    def _json(self, schema: dict[str, Any], grammars: Grammars, field: str) -> Grammar:
        return self._cached("json", json.dumps(schema), lambda: grammars.json(schema, field))

    def _loose(self, schema: dict[str, Any], least: dict[str, Any], grammars: Grammars, field: str) -> Grammar:
        """By the schema without what cannot be enforced, or else by `least`."""

        def compile_it() -> Grammar:
            for demanded in (schema, relaxed(schema)):
                try:
                    return grammars.json(demanded, field, loose=True)
                except InvalidRequest:
                    continue
            return grammars.json(least, field)

        return self._cached("loose", json.dumps([schema, least]), compile_it)

    def _cached(self, kind: str, text: str, compile_it: Callable[[], Grammar]) -> Grammar:
        key = kind, text
        if key not in self._cache:
            self._cache[key] = compile_it()
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


def only_bans_calls(wanted: pb.Constraint) -> bool:
    """Whether nothing is demanded but that no tool is called, which needs no state."""
    return wanted.WhichOneof("content") is None and wanted.tool_use == pb.TOOL_USE_UNSPECIFIED


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
