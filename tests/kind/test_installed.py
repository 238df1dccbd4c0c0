"""An installed release does what its operators and its clients count on. In this order: later tests find it warm."""

import pytest

from tests.cluster.pictures import data_url, noise, png
from tests.kind.installed import Installed

pytestmark = pytest.mark.timeout(1800)

NUM_STREAMS = 4
SCALED = ("prefill", "decode")
REPLACED = ("gateway", "tokenizer", "decode", "expert")


def check(answers, num_answers=NUM_STREAMS):
    assert len(answers) == num_answers
    assert all(answer.is_done and answer.finish_reason in {"stop", "length"} and answer.text for answer in answers)


def test_an_installation_has_all_expert_shards(release: Installed):
    """`helm install --wait` has returned: what the release promises is there."""
    assert release.replicas("expert") == release.expert_shards
    assert release.http.get("/health").status_code == 200


def test_the_first_request_wakes_a_cold_cluster(release: Installed):
    release.cool_down(*SCALED)
    answer = release.chat("Hello", max_tokens=16)
    check([answer], 1)
    assert all(release.replicas(role) > 0 for role in SCALED)


def test_helm_test_passes(release: Installed):
    assert f"pieces of {release.model}" in release.test()


def test_models_are_listed(release: Installed):
    listed = release.http.get("/v1/models").json()["data"]
    assert release.model in {model["id"] for model in listed}


def test_an_answer_that_is_not_streamed(release: Installed):
    body = {"model": release.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
    answer = release.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] > 0


def test_an_image_wakes_vision(release: Installed):
    release.cool_down("vision")
    picture = {"type": "image_url", "image_url": {"url": data_url(png(noise(1, (112, 112))))}}
    check([release.chat([picture, {"type": "text", "text": "Describe this image in detail."}], max_tokens=16)], 1)


@pytest.mark.parametrize("component", ["decode", "prefill", "expert", "tokenizer", "redis-0"])
def test_a_killed_pod_breaks_no_stream(release: Installed, component):
    with release.streams(NUM_STREAMS) as answers:
        release.kill(min(release.uids(component)))
    check(answers)


@pytest.mark.parametrize("component", ["decode", "prefill", "expert", "tokenizer", "gateway"])
def test_an_eviction_breaks_no_stream(release: Installed, component):
    with release.streams(NUM_STREAMS) as answers:
        release.evict(min(release.uids(component)))
    check(answers)


@pytest.mark.parametrize("component", ["prefill", "expert", "tokenizer", "redis-0"])
def test_a_killed_pod_changes_no_text(release: Installed, component):
    """Greedy answers are the same whatever is lost on the way."""

    def texts(answers):
        return sorted(answer.text for answer in answers)

    with release.streams(NUM_STREAMS, temperature=0) as undisturbed:
        pass
    with release.streams(NUM_STREAMS, temperature=0) as disturbed:
        release.kill(min(release.uids(component)))
    assert texts(disturbed) == texts(undisturbed)


def test_an_upgrade_breaks_no_stream(release: Installed):
    before = {uid for component in REPLACED for uid in release.uids(component).values()}
    with release.streams(NUM_STREAMS) as answers:
        release.upgrade({"logLevel": "debug"})
    check(answers)
    after = {uid for component in REPLACED for uid in release.uids(component).values()}
    assert not before & after, "not every pod was replaced"


def test_what_is_idle_goes_to_zero_and_comes_back(release: Installed):
    release.cool_down(*SCALED)
    assert release.http.get("/health").status_code == 200
    check([release.chat("Hello again", max_tokens=16)], 1)
