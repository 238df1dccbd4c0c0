"""A client of the chat endpoint, which yields an answer piece by piece."""

import ipaddress
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

CONNECT_TIMEOUT_S = 5.0
# Longer than the gateway's keep-alive, so that only a dead connection runs into it.
READ_TIMEOUT_S = 60.0


class ChatFailed(Exception):
    """The server cannot be reached, refused the request, or ended the answer early. The message is for users."""


@dataclass(frozen=True)
class Piece:
    """Some text of the answer, or of the thinking before it."""

    channel: Literal["thinking", "answer"]
    text: str


@dataclass(frozen=True)
class Question:
    """A request. `messages` have the API's form; None leaves a choice to the server.

    keep_thoughts  the model sees its thoughts of earlier turns
    """

    model: str
    messages: Sequence[Mapping[str, Any]]
    thinking: bool = True
    keep_thoughts: bool = False
    max_tokens: int | None = None
    temperature: float | None = None

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": list(self.messages), "stream": True}
        body["thinking"] = {"type": "enabled" if self.thinking else "disabled"}
        if self.keep_thoughts:
            body["thinking"]["keep"] = "all"
        optional = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return body | {name: value for name, value in optional.items() if value is not None}


class ChatClient:
    """A client of one server. `api_key` is sent if there is one."""

    def __init__(self, url: str, api_key: str = "") -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._http = httpx.Client(
            base_url=self._url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            # A proxy named in the environment cannot reach a server on this machine.
            trust_env=not _is_local(self._url),
        )

    def close(self) -> None:
        self._http.close()

    def first_model(self) -> str:
        """Return the name of the server's first model."""
        with self._failures():
            answer = self._http.get("/v1/models")
        _check(answer)
        return str(answer.json()["data"][0]["id"])

    def ask(self, question: Question) -> Generator[Piece, None, None]:
        """Yield the answer while it is generated. Closing the iterator makes the server stop generating."""
        with self._failures(), self._http.stream("POST", "/v1/chat/completions", json=question.body()) as answer:
            if answer.status_code != 200:
                answer.read()
            _check(answer)
            yield from _pieces(answer.iter_lines())

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise ChatFailed(f"no server answers at {self._url}: {error}") from error
        except httpx.HTTPError as error:
            raise ChatFailed(f"{self._url}: {error or type(error).__name__}") from error


def _pieces(lines: Iterator[str]) -> Iterator[Piece]:
    """Read server-sent events up to [DONE]. Raises ChatFailed for an error event or an early end of the stream."""
    for line in lines:
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data == "[DONE]":
            return
        if not data:
            continue
        event = json.loads(data)
        if "error" in event:
            raise ChatFailed(_message(event))
        for choice in event.get("choices", []):
            delta = choice.get("delta") or {}
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            if thought:
                yield Piece("thinking", thought)
            if delta.get("content"):
                yield Piece("answer", delta["content"])
    raise ChatFailed("the server broke off in the middle of the answer")


def _check(answer: httpx.Response) -> None:
    if answer.status_code == 200:
        return
    try:
        message = _message(answer.json())
    except ValueError:
        message = answer.text[:500]
    raise ChatFailed(f"{answer.status_code} {answer.reason_phrase}: {message}")


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message", error)) if isinstance(error, dict) else json.dumps(body)[:500]


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
