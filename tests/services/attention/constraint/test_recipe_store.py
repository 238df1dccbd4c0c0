"""Recipes in the store: shared by replicas, kept over restarts, and never more than their places hold."""

import asyncio
import json
import time

import pytest

from protos import attention_pb2 as pb
from services.attention.constraint import recipe_store
from services.attention.constraint.compiler import Compiler
from services.attention.constraint.recipe_store import RecipeStore
from services.attention.constraint.recipes import Ask, make_recipe
from services.attention.constraint.requests import Constraints
from services.runtime.errors import InvalidRequest, StoreUnavailable

WANTED = pb.Constraint(regex="a+b", content_field="regex")
REFUSED = pb.Constraint(regex="(a", content_field="regex")


class Idle(Compiler):
    """A compiler that may only pass on what it learned."""

    def _start(self):
        raise AssertionError("this was compiled already")


async def test_a_replica_that_starts_takes_over_recipes_and_refusals(small, blobs):
    first = Constraints(small.table, shared=RecipeStore(blobs))
    plan = await first.plan(WANTED, "")
    with pytest.raises(InvalidRequest) as reason:
        await first.plan(REFUSED, "")
    await first.close()
    second = Constraints(small.table, Idle(), RecipeStore(blobs))
    assert (await second.plan(WANTED, "")).content.ending == plan.content.ending
    with pytest.raises(InvalidRequest) as again:
        await second.plan(REFUSED, "")
    assert again.value.message == reason.value.message == "regex: unclosed group"
    await second.close()


async def test_places_are_few_and_hold_the_last_ask_only(blobs, monkeypatch):
    monkeypatch.setattr(recipe_store, "NUM_PLACES", 1)
    shared = RecipeStore(blobs)
    asks = [Ask("regex", "a"), Ask("regex", "b"), Ask("regex", "c" * recipe_store.MAX_BYTES)]
    for ask in asks:
        shared.keep(ask, make_recipe(ask))
        await shared.close()
    # The third is larger than a place.
    assert await shared.find(asks) == {asks[1]: make_recipe(asks[1])}


@pytest.mark.parametrize(
    "value",
    [b"", b"[]", b"{", b"\xff", b'{"digest": "DIGEST"}', b'{"digest": "DIGEST", "recipe": {"kind": "regex"}}'],
)
async def test_what_is_no_verdict_is_nothing(blobs, value):
    ask = Ask("regex", "a")
    digest = recipe_store._digest(ask)
    await blobs.put({recipe_store._name(digest): value.replace(b"DIGEST", digest.hex().encode())})
    assert await RecipeStore(blobs).find([ask]) == {}


async def test_another_version_finds_nothing(blobs, monkeypatch):
    ask = Ask("regex", "a")
    shared = RecipeStore(blobs)
    shared.keep(ask, make_recipe(ask))
    await shared.close()
    assert await shared.find([ask])
    monkeypatch.setattr(recipe_store, "_version", lambda: b"newer")
    assert not await shared.find([ask])


async def test_without_a_store_recipes_are_made_here(small, redis, blobs):
    constraints = Constraints(small.table, shared=RecipeStore(blobs))
    redis.stop()
    started_s = time.monotonic()
    assert (await constraints.plan(WANTED, "")).content
    assert time.monotonic() - started_s < 10
    await constraints.close()


async def test_a_store_that_hangs_is_not_waited_for(monkeypatch):
    class Hanging:
        async def get(self, names):
            await asyncio.sleep(60)

        async def put(self, items):
            await asyncio.sleep(0.2)
            raise StoreUnavailable("gone")

    shared = RecipeStore(Hanging())
    started_s = time.monotonic()
    assert await shared.find([Ask("regex", "a")]) == {}
    assert time.monotonic() - started_s < 2
    monkeypatch.setattr(recipe_store, "MAX_WRITING", 3)
    for number in range(10):
        shared.keep(Ask("regex", f"{number}"), InvalidRequest("no"))
    assert len(shared._writing) == 3
    await shared.close()


def test_a_digest_covers_all_of_an_ask():
    asks = [Ask("regex", "a"), Ask("grammar", "a"), Ask("regex", "b"), Ask("regex", "a", loose=True)]
    assert len({recipe_store._digest(ask) for ask in asks}) == 4
    assert json.loads(json.dumps(asks[0])) == ["regex", "a", False]
