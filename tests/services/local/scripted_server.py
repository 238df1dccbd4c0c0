"""A real HTTP server with a chat endpoint that gives a test's answers."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def thought(text: str) -> dict:
    return {"choices": [{"index": 0, "delta": {"reasoning_content": text}}]}


def said(text: str) -> dict:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


DONE = "[DONE]"
# Keeps the connection open and silent until the client leaves or the test ends.
HANG = "hang"


@dataclass
class ScriptedServer:
    """Each request takes the next of `answers`: a list of events for a stream, or (status, body)."""

    url: str = ""
    answers: list = field(default_factory=list)
    requests: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    client_left: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def scripted_server(*answers) -> Iterator[ScriptedServer]:
    script = ScriptedServer(answers=list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/v1/models"
            self._send(200, {"data": [{"id": "the-model"}]})

        def do_POST(self):
            assert self.path == "/v1/chat/completions"
            script.headers.append(dict(self.headers))
            script.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = script.answers.pop(0)
            if isinstance(answer, tuple):
                self._send(*answer)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b": keep-alive\n\n")
            for event in answer:
                if event == HANG:
                    # Returns when the connection ends, since the client sends nothing more.
                    self.rfile.read(1)
                    script.client_left.set()
                    return
                text = event if isinstance(event, str) else json.dumps(event)
                self.wfile.write(f"data: {text}\n\n".encode())

        def _send(self, status, body):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            thread.join()
