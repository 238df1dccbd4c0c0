"""Which replica is asked."""

import time

import pytest

from gateway.cluster.affinity import CHUNK_TOKENS, PrefixMap, chain_hashes, conversation_key
from gateway.cluster.choose import RoundRobin, choose_decode, choose_prefill, choose_renderer
from gateway.cluster.replica import Replica
from protos.attention_pb2 import GetLoadResponse
from protos.tokenizer_pb2 import ChatMessage, ContentPart, RenderRequest
from services.runtime.errors import Overloaded


def replica(address: str, *, sent_tokens: int = 0, **load: int) -> Replica:
    made = Replica(address, channel=None, serving=True, load=GetLoadResponse(block_tokens=64, **load))
    if sent_tokens:
        made.note_sent(sent_tokens)
    return made


@pytest.mark.parametrize(
    ("queued", "cached", "chosen"),
    [
        pytest.param([0, 0], {}, "a", id="idle"),
        pytest.param([500, 100], {}, "b", id="least-queued"),
        pytest.param([500, 100], {"a": 300}, "b", id="prefix-too-short-to-wait-for"),
        pytest.param([500, 100], {"a": 512}, "a", id="prefix-worth-waiting-for"),
        pytest.param([0, 0], {"b": 256}, "b", id="prefix-among-equals"),
        pytest.param([0, 100], {"gone": 5000}, "a", id="prefix-of-a-replica-that-is-gone"),
    ],
)
def test_prefill(queued, cached, chosen):
    replicas = [replica(name, num_queued_tokens=number) for name, number in zip("ab", queued, strict=True)]
    assert choose_prefill(replicas, cached).address == chosen


@pytest.mark.parametrize(
    ("loads", "chosen"),
    [
        pytest.param([{"num_free_blocks": 5}, {"num_free_blocks": 6}], "b", id="most-free-blocks"),
        pytest.param([{"num_free_blocks": 5}, {"num_free_blocks": 7, "sent_tokens": 129}], "a", id="less-what-we-sent"),
        pytest.param([{"num_free_blocks": 5}, {"num_free_blocks": 8, "sent_tokens": 128}], "b", id="whole-blocks"),
        pytest.param([{}, {"num_free_blocks": 1}], "b", id="one-without-a-report"),
        pytest.param(
            [{"num_free_blocks": 5}, {"num_free_blocks": 9, "max_waiting": 2, "num_waiting": 2}], "a", id="one-is-full"
        ),
    ],
)
def test_decode(loads, chosen):
    assert choose_decode([replica(name, **load) for name, load in zip("ab", loads, strict=True)]).address == chosen


def test_all_decode_queues_are_full():
    full = {"num_free_blocks": 9, "max_waiting": 2, "num_waiting": 3}
    with pytest.raises(Overloaded) as caught:
        choose_decode([replica("a", **full), replica("b", **full)])
    assert caught.value.retry_after_s


def test_a_report_contains_what_was_sent_before_it_was_asked_for():
    one = replica("a", sent_tokens=100)
    asked_s = time.monotonic()
    one.note_sent(30)
    one.report(GetLoadResponse(num_queued_tokens=100), asked_s)
    assert one.queued_tokens == 130


def test_round_robin():
    replicas = [replica("a"), replica("b"), replica("c")]
    take = RoundRobin()
    assert sorted(take(replicas).address for _ in range(6)) == list("aabbcc")
    assert {take(replicas[:1]).address for _ in range(3)} == {"a"}


def test_chain_hashes():
    prompt = list(range(3 * CHUNK_TOKENS + 1))
    assert len(chain_hashes(prompt)) == len(chain_hashes(prompt[:-1])) == 3
    assert chain_hashes(prompt[: CHUNK_TOKENS - 1]) == []
    changed = [*prompt]
    changed[CHUNK_TOKENS] += 1
    first, *others = chain_hashes(prompt)
    assert chain_hashes(changed)[0] == first
    assert not {*chain_hashes(changed)[1:]} & {*others}


def test_prefix_map():
    seen = PrefixMap(bound=4)
    seen.remember([1, 2, 3], "a")
    assert seen.cached_tokens([1, 2, 9]) == {"a": 2 * CHUNK_TOKENS}
    seen.remember([1, 2], "b")
    assert seen.cached_tokens([1, 2, 3]) == {"b": 2 * CHUNK_TOKENS, "a": 3 * CHUNK_TOKENS}
    assert seen.cached_tokens([2, 3]) == {"b": CHUNK_TOKENS, "a": 2 * CHUNK_TOKENS}
    seen.remember([7, 8, 9], "c")
    assert seen.cached_tokens([1]) == {}, "the oldest are forgotten"
    assert seen.cached_tokens([7, 8, 9]) == {"c": 3 * CHUNK_TOKENS}
    assert seen.cached_tokens([]) == {}


def conversation(*texts: str) -> RenderRequest:
    roles = ("system", "user", "assistant", "user")
    return RenderRequest(
        messages=[
            ChatMessage(role=role, content=[ContentPart(text=text)]) for role, text in zip(roles, texts, strict=False)
        ]
    )


def test_all_turns_of_a_conversation_have_one_key():
    first = conversation_key(conversation("Be brief.", "Hi"))
    assert first == conversation_key(conversation("Be brief.", "Hi", "Hello.", "And now?"))
    assert (
        len({first, conversation_key(conversation("Be brief.", "Ho")), conversation_key(conversation("", "Hi"))}) == 3
    )
    assert conversation_key(RenderRequest()) == conversation_key(RenderRequest())


def test_a_conversation_stays_with_its_replica():
    replicas = [replica(name) for name in "abcd"]
    keys = [bytes([number]) * 8 for number in range(200)]
    chosen = [choose_renderer(replicas, key).address for key in keys]
    assert chosen == [choose_renderer(replicas[::-1], key).address for key in keys]
    assert all(chosen.count(name) > 200 / 4 / 2 for name in "abcd")
    without = [choose_renderer(replicas[1:], key).address for key in keys]
    assert all(now == before for before, now in zip(chosen, without, strict=True) if before != "a")


def test_a_busy_replica_gives_a_conversation_to_another():
    replicas = [replica(name) for name in "abc"]
    favourite = choose_renderer(replicas, b"key")
    given = []
    for _ in range(30):
        given.append(choose_renderer(replicas, b"key"))
        given[-1].num_rendering += 1
    assert given[0] is favourite
    assert max(one.num_rendering for one in replicas) <= 1.25 * 30 / 3 + 1
