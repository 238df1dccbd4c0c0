"""One trace from the client through every process, with the right parents and without the text of the conversation."""

from tests.cluster.observed import CHAT, SECRET_WORDS, body, client
from tests.cluster.pictures import data_url, noise, png

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
SERVICE = "moonshard.v1.AttentionService"
# Each is one of the last spans of its process.
ENDS = {
    ("gateway", "chat"),
    ("tokenizer-0", "moonshard.v1.TokenizerService/Render"),
    ("tokenizer-0", "moonshard.v1.TokenizerService/ParseAnswers"),
    ("vision-0", "moonshard.v1.VisionService/Encode"),
    ("prefill-0", f"{SERVICE}/Prefill"),
    ("prefill-0", "publish"),
    ("decode-0", f"{SERVICE}/Generate"),
    ("decode-0", "decode"),
    ("decode-0", "dispatch"),
}


def test_one_trace_goes_through_every_process(observed):
    picture = {"type": "image_url", "image_url": {"url": data_url(png(noise(77)))}}
    text = {"type": "text", "text": SECRET_WORDS * 3}
    with client(observed) as http:
        response = http.post(
            CHAT,
            json=body(messages=[{"role": "user", "content": [picture, text]}], max_tokens=4, seed=7),
            headers={"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "traced"},
        ).raise_for_status()
    assert response.headers["x-trace-id"] == TRACE

    def ours(spans):
        return [span for span in spans if span.trace_id == TRACE]

    def enough(spans):
        # Processes send their spans independently: a child may arrive before its parent.
        have = {(span.instance, span.name) for span in ours(spans)}
        ids = {CALLER, *(span.span_id for span in ours(spans))}
        return have >= ENDS and all(span.parent_id in ids for span in ours(spans))

    spans = ours(observed.collector.wait_for(enough))
    by_id = {span.span_id: span for span in spans}
    (root,) = [span for span in spans if span.name == "chat"]
    assert root.parent_id == CALLER
    # Every other span has its parent in this trace and begins within it: on one machine all clocks agree.
    for span in spans:
        assert span.began_ns <= span.ended_ns
        if span is not root:
            assert span.began_ns >= by_id[span.parent_id].began_ns - 5_000_000, (span.name, by_id[span.parent_id].name)

    def way(name, instance=None):
        (span, *_) = [s for s in spans if s.name == name and instance in (None, s.instance)]
        names = []
        while span is not root:
            names.append((span.instance, span.name))
            span = by_id[span.parent_id]
        return names

    assert way("moonshard.v1.TokenizerService/Render")[1:] == [("gateway", "render")]
    assert way("moonshard.v1.VisionService/Encode")[1:] == [("gateway", "vision")]
    assert way("moonshard.v1.TokenizerService/ParseAnswers") == [
        ("tokenizer-0", "moonshard.v1.TokenizerService/ParseAnswers")
    ]
    prefill = [("prefill-0", f"{SERVICE}/Prefill"), ("gateway", "prefill")]
    decode = [("decode-0", f"{SERVICE}/Generate"), ("gateway", "decode")]
    for phase in ("queue", "fetch", "prefill", "publish"):
        assert way(phase, "prefill-0") == [("prefill-0", phase), *prefill]
    for phase in ("queue", "fetch", "decode"):
        assert way(phase, "decode-0") == [("decode-0", phase), *decode]
    assert way("dispatch", "decode-0") == [("decode-0", "dispatch"), ("decode-0", "step"), *decode]
    dispatches = [span for span in spans if span.name == "dispatch"]
    assert all({"moonshard.layer", "moonshard.expert_shard"} <= span.attributes.keys() for span in dispatches)
    _check_conventions(root)


def _check_conventions(root):
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "kimi-k2.6",
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.seed": 7,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.response.finish_reasons": ["length"],
        "http.response.status_code": 200,
        "moonshard.request_id": "traced",
    }
    assert expected.items() <= root.attributes.items()
    assert root.attributes["gen_ai.usage.input_tokens"] > 0


def test_no_span_holds_what_was_said(observed):
    observed.collector.wait_for(lambda spans: any(span.name == "decode" for span in spans))
    for raw in observed.collector.raw:
        assert SECRET_WORDS.encode() not in raw
