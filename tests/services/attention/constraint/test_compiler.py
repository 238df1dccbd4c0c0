"""Recipes come from processes that end with a hostile grammar; nobody waits for another's."""

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from protos import attention_pb2 as pb
from services.attention.constraint import compile_child, fair_queue
from services.attention.constraint import compiler as compilers
from services.attention.constraint.compile_child import Fork, answer
from services.attention.constraint.compiler import Compiler
from services.attention.constraint.fair_queue import FairQueue
from services.attention.constraint.recipes import Ask, Recipe
from services.attention.constraint.requests import Constraints
from services.runtime.errors import InvalidRequest, MoonshardError, Overloaded, Unavailable
from tests.services.attention.constraint.constraining import objects


def ask_for(number, schema=None):
    return Ask("json", json.dumps(schema or objects(["a"], a={"type": "integer", "minimum": number})))


def slow(number):
    """A schema whose many parts take about a second."""
    schema = {"type": "string", "maxLength": number + 1}
    for _ in range(7):
        schema = {
            "anyOf": [{"type": "array", "items": schema}, {"type": "object", "properties": {"a": schema, "b": schema}}]
        }
    return ask_for(0, schema)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(compilers, "QUICK_S", 0.1)
    monkeypatch.setattr(compilers, "SLOW_S", 0.2)


@pytest.fixture
def compiler(impatient):
    compiler = Compiler()
    yield compiler
    compiler.close()


def test_a_recipe_comes_from_another_process_and_is_kept(compiler):
    recipe = compiler.recipe(ask_for(1), "alice").result(20)
    assert recipe.ending == '{"a":1}'
    started = time.monotonic()
    assert compiler.recipe(ask_for(1), "bob").result(20) is recipe
    assert time.monotonic() - started < 0.01


def test_a_refusal_is_kept_and_is_an_error_of_its_own_for_everyone(compiler):
    errors = []
    for _ in range(2):
        with pytest.raises(InvalidRequest) as caught:
            compiler.recipe(Ask("regex", "(a"), "alice").result(20)
        errors.append(caught.value)
    assert errors[0].message == errors[1].message == "unclosed group"
    assert errors[0] is not errors[1]


@pytest.mark.slow
def test_a_hostile_grammar_ends_with_its_process_and_others_go_on(compiler):
    hostile = [compiler.recipe(slow(number), "mallory") for number in range(5)]
    for number in range(20):
        assert compiler.recipe(ask_for(number), "alice").result(60)
    with pytest.raises(InvalidRequest, match=r"more than 0\.2 s of computing"):
        hostile[0].result(120)
    assert compiler.recipe(ask_for(100), "mallory").result(60)


def test_the_process_answers_line_by_line_and_ends_with_its_input():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "services.attention.constraint.compile_child", "0.5", "1"]
    asks = [Ask("regex", "ab"), Ask("regex", "["), slow(1), Ask("regex", "cd")]
    lines = "".join(json.dumps(ask) + "\n" for ask in asks)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, env=environment, timeout=60, check=True)
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert Recipe.load(replies[0]["recipe"]).ending == "ab"
    assert replies[1]["refusal"] == "unclosed character class"
    assert replies[2] == {"end": "time"}
    assert all(0 <= reply["computed_s"] < 0.5 for reply in (replies[0], replies[1], replies[3]))
    assert Recipe.load(replies[3]["recipe"]).ending == "cd"
    assert not done.stderr


def test_what_is_too_deep_is_refused():
    for depth, why in ((400, "recursion limit"), (20_000, "too large")):
        deep = '{"items": ' * depth + "{}" + "}" * depth
        assert why in answer(Ask("json", deep))["refusal"]


def test_a_process_that_dies_is_started_again():
    child = compilers._Child(5, 0)
    assert isinstance(child.ask(ask_for(1)), Recipe)
    child._process.kill()
    child._process.wait()
    assert child.ask(ask_for(2)) is None
    assert isinstance(child.ask(ask_for(2)), Recipe)
    child.close()
    child.close()


def test_a_process_that_is_starved_is_ended_with_its_fork(monkeypatch):
    monkeypatch.setattr(compilers, "WALL_S", 0.2)
    child = compilers._Child(60, 0)
    assert child.ask(slow(4)) is None
    assert child._process is None


@pytest.mark.parametrize(
    "reply, kind", [('{"end": "-6"}', InvalidRequest), ('{"end": "time"}', type(None)), ("", type(None))]
)
def test_every_end_of_the_work_is_a_verdict(monkeypatch, reply, kind):
    script = f"import sys; sys.stdin.readline(); print({reply!r})" if reply else ""
    monkeypatch.setattr(
        compilers,
        "_start",
        lambda *_: subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True),
    )
    child = compilers._Child(5, 0)
    assert isinstance(child.ask(ask_for(1)), kind)
    child.close()


def test_a_process_that_does_not_start_is_no_fault_of_the_ask(compiler, monkeypatch):
    def fail(*_):
        raise OSError("no more processes")

    monkeypatch.setattr(compilers, "_start", fail)
    with pytest.raises(MoonshardError, match="no more processes"):
        compiler.recipe(ask_for(1), "").result(10)
    assert not compiler._verdicts


def test_slow_asks_have_a_bound_of_their_own(compiler, monkeypatch):
    def full(*_):
        raise Overloaded("full", retry_after_s=1.0)

    monkeypatch.setattr(compiler._slow, "put", full)
    with pytest.raises(Overloaded):
        compiler.recipe(slow(3), "").result(20)


def test_the_cache_is_bounded(compiler, monkeypatch):
    monkeypatch.setattr(compilers, "MAX_CACHED", 3)
    for number in range(5):
        compiler.recipe(ask_for(number), "").result(20)
    assert list(compiler._verdicts) == [ask_for(number) for number in (2, 3, 4)]
    monkeypatch.setattr(compilers, "MAX_CACHED_BYTES", 1)
    compiler.recipe(ask_for(5), "").result(20)
    assert not compiler._verdicts
    assert compiler._num_bytes == 0


def test_the_least_served_tenant_is_next_and_leaves_a_worker_free():
    queue = FairQueue(2)
    for work in ("m1", "m2"):
        queue.put("mallory", work)
    assert queue.take() == ("mallory", "m1")
    queue.put("alice", "a1")
    # Mallory has a worker already.
    assert queue.take() == ("alice", "a1")
    queue.done("mallory", 2.0)
    queue.done("alice", 0.1)
    queue.put("alice", "a2")
    assert queue.take() == ("alice", "a2")
    assert queue.take() == ("mallory", "m2")


def test_a_worker_waits_for_work():
    queue, got = FairQueue(1), []
    thread = threading.Thread(target=lambda: got.append(queue.take()))
    thread.start()
    queue.put("a", 1)
    thread.join(5)
    assert got == [("a", 1)]


def test_closing_fails_what_waits(impatient):
    compiler = Compiler(1)
    asked = [compiler.recipe(slow(number), "a") for number in (1, 2)]
    compiler.close()
    for future in asked:
        with pytest.raises(Unavailable):
            future.result(10)
    with pytest.raises(Unavailable):
        compiler.recipe(slow(3), "a")


def test_a_named_tenant_has_a_budget_that_grows_again(monkeypatch):
    queue = FairQueue(2)
    now_s = 1000.0
    monkeypatch.setattr(fair_queue.time, "monotonic", lambda: now_s)
    for tenant in ("mallory", ""):
        queue.put(tenant, 1)
        queue.done(queue.take()[0], fair_queue.BUDGET_S + 3.0)
    with pytest.raises(Overloaded) as caught:
        queue.put("mallory", 2)
    queue.put("alice", 3)
    queue.put("", 4)  # unknown: honest ones cannot be told from others
    assert caught.value.retry_after_s == pytest.approx(3.0 / fair_queue.SHARE + fair_queue.RETRY_S)
    now_s += caught.value.retry_after_s
    queue.put("mallory", 5)


def test_tenants_whose_work_is_forgotten_are_forgotten(monkeypatch):
    monkeypatch.setattr(fair_queue, "MOST_TENANTS", 10)
    queue = FairQueue(2)
    for tenant in range(100):
        queue.put(f"{tenant}", 1)
        queue.done(queue.take()[0], 0.0)
    assert len(queue._spent) <= 11


def test_a_fork_is_used_again_until_one_ask_was_hard(monkeypatch):
    fork = Fork(5, 0)
    first = fork._pid
    for number in range(3):
        assert "recipe" in json.loads(fork.answer(f"{json.dumps(ask_for(number))}\n"))
        assert fork.is_open
    assert os.getpid() != first
    monkeypatch.setattr(compile_child, "HARD_S", 0.0)
    assert "recipe" in json.loads(fork.answer(f"{json.dumps(ask_for(3))}\n"))
    assert not fork.is_open
    with pytest.raises(ChildProcessError):
        os.waitpid(first, 0)


@pytest.mark.parametrize("bound", ["MAX_WAITING", "MAX_WAITING_OF_ONE"])
def test_a_full_queue_says_when_to_come_again(monkeypatch, bound):
    monkeypatch.setattr(fair_queue, bound, 1)
    queue = FairQueue(2)
    queue.put("a", 1)
    with pytest.raises(Overloaded) as caught:
        queue.put("a", 2)
    assert caught.value.retry_after_s == fair_queue.RETRY_S
    monkeypatch.setattr(fair_queue, "MAX_WAITING", 1)
    with pytest.raises(Overloaded):
        queue.put("b", 3)
    assert list(queue._waiting) == ["a"]


async def test_a_plan_names_the_field_and_waits_for_a_bounded_time(small, compiler, monkeypatch):
    constraints = Constraints(small.table, compiler)
    good = pb.CallableTool(name="f", parameters_json='{"properties": {"a": {"type": "any"}}}')
    wanted = pb.Constraint(tools=[good], tool_use=pb.TOOL_USE_AUTO, regex="a+", content_field="the.field")
    plan = await constraints.plan(wanted, "alice")
    assert plan.left_out == ['tools.f: properties.a.type: "any" is no type']
    assert (await constraints.start(plan, [0] * 3, 3, 200)).rule().mask.any()
    wanted.regex = "(a"
    with pytest.raises(InvalidRequest) as caught:
        await constraints.plan(wanted, "alice")
    assert (caught.value.field, caught.value.message) == ("the.field", "the.field: unclosed group")
    monkeypatch.setattr("services.attention.constraint.requests.QUEUE_S", 0.05)
    wanted.json_schema = slow(9).text
    with pytest.raises(Overloaded):
        await constraints.plan(wanted, "alice")


async def test_an_overload_at_the_second_tool_leaves_no_error_behind(small, impatient, monkeypatch, caplog):
    compiler = Compiler()
    constraints = Constraints(small.table, compiler)
    monkeypatch.setattr(fair_queue, "MAX_WAITING_OF_ONE", 1)
    bad = '{"properties": {"a": {"$ref": "#"}}, "required": ["a"], "description": "%d"}'
    tools = [pb.CallableTool(name=f"f{number}", parameters_json=bad % number) for number in range(20)]
    with pytest.raises(Overloaded):
        await constraints.plan(pb.Constraint(tools=tools, tool_use=pb.TOOL_USE_REQUIRED), "mallory")
    while compiler._working:
        await asyncio.sleep(0.01)
    gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    await constraints.close()


async def test_a_budget_that_is_too_small_is_named_as_the_client_named_it(small, compiler):
    constraints = Constraints(small.table, compiler)
    plan = await constraints.plan(pb.Constraint(regex="a{50}"), "")
    for given, named in (("max_completion_tokens", "max_completion_tokens"), ("", "max_new_tokens")):
        with pytest.raises(InvalidRequest, match=named) as caught:
            await constraints.start(plan, [0] * 3, 3, 10, given)
        assert caught.value.field == named
