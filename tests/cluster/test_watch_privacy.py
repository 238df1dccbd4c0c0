"""No text of users and no secret is in debug logs, in `ps`, in an environment or in a metric."""

import time

import psutil
import pytest

from tests.cluster.observed import CHAT, KEY, PASSWORD, SECRET_WORDS, Scrape, body, client

SECRETS = {"what a user said": SECRET_WORDS, "an API key": KEY, "the password of Redis": PASSWORD}
WRONG_KEY = "sk-mistyped-but-nearly-right"


@pytest.fixture(scope="module")
def quarrelled(observed):
    """The cluster after requests whose errors quote the client's text."""
    wrong = [
        {"messages": [{"role": SECRET_WORDS, "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": SECRET_WORDS}]}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": SECRET_WORDS}}}},
        {"tools": [{"type": "function", "function": {"name": SECRET_WORDS}}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": SECRET_WORDS}}]}]},
        {"stop": [SECRET_WORDS], "user": SECRET_WORDS, "max_tokens": 2},
        {"structured_outputs": {"regex": f"({SECRET_WORDS}"}},
        {"model": SECRET_WORDS},
    ]
    with client(observed) as http:
        for fields in wrong:
            assert http.post(CHAT, json=body(**fields)).status_code < 500
        http.post(CHAT, content=f'{{"messages": "{SECRET_WORDS}')
        http.post("/v1/files", files={"file": (SECRET_WORDS, SECRET_WORDS * 10)}, data={"purpose": "user_data"})
        http.get(f"/v1/{SECRET_WORDS}")
        refused = http.get("/v1/models", headers={"Authorization": f"Bearer {WRONG_KEY}"})
        assert refused.status_code == 401
    return observed


def test_logs_hold_no_secret(quarrelled):
    lines = quarrelled.log()
    assert {line["level"] for line in lines} >= {"DEBUG", "INFO"}
    text = quarrelled.log_path.read_text()
    for what, secret in {**SECRETS, "a key that was refused": WRONG_KEY}.items():
        assert secret not in text, what
        # JSON and repr escape quotes, so the test also looks for a part without one.
        assert secret[:11] not in text.lower(), what


def test_processes_show_no_secret(quarrelled):
    for name, pid in quarrelled.pids.items():
        process = psutil.Process(pid)
        shown = " ".join([*process.cmdline(), *(f"{key}={value}" for key, value in process.environ().items())])
        for what, secret in SECRETS.items():
            assert secret not in shown, (name, what)


def test_metrics_hold_no_secret(quarrelled):
    for name, text in Scrape(quarrelled).texts.items():
        for what, secret in SECRETS.items():
            assert secret not in text, (name, what)


def test_lines_of_a_request_name_it_and_its_trace(quarrelled):
    with client(quarrelled) as http:
        trace_id = http.post(CHAT, json=body(), headers={"x-request-id": "followed"}).headers["x-trace-id"]
    # The last lines are written after the client has its answer.
    expected, found, end_s = {"gateway", "tokenizer", "prefill", "decode"}, set(), time.monotonic() + 60
    while not expected <= found and time.monotonic() < end_s:
        of_request = [line for line in quarrelled.log() if line.get("request_id") == "followed"]
        found = {line["process"].partition("-")[0] for line in of_request}
        time.sleep(0.1)
    assert expected <= found
    assert {line["trace_id"] for line in of_request} == {trace_id}
