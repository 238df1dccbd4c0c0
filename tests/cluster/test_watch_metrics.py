"""Every process of a cluster exports its metrics over mutual TLS; labels are bounded and values are right."""

import re
import secrets

import pytest

from tests.cluster.observed import CHAT, KEY, body, client, scrape_at_rest
from tests.monitoring import metrics_in, promtool, queries

HISTOGRAMS = {
    "gateway": [
        "moonshard_gateway_request_seconds",
        "moonshard_gateway_first_token_seconds",
        "moonshard_gateway_first_token_part_seconds",
        "moonshard_gateway_first_decode_seconds",
        "moonshard_gateway_inter_token_seconds",
    ],
    "prefill-0": [
        "moonshard_rpc_seconds",
        "moonshard_step_seconds",
        "moonshard_step_tokens",
        "moonshard_step_generations",
        "moonshard_queue_seconds",
        "moonshard_prefill_seconds",
        "moonshard_handoff_seconds",
        "moonshard_grammar_compile_seconds",
        "moonshard_dispatch_seconds",
        "moonshard_dispatch_round_trip_seconds",
        "moonshard_dispatch_wait_seconds",
        "moonshard_store_seconds",
    ],
    "decode-0": ["moonshard_step_seconds", "moonshard_step_generations", "moonshard_queue_seconds"],
    "decode-0-shard-1": ["moonshard_dispatch_round_trip_seconds", "moonshard_rpc_seconds"],
    "expert-0-0": ["moonshard_expert_compute_seconds", "moonshard_rpc_seconds"],
    "tokenizer-0": ["moonshard_rpc_seconds"],
    "vision-0": ["moonshard_vision_decode_seconds", "moonshard_vision_batch_seconds", "moonshard_vision_batch_patches"],
}
COUNTERS = {
    "gateway": [
        "moonshard_gateway_requests_total",
        "moonshard_gateway_tokens_total",
        "moonshard_gateway_key_requests_total",
        "moonshard_gateway_key_tokens_total",
    ],
    "prefill-0": [
        "moonshard_tokens_total",
        "moonshard_prefix_tokens_total",
        "moonshard_generations_finished_total",
        "moonshard_kv_blocks_published_total",
        "moonshard_handoff_bytes_total",
        "moonshard_store_writes_total",
        "moonshard_store_bytes_total",
    ],
    "decode-0": ["moonshard_kv_blocks_fetched_total", "moonshard_handoff_bytes_total", "moonshard_store_reads_total"],
    "decode-0-shard-1": ["moonshard_kv_blocks_fetched_total", "moonshard_kv_blocks_published_total"],
    "expert-0-0": [
        "moonshard_expert_tokens_total",
        "moonshard_expert_layer_tokens_total",
        "moonshard_expert_message_tokens_total",
        "moonshard_expert_wire_bytes_total",
    ],
    "tokenizer-0": ["moonshard_tokenizer_tokens_total"],
    "vision-0": ["moonshard_vision_media_total", "moonshard_vision_chunks_total"],
}
GAUGES = {
    "gateway": [
        "moonshard_gateway_open_requests",
        "moonshard_gateway_open_streams",
        "moonshard_gateway_serving_replicas",
    ],
    "prefill-0": ["moonshard_generations", "moonshard_kv_blocks", "moonshard_dispatch_live_replicas"],
    "expert-0-0": ["moonshard_expert_streams", "moonshard_expert_weight_bytes", "moonshard_expert_load_seconds"],
    "vision-0": ["moonshard_vision_upload_bytes"],
}
PARTS = ("vision", "render", "queue", "fetch", "prefill", "handoff", "other")


@pytest.fixture
def scrape(observed):
    return scrape_at_rest(observed)


def test_every_metric_is_there_and_has_counted(scrape):
    for process, names in HISTOGRAMS.items():
        for name in names:
            assert scrape.total(process, f"{name}_count") > 0, (process, name)
            assert scrape.total(process, f"{name}_sum") > 0 or "handoff" in name, (process, name)
    for process, names in COUNTERS.items():
        for name in names:
            assert scrape.total(process, name) > 0, (process, name)
    for process, names in GAUGES.items():
        for name in names:
            assert scrape.samples(process, name), (process, name)


def test_the_parts_of_the_first_tokens_time_add_up_to_it(scrape):
    whole = scrape.total("gateway", "moonshard_gateway_first_token_seconds_sum")
    part_s = {p: scrape.total("gateway", "moonshard_gateway_first_token_part_seconds_sum", part=p) for p in PARTS}
    assert sum(part_s.values()) == pytest.approx(whole, rel=0.01)
    assert all(part_s[part] > 0 for part in ("vision", "render", "prefill", "handoff"))
    assert part_s["other"] < whole / 2, part_s
    # The engine's counts of the same prompts.
    computed = scrape.total("prefill-0", "moonshard_prefill_seconds_sum")
    assert part_s["prefill"] == pytest.approx(computed, rel=0.01)


def test_numbers_of_different_processes_agree(scrape):
    num_prompts = scrape.total("gateway", "moonshard_gateway_tokens_total", kind="prompt")
    assert scrape.total("tokenizer-0", "moonshard_tokenizer_tokens_total", of="prompts") == num_prompts
    sources = {s: scrape.total("prefill-0", "moonshard_prefix_tokens_total", source=s) for s in ("memory", "computed")}
    assert (
        sum(sources.values()) + scrape.total("prefill-0", "moonshard_prefix_tokens_total", source="store")
        == num_prompts
    )
    assert sources["memory"] > 0, "the second prompt was the first one's"
    used, free = (scrape.total("prefill-0", "moonshard_kv_blocks", state=state) for state in ("used", "free"))
    assert (used, free) == (0, 256)
    # Each MoE layer gives every token to top_k experts, and the engine counts every layer that it dispatches.
    by_expert = scrape.total("expert-0-0", "moonshard_expert_tokens_total")
    assert by_expert == scrape.total("expert-0-0", "moonshard_expert_layer_tokens_total") > 0
    num_messages = scrape.total("expert-0-0", "moonshard_expert_compute_seconds_count")
    engines = ("prefill-0", "prefill-0-shard-1", "decode-0", "decode-0-shard-1")
    assert num_messages == sum(scrape.total(e, "moonshard_dispatch_round_trip_seconds_count") for e in engines)
    key_tokens = scrape.total("gateway", "moonshard_gateway_key_tokens_total")
    assert key_tokens == num_prompts + scrape.total("gateway", "moonshard_gateway_tokens_total", kind="completion")


def test_hostile_names_make_no_series(observed):
    with client(observed) as http:
        http.post(CHAT, json=body(model="warm-up"))
        http.get("/v1/nowhere")
        http.get("/v1/models", headers={"Authorization": "Bearer wrong"})
        before = scrape_at_rest(observed)
        for _ in range(20):
            word = secrets.token_hex(8)
            http.post(CHAT, json=body(model=word, user=word), headers={"x-request-id": word})
            http.get(f"/v1/{word}")
            http.get("/v1/models", headers={"Authorization": f"Bearer {word}"})
            http.get(f"/v1/files/{word}")
        after = scrape_at_rest(observed)
    assert after.num_series() - before.num_series() < 40, "a few statuses and buckets may be new, not one a word"
    for text in after.texts.values():
        assert word not in text
        assert KEY not in text


def test_promtool_accepts_every_process(scrape):
    for process, text in scrape.texts.items():
        checked = promtool("check", "metrics", stdin=text)
        assert checked.returncode == 0, f"{process}: {checked.stdout}{checked.stderr}"


def test_every_query_of_dashboards_and_rules_names_a_metric_of_a_process(scrape):
    told = "".join(scrape.texts.values())
    # A metric with labels whose event has not happened yet is declared without a sample.
    there = set(re.findall(r"^# TYPE (\w+)", told, re.MULTILINE))
    there |= set().union(*(scrape.names(process) for process in scrape.texts))
    asked = set().union(*(metrics_in(expr) for _, expr in queries()))
    # There is no autoscaler in this cluster.
    assert {name for name in asked - there if not name.startswith("moonshard_autoscaler_")} == set()
