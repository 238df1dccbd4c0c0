"""What is refused by its headers or its method, and what the log says of a refusal."""

import hashlib
import logging

import pytest

CHAT = "/v1/chat/completions"
BODY = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}]}


def with_headers(*headers):
    return [("content-type", "application/json"), *headers]


@pytest.mark.parametrize(
    "name", ["authorization", "x-api-key", "content-type", "content-encoding", "x-request-id", "traceparent"]
)
async def test_a_header_that_contradicts_itself_is_named(site, name):
    raw = [(name, "a"), (name, "b")]
    response = await site.http.post(CHAT, content=b"{}", headers=raw)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == name
    same = await site.http.get("/v1/models", headers=[(name, "identity"), (name, "identity")])
    assert same.status_code == 200


async def test_other_headers_may_stand_there_twice(site):
    lists = with_headers(("accept", "a"), ("accept", "b"), ("x-other", "1"), ("x-other", "2"))
    assert (await site.http.post(CHAT, json=BODY, headers=lists)).status_code == 200


async def test_two_keys_are_one_too_many(start_site, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("\n".join(hashlib.sha256(key.encode()).hexdigest() for key in ("sk-one", "sk-two")))
    both = {"authorization": "Bearer sk-one", "x-api-key": "sk-two"}
    guarded = await start_site(keys_file=keys)
    response = await guarded.http.get("/v1/models", headers=both)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "x-api-key"
    assert (await guarded.http.get("/v1/models", headers={**both, "x-api-key": "sk-one"})).status_code == 200
    # Where nobody needs a key, nobody pays.
    assert (await (await start_site()).http.get("/v1/models", headers=both)).status_code == 200


@pytest.mark.parametrize(
    ("path", "allow"),
    [(CHAT, "POST, OPTIONS"), ("/v1/models", "GET, HEAD, OPTIONS"), ("/v1/files", "GET, HEAD, POST, OPTIONS")],
)
async def test_options_says_what_there_is(site, path, allow):
    response = await site.http.request("OPTIONS", path)
    assert (response.status_code, response.headers["allow"], response.content) == (204, allow, b"")
    assert (await site.http.request("OPTIONS", "/v1/nothing")).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {**BODY, "temperature": 9}, "temperature"),
        (CHAT, {**BODY, "messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages.0.content.0.type"),
        ("/v1/messages", {**BODY, "max_tokens": 0}, "max_tokens"),
    ],
)
async def test_the_log_names_the_field_of_a_refusal(site, caplog, path, body, field):
    caplog.set_level(logging.INFO)
    assert (await site.http.post(path, json=body)).status_code == 400
    (record,) = [record for record in caplog.records if record.msg == "request"]
    assert (record.status, record.error, record.field) == (400, "InvalidRequest", field)


async def test_the_log_of_an_answer_names_no_error(site, caplog):
    caplog.set_level(logging.INFO)
    assert (await site.http.post(CHAT, json=BODY)).status_code == 200
    (record,) = [record for record in caplog.records if record.msg == "request"]
    assert not hasattr(record, "error")
