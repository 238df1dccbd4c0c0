"""From the wire to a generation: every bad field is refused by name."""

import pytest

from protos import attention_pb2 as pb
from services.attention.layers.blocks import Offer
from services.attention.requests import ReplicaLimits, generation_from_proto
from services.runtime.errors import InvalidRequest

LIMITS = ReplicaLimits(
    names_root=b"r" * 32,
    vocab_size=100,
    block_tokens=16,
    num_blocks=4,
    max_positions=50,
    max_waiting=8,
    media_token_id=99,
    takes_media=True,
)
PROMPT = {"token_ids": [1, 2, 3], "num_prompt_tokens": 3}
SAMPLING = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 10}


def generation(prompt=None, sampling=None, manifest=None):
    request = pb.GenerationStart(
        prompt=pb.Prompt(**{**PROMPT, **(prompt or {})}),
        sampling=pb.Sampling(**{**SAMPLING, **(sampling or {})}),
        manifest=pb.KvManifest(**manifest) if manifest else None,
    )
    return generation_from_proto(request, LIMITS, request_id="id", hand_over=False, sink=lambda event: None)


@pytest.mark.parametrize(
    "prompt, sampling, field",
    [
        pytest.param({"token_ids": []}, {}, "prompt.token_ids", id="no-tokens"),
        pytest.param({"token_ids": [1, 100, 2]}, {}, "prompt.token_ids", id="outside-the-vocabulary"),
        pytest.param({"token_ids": [1] * 50, "num_prompt_tokens": 50}, {}, "prompt.token_ids", id="too-long"),
        pytest.param({"num_prompt_tokens": 0}, {}, "prompt.num_prompt_tokens", id="no-prompt"),
        pytest.param({"num_prompt_tokens": 4}, {}, "prompt.num_prompt_tokens", id="more-prompt-than-tokens"),
        pytest.param({}, {"max_new_tokens": 0}, "max_new_tokens", id="nothing-to-generate"),
        pytest.param({"num_prompt_tokens": 1}, {"max_new_tokens": 2}, "max_new_tokens", id="all-generated"),
        pytest.param({}, {"temperature": -1.0}, "temperature", id="negative-temperature"),
        pytest.param({}, {"temperature": float("nan")}, "temperature", id="nan-temperature"),
        pytest.param({}, {"top_p": 0.0}, "top_p", id="top-p-zero"),
        pytest.param({}, {"top_p": 1.5}, "top_p", id="top-p-above-one"),
        pytest.param({}, {"stop_token_ids": [100]}, "stop_token_ids", id="stop-outside-the-vocabulary"),
        pytest.param({}, {"stop_token_ids": list(range(65))}, "stop_token_ids", id="too-many-stops"),
        pytest.param({}, {"logit_bias": {100: 1.0}}, "logit_bias", id="bias-outside-the-vocabulary"),
        pytest.param({}, {"num_top_logprobs": 21}, "num_top_logprobs", id="too-many-logprobs"),
    ],
)
def test_a_bad_field_is_named(prompt, sampling, field):
    with pytest.raises(InvalidRequest) as refused:
        generation(prompt, sampling)
    assert refused.value.field == field


def test_the_end_is_the_budget_or_the_context():
    assert generation().max_tokens == 13
    assert generation(sampling={"max_new_tokens": 1000}).max_tokens == 50
    moved = generation({"token_ids": [1, 2, 3, 4, 5]})
    assert (moved.max_tokens, moved.num_prompt, moved.num_new) == (13, 3, 2)


def test_a_manifest_of_another_layout_is_of_no_use():
    ours = {"fingerprint": LIMITS.names_root, "tail_name": "tail", "num_tokens": 2}
    assert (generation(manifest=ours).tail_name, generation(manifest=ours).tail_tokens) == ("tail", 2)
    assert generation(manifest={**ours, "fingerprint": b"x" * 32}).tail_name == ""
    assert generation(manifest={**ours, "num_tokens": 3}).tail_name == ""


OFFER = {
    "fingerprint": LIMITS.names_root,
    "tail_name": "t" * 32,
    "num_tokens": 2,
    "offer": "o" * 32,
    "source": "unix:/run/prefill.sock",
}


def test_an_offer_says_where_the_blocks_are():
    assert generation(manifest=OFFER).offer == Offer("o" * 32, ["unix:/run/prefill.sock"])
    assert generation(manifest={**OFFER, "fingerprint": b"x" * 32}).offer is None
    assert generation(manifest={**OFFER, "offer": ""}).offer is None
    in_two = {**OFFER, "further_sources": ["unix:/run/shard.sock"]}
    assert generation(manifest=in_two).offer is None, "each shard takes its own layers from a shard that has the same"


@pytest.mark.parametrize(
    "change, field",
    [
        pytest.param({"source": ""}, "manifest.source", id="no-source"),
        pytest.param({"source": "nowhere"}, "manifest.source", id="no-address"),
        pytest.param({"further_sources": ["x"]}, "manifest.source", id="no-address-of-a-shard"),
        pytest.param({"offer": "short"}, "manifest.offer", id="short-offer"),
    ],
)
def test_a_bad_offer_is_named(change, field):
    with pytest.raises(InvalidRequest) as refused:
        generation(manifest={**OFFER, **change})
    assert refused.value.field == field


def test_a_request_says_which_tokens_were_generated():
    made = generation({"token_ids": [1, 2, 3, 4, 5], "tenant": "one"})
    assert (made.names.num_prompt, made.is_past_prompt, made.num_next, made.tenant) == (3, False, 3, "one")
