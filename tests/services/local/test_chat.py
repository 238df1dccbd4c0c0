"""A conversation in the terminal, with a real HTTP server that gives scripted answers."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from services.local.answer import ChatClient, ChatFailed, Piece, Question
from services.local.chat import ChatOptions, converse
from tests.services.local.scripted_server import DONE, HANG, said, scripted_server, thought
from tests.services.local.typist import Typist

ROOT = Path(__file__).resolve().parents[3]
HELLO = [{"role": "user", "content": "hello"}]


@contextlib.contextmanager
def client_of(*answers, api_key=""):
    with scripted_server(*answers) as server, contextlib.closing(ChatClient(server.url, api_key)) as client:
        yield client, server


def talk(client, lines, console=None, **options) -> str:
    """Return what is printed when these lines are typed; an exception among them is raised instead."""
    console = console or Console(file=io.StringIO(), width=80)
    typed = iter(lines)

    def read_line(_prompt):
        line = next(typed, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    converse(client, console, ChatOptions("the-model", **options), read_line)
    return console.file.getvalue()


def test_pieces_of_an_answer():
    with client_of([thought("hm"), said("a"), {"choices": [], "usage": {}}, said(""), said("b"), DONE]) as (
        client,
        server,
    ):
        pieces = list(client.ask(Question("m", HELLO)))
    assert pieces == [Piece("thinking", "hm"), Piece("answer", "a"), Piece("answer", "b")]
    assert server.requests == [{"model": "m", "messages": HELLO, "stream": True, "thinking": {"type": "enabled"}}]
    assert "Authorization" not in server.headers[0]


def test_choices_of_the_caller_are_sent():
    with client_of([DONE], api_key="secret") as (client, server):
        list(client.ask(Question("m", HELLO, thinking=False, max_tokens=5, temperature=0.0)))
    request = server.requests[0]
    assert (request["thinking"], request["max_tokens"], request["temperature"]) == ({"type": "disabled"}, 5, 0.0)
    assert server.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "answer, message",
    [
        pytest.param((400, {"error": {"message": "no such field"}}), "400 Bad Request: no such field", id="refused"),
        pytest.param((502, b"<html>"), "502 Bad Gateway: <html>", id="not-json"),
        pytest.param((500, {"detail": "x"}), '500 Internal Server Error: {"detail": "x"}', id="other-json"),
        pytest.param([said("a"), {"error": {"message": "experts are gone"}}], "experts are gone", id="in-mid-stream"),
        pytest.param([said("a")], "the server broke off in the middle of the answer", id="no-end"),
    ],
)
def test_failures(answer, message):
    with client_of(answer) as (client, _), pytest.raises(ChatFailed) as failed:
        list(client.ask(Question("m", HELLO)))
    assert str(failed.value) == message


@pytest.mark.parametrize(
    "line, reply",
    [
        ("/thinkin off", "there is no /thinkin, was /thinking meant?"),
        ("/exit", "there is no /exit"),
        ("/xyzzy", "there is no /xyzzy; /help lists what there is"),
        ("/thinking maybe", "/thinking is on, off or keep"),
        ("/image", "/image needs the name of a file"),
        ("/image notes.txt", "notes.txt is no picture"),
        ("/image none.png", "none.png cannot be read: No such file or directory"),
        ("/help", "/image FILE"),
    ],
)
def test_a_command_that_is_not_understood_says_so(line, reply):
    with client_of() as (client, server):
        assert reply in talk(client, [line])
    assert server.requests == []


def test_a_picture_goes_with_the_next_question_only(tmp_path):
    path = tmp_path / "a b.PNG"
    path.write_bytes(b"\x89PNG")
    with client_of([said("a cat"), DONE], [said("yes"), DONE]) as (client, server):
        assert "a b.PNG goes with the next question" in talk(client, [f"/image {path}", "what is it?", "sure?"])
    first, second = (request["messages"] for request in server.requests)
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}
    assert first == [{"role": "user", "content": [picture, {"type": "text", "text": "what is it?"}]}]
    assert second[0] == first[0]
    assert second[2] == {"role": "user", "content": "sure?"}


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with contextlib.closing(ChatClient(url)) as client, pytest.raises(ChatFailed, match=f"no server answers at {url}"):
        client.first_model()


def test_proxy_of_the_environment_is_not_asked(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with client_of() as (client, _):
        assert client.first_model() == "the-model"


def test_leaving_closes_the_connection():
    with client_of([said("a"), HANG]) as (client, server):
        answer = client.ask(Question("m", HELLO))
        assert next(answer) == Piece("answer", "a")
        assert not server.client_left.is_set()
        answer.close()
        assert server.client_left.wait(10)


def test_history_grows_and_is_forgotten():
    with client_of([thought("hm"), said("one"), DONE], [said("two"), DONE], [said("three"), DONE]) as (client, server):
        talk(client, ["first", "", "second", "/reset", "third"], system="be brief")
    system = {"role": "system", "content": "be brief"}
    first = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "one", "reasoning_content": "hm"}]
    assert [request["messages"] for request in server.requests] == [
        [system, first[0]],
        [system, *first, {"role": "user", "content": "second"}],
        [system, {"role": "user", "content": "third"}],
    ]


def test_thinking_is_switched():
    with client_of([DONE], [DONE], [DONE], [DONE]) as (client, server):
        lines = ["a", "/thinking off", "b", "/thinking keep", "/thinking maybe", "c", "/thinking on", "d", "/quit", "e"]
        printed = talk(client, lines)
    on, off = {"type": "enabled"}, {"type": "disabled"}
    assert [request["thinking"] for request in server.requests] == [on, off, {**on, "keep": "all"}, on]
    assert "thinking is off" in printed
    assert "/thinking is on, off or keep" in printed


def test_failed_question_is_not_remembered():
    with client_of((503, {"error": {"message": "[red]overloaded"}}), [said("yes"), DONE]) as (client, server):
        printed = talk(client, ["first", "second"])
    assert "503 Service Unavailable: [red]overloaded" in printed
    assert server.requests[1]["messages"] == [{"role": "user", "content": "second"}]


def test_ctrl_c_at_the_prompt_does_not_leave():
    with client_of([said("yes"), DONE]) as (client, server):
        printed = talk(client, [KeyboardInterrupt(), "question"])
    assert "Ctrl-D or /quit leaves" in printed
    assert len(server.requests) == 1


def test_only_the_answer_goes_into_a_pipe():
    with client_of([thought("hm"), said("yes [b]no[/b] :smile:"), DONE]) as (client, _):
        assert talk(client, ["question"]) == "yes [b]no[/b] :smile:\n\n"


def test_thinking_is_dimmed_in_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    with client_of([thought("hm"), said("yes"), DONE]) as (client, _):
        assert talk(client, ["question"], console) == "\x1b[2mhm\x1b[0m\n\nyes\n\n"


def test_answer_cannot_command_the_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=80)
    with client_of([said("a\x1b]0;title\x07b\x9b31mc\td\r\n\u202ee\U0001f600"), DONE]) as (client, _):
        printed = talk(client, ["question"], console)
    assert printed == "a\ufffd]0;title\ufffdb\ufffd31mc\td\n\ufffde\U0001f600\n\n"


def moonshard(*arguments, **options):
    command = [sys.executable, "-m", "services.local", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, **options)


def test_question_as_an_argument_and_from_the_input():
    with scripted_server([thought("hm"), said("forty-two"), DONE], [said("yes"), DONE]) as server:
        asked = moonshard("chat", "--url", server.url, "why?", stdin=subprocess.DEVNULL)
        piped = moonshard("chat", "--url", server.url + "/v1/", input="from a pipe\n")
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, "forty-two\n", "")
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, "yes\n", "")
    assert [request["messages"][0]["content"] for request in server.requests] == ["why?", "from a pipe"]
    assert server.requests[0]["model"] == "the-model"


def test_answer_that_is_all_thinking():
    with scripted_server([thought("hm"), DONE]) as server:
        asked = moonshard("chat", "--url", server.url, "why?", stdin=subprocess.DEVNULL)
    assert (asked.returncode, asked.stdout) == (0, "\n")
    assert "thinking used up all tokens" in asked.stderr


@pytest.mark.slow
def test_command_says_what_is_wrong(tmp_path):
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    nobody = moonshard("chat", "hello", env=environ)
    assert nobody.returncode == 2
    assert "no cluster is running" in nobody.stderr
    empty = moonshard("chat", "--url", "http://127.0.0.1:1", "--model", "m", input=" \n")
    assert (empty.returncode, empty.stderr) == (2, "moonshard: there is nothing to ask: the input is empty\n")
    gone = moonshard("chat", "--url", "http://127.0.0.1:1", "hello")
    assert gone.returncode == 2
    assert "no server answers at http://127.0.0.1:1" in gone.stderr


def test_ctrl_c_stops_the_running_answer_only():
    with scripted_server([thought("hm"), said("one two"), HANG], [said("three"), DONE]) as server:
        typist = Typist("chat", "--url", server.url)
        typist.wait_for("> ")
        typist.type("first\n")
        typist.wait_for("one two")
        assert "\x1b[2mhm" in typist.screen
        typist.type(chr(3))
        typist.wait_for("(stopped)")
        assert server.client_left.wait(10)
        typist.wait_for("> ")
        typist.type("second\n")
        typist.wait_for("three")
        typist.wait_for("> ")
        typist.type(chr(4))
        assert typist.exit_code() == 0
    # The printed part of the answer stays in the conversation.
    assert [message["content"] for message in server.requests[1]["messages"]] == ["first", "one two", "second"]


def test_ctrl_c_ends_a_single_question():
    with scripted_server([said("one"), HANG]) as server:
        typist = Typist("chat", "--url", server.url, "first")
        typist.wait_for("one")
        typist.type(chr(3))
        assert typist.exit_code() == 128 + signal.SIGINT
        assert server.client_left.wait(10)
