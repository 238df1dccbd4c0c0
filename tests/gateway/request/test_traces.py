"""What the gateway begins and continues, and what the span of a request says."""

import json
import subprocess
import sys

import pytest

from services.runtime.tracing import is_recorded
from tests.gateway.site import Site
from tests.services.runtime.collector import Collector

TRACE, CALLER = "a" * 32, "b" * 16


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


def traced(vocabulary, collector, **settings):
    return Site(vocabulary, trace_endpoint=collector.url, **settings)


async def spans_of(site, collector):
    """All spans, once the gateway has closed its tracer."""
    await site.__aexit__(None, None, None)
    return collector.spans


@pytest.mark.parametrize(
    "ratio, flags, recorded",
    [
        pytest.param(0.0, "01", True, id="the-client-wants-it"),
        pytest.param(1.0, "00", False, id="the-client-does-not"),
        pytest.param(1.0, None, True, id="drawn"),
        pytest.param(0.0, None, False, id="not-drawn"),
    ],
)
async def test_who_decides(vocabulary, collector, ratio, flags, recorded):
    site = await traced(vocabulary, collector, trace_sample_ratio=ratio).__aenter__()
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-{flags}"} if flags else {}
    body = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}]}
    response = await site.http.post("/v1/chat/completions", json=body, headers=headers)
    sent = site.decodes[0].metadata[-1]["traceparent"]
    spans = await spans_of(site, collector)
    assert [span.name for span in spans if span.name == "chat"] == ["chat"] * recorded
    assert is_recorded(sent) == recorded
    assert sent.split("-")[1] == response.headers["x-trace-id"]
    if flags:
        assert response.headers["x-trace-id"] == TRACE
    if recorded:
        (decode,) = [span for span in spans if span.name == "decode"]
        (root,) = [span for span in spans if span.name == "chat"]
        assert sent.split("-")[2] == decode.span_id
        assert decode.parent_id == root.span_id
        assert root.parent_id == (CALLER if flags else "")


@pytest.mark.parametrize("content", [False, True], ids=["private", "asked-for"])
async def test_what_was_said_is_told_only_where_asked_for(vocabulary, collector, content):
    site = await traced(vocabulary, collector, trace_sample_ratio=1.0, trace_content=content).__aenter__()
    await site.chat(messages=[{"role": "user", "content": "Who is Wilhelmina?"}], temperature=0.5)
    (root,) = [span for span in await spans_of(site, collector) if span.name == "chat"]
    assert root.attributes["gen_ai.request.temperature"] == 0.5
    assert root.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    if not content:
        assert not any(b"Wilhelmina" in raw or b"Hello" in raw for raw in collector.raw)
        return
    assert json.loads(root.attributes["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "Who is Wilhelmina?"}]}
    ]
    assert json.loads(root.attributes["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "Let me see."},
                {"type": "text", "content": "Hello, wörld! 👋"},
            ],
        }
    ]


@pytest.mark.slow
async def test_a_collector_that_is_gone_disturbs_nobody(vocabulary):
    async with Site(vocabulary, trace_endpoint="http://127.0.0.1:1/v1/traces", trace_sample_ratio=1.0) as site:
        assert (await site.chat()).status_code == 200


def test_off_means_that_nothing_is_imported():
    code = (
        "import sys, gateway.app, services.runtime.server\n"
        "from services.runtime.tracing import open_tracer\n"
        "assert open_tracer('', 'gateway') is None\n"
        # redis-py imports the SDK's metrics for itself where it finds them; tracer and exporter are ours alone.
        "print([n for n in sys.modules if n.startswith(('opentelemetry.exporter', 'services.runtime.otlp'))])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert shown.stdout == "[]\n"
