"""`moonshard chat`: a conversation in the terminal."""

import base64
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from services.local.answer import ChatClient, ChatFailed, Question
from services.local.terminal import printable

DIM, PLAIN = "\x1b[2m", "\x1b[0m"

IMAGE_TYPES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}

HELP = """\
/image FILE             send this picture with the next question
/thinking on|off|keep   let the model think before it answers; keep: and know what it thought before
/reset                  forget the conversation
/quit                   leave (or Ctrl-D)
Ctrl-C                  stop the answer that is running"""


@dataclass
class ChatOptions:
    """Options of a conversation; commands may switch those of thinking."""

    model: str
    thinking: bool = True
    system: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    keep_thoughts: bool = False


@dataclass
class Conversation:
    """The messages so far. Owner: the one loop that asks and prints."""

    options: ChatOptions
    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)  # data URLs for the next question

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.images = []
        self.messages = [{"role": "system", "content": self.options.system}] if self.options.system else []

    @property
    def has_answer(self) -> bool:
        """Whether the last question was answered with any text."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    def ask(self, client: ChatClient, console: Console, text: str) -> bool:
        """Print the answer while it is generated, and remember it. Return False if Ctrl-C stopped it.

        The printed part of a stopped answer is remembered too. If there is none, the question is forgotten as well.
        Raises ChatFailed like the client.
        """
        asked = {"role": "user", "content": self._content(text)}
        options = self.options
        question = Question(
            options.model,
            [*self.messages, asked],
            thinking=options.thinking,
            keep_thoughts=options.keep_thoughts,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
        )
        answer = {"role": "assistant", "content": "", "reasoning_content": ""}
        pieces = client.ask(question)
        try:
            for piece in pieces:
                thinking = piece.channel == "thinking"
                if not thinking and not answer["content"] and answer["reasoning_content"] and console.is_terminal:
                    console.print("\n")
                answer["reasoning_content" if thinking else "content"] += piece.text
                # Outside a terminal, for example in a pipe, only the answer is printed.
                if not thinking or console.is_terminal:
                    show(console, piece.text, dim=thinking)
            return True
        except KeyboardInterrupt:
            return False
        finally:
            pieces.close()
            console.print()
            if answer["content"]:
                self.messages += [asked, answer]
                self.images = []

    def add_image(self, path: Path) -> str:
        """Keep a picture for the next question; return a message for the user."""
        kind = IMAGE_TYPES.get(path.suffix.lower())
        if kind is None:
            return f"{path} is no picture: its name ends in none of {', '.join(IMAGE_TYPES)}"
        try:
            data = path.expanduser().read_bytes()
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        self.images.append(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")
        return f"{path.name} goes with the next question"

    def _content(self, text: str) -> str | list[dict[str, Any]]:
        if not self.images:
            return text
        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in self.images]
        return [*pictures, {"type": "text", "text": text}]


def show(console: Console, text: str, *, dim: bool) -> None:
    """Print a piece of text unchanged, without a line end. Bypasses rich, which would expand tabs in each piece."""
    text = printable(text)
    if dim and console.is_terminal and not console.is_dumb_terminal:
        text = f"{DIM}{text}{PLAIN}"
    console.file.write(text)
    console.file.flush()


def note(console: Console, text: str, style: str = "dim") -> None:
    """Print a message of the program, as opposed to the model's text."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def converse(client: ChatClient, console: Console, options: ChatOptions, read_line: Callable[[str], str]) -> None:
    """Read and answer lines until /quit or the end of the input."""
    conversation = Conversation(options)
    while True:
        try:
            line = read_line("> ").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            note(console, "\n(Ctrl-D or /quit leaves)")
            continue
        if line == "/quit":
            return
        if line.startswith("/"):
            note(console, _command(conversation, line))
        elif line:
            try:
                if not conversation.ask(client, console, line):
                    note(console, "(stopped)")
            except ChatFailed as failure:
                note(console, printable(str(failure)), style="red")


def _command(conversation: Conversation, line: str) -> str:
    """Carry out a line that begins with a slash; return a message for the user."""
    word, _, argument = line.partition(" ")
    if word in COMMANDS:
        return COMMANDS[word](conversation, argument.strip())
    near = difflib.get_close_matches(word, [*COMMANDS, "/quit"], n=1, cutoff=0.5)
    return f"there is no {word}" + (f", was {near[0]} meant?" if near else "; /help lists what there is")


def _reset(conversation: Conversation, _argument: str) -> str:
    conversation.reset()
    return "forgotten"


def _set_thinking(conversation: Conversation, wanted: str) -> str:
    if wanted not in {"on", "off", "keep"}:
        return "/thinking is on, off or keep"
    conversation.options.thinking = wanted != "off"
    conversation.options.keep_thoughts = wanted == "keep"
    return "thinking is on, thoughts are kept" if wanted == "keep" else f"thinking is {wanted}"


def _add_image(conversation: Conversation, name: str) -> str:
    return conversation.add_image(Path(name)) if name else "/image needs the name of a file"


COMMANDS: Mapping[str, Callable[[Conversation, str], str]] = {
    "/thinking": _set_thinking,
    "/image": _add_image,
    "/reset": _reset,
    "/help": lambda _conversation, _argument: HELP,
}
