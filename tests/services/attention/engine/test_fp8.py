"""Latent KV in FP8 through a whole replica: the tokens of the reference with such latents, never another's blocks."""

import pytest

from kernels.reference import latent_fp8
from services.attention.assembly import Assembly
from services.attention.layers.frames import FrameKind, frame
from services.attention.settings import AttentionSettings
from tests.services.attention.conftest import load_reference
from tests.services.attention.engine.test_engine import prompt


@pytest.fixture(scope="module")
def fp8_reference(tiny_checkpoint):
    return load_reference().ReferenceModel(tiny_checkpoint, fp8_latents=True)


@pytest.mark.parametrize("num_tokens", [1, 16, 33, 100])
async def test_greedy_tokens_are_those_of_the_reference(start_rig, fp8_reference, num_tokens):
    rig = await start_rig(kv_dtype="fp8")
    assert await rig.submit(prompt(num_tokens), 12).tokens() == fp8_reference.generate(prompt(num_tokens), 12)


def test_the_reference_itself_rounds(reference, fp8_reference):
    """Else the tests above would hold without FP8."""
    plain, rounded = (model.logits(prompt(100)) for model in (reference, fp8_reference))
    assert 0.005 < (plain - rounded).norm() / plain.norm() < 0.2
    assert reference.generate(prompt(100), 12) != fp8_reference.generate(prompt(100), 12)


async def test_many_at_once_short_of_blocks(start_rig, fp8_reference):
    rig = await start_rig(kv_dtype="fp8", num_blocks=8)
    requests = [rig.submit(prompt(20, seed=n), 40) for n in range(4)]
    for n, request in enumerate(requests):
        assert await request.tokens() == fp8_reference.generate(prompt(20, seed=n), 40)


async def test_a_prefix_in_memory_is_used(start_rig, fp8_reference):
    rig = await start_rig(kv_dtype="fp8")
    await rig.submit(prompt(70), 4).tokens()
    request = rig.submit([*prompt(70), 5], 6)
    first = await request.next()
    assert first.num_cached == 64
    assert [first.choices[0].token_id, *await request.tokens()] == fp8_reference.generate([*prompt(70), 5], 6)


@pytest.mark.parametrize("num_tokens", [1, 16, 95])
async def test_prefill_hands_over_through_the_store(start_rig, fp8_reference, store, num_tokens):
    prefill = await start_rig(role="prefill", store=store, kv_dtype="fp8")
    decode = await start_rig(store=store, kv_dtype="fp8")
    expected = fp8_reference.generate(prompt(num_tokens), 10)
    handed = await prefill.submit(prompt(num_tokens), 10, hand_over=True).handed_over()
    assert handed.first.choice.token_id == expected[0]
    request = decode.submit([*prompt(num_tokens), expected[0]], 10, num_prompt=num_tokens, tail=handed)
    first = await request.next()
    assert first.num_cached == num_tokens
    assert [first.choices[0].token_id, *await request.tokens()] == expected[1:]


@pytest.mark.parametrize("of_prefill, of_decode", [("fp8", "auto"), ("auto", "fp8")])
async def test_a_replica_with_the_other_form_computes_again(
    start_rig, reference, fp8_reference, store, of_prefill, of_decode
):
    prefill = await start_rig(role="prefill", store=store, kv_dtype=of_prefill)
    decode = await start_rig(store=store, kv_dtype=of_decode)
    assert prefill.replica.limits.names_root != decode.replica.limits.names_root
    handed = await prefill.submit(prompt(70), 10, hand_over=True).handed_over()
    tokens = [*prompt(70), handed.first.choice.token_id]
    request = decode.submit(tokens, 10, num_prompt=70, tail=handed)
    first = await request.next()
    assert first.num_cached == 0
    model = fp8_reference if of_decode == "fp8" else reference
    assert [first.choices[0].token_id, *await request.tokens()] == model.generate(tokens, 9)


def test_every_form_of_every_dtype_has_a_layout_of_its_own(tiny_checkpoint):
    forms = [
        {"dtype": dtype, "kv_dtype": kv_dtype} for dtype in ("float32", "bfloat16") for kv_dtype in ("auto", "fp8")
    ]
    given = [AttentionSettings(listen="h:1", model=tiny_checkpoint, role="decode", **form) for form in forms]
    assert len({Assembly(settings)._layout.fingerprint(range(4)) for settings in given}) == len(forms)


async def test_a_further_shard_refuses_an_engine_with_the_other_form(tiny_checkpoint):
    def assembly(shard, kv_dtype):
        given = {"shard": shard, "num_shards": 2, "next_shards": "h:1" if shard == 0 else "", "kv_dtype": kv_dtype}
        return Assembly(AttentionSettings(listen="h:1", model=tiny_checkpoint, role="decode", num_blocks=2, **given))

    servicer = assembly(1, "fp8").further_shard().servicer
    hellos = {kv_dtype: assembly(0, kv_dtype)._layout.hello(1, 2) for kv_dtype in ("auto", "fp8")}
    refusals = {name: servicer._refusal(frame(FrameKind.HELLO, 0, hello)) for name, hello in hellos.items()}
    assert refusals == {"auto": "engine and shard differ in checkpoint, layers or layout", "fp8": ""}


async def test_a_token_takes_its_bytes(start_rig):
    rig = await start_rig(kv_dtype="fp8", num_blocks=5)
    layers = rig.replica.engine._shards[0]
    assert layers._cache.nbytes == 5 * len(layers._layers) * 16 * latent_fp8.token_bytes(64, 16)
