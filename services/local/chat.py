"""`moonshard chat`: a conversation in the terminal."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console

from services.local.answer import ChatClient, ChatFailed, Question
from services.local.terminal import printable

DIM, PLAIN = "\x1b[2m", "\x1b[0m"

HELP = """\
/thinking on|off|keep   let the model think before it answers; keep: and know what it thought before
/reset                  forget the conversation
/quit                   leave (or Ctrl-D)
Ctrl-C                  stop the answer that is running"""


@dataclass
class ChatOptions:
    """What stays the same over a conversation; what concerns thinking may be switched in it."""

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
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.options.system}] if self.options.system else []

    @property
    def has_answer(self) -> bool:
        """Whether the last question was answered with any text."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    def ask(self, client: ChatClient, console: Console, text: str) -> bool:
        """Prints the answer as it comes and remembers it. False if Ctrl-C broke it off; ChatFailed as the client.

        What was printed of a broken-off answer is remembered too, unless there was none: then the question is
        forgotten with it.
        """
        asked = {"role": "user", "content": text}
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
                # Elsewhere than in a terminal only the answer is wanted.
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


def show(console: Console, text: str, *, dim: bool) -> None:
    """Prints a piece of text as it is, without a line end. Past rich, which would expand tabs within each piece."""
    text = printable(text)
    if dim and console.is_terminal and not console.is_dumb_terminal:
        text = f"{DIM}{text}{PLAIN}"
    console.file.write(text)
    console.file.flush()


def note(console: Console, text: str, style: str = "dim") -> None:
    """Prints a line that is not the model's."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def converse(client: ChatClient, console: Console, options: ChatOptions, read_line: Callable[[str], str]) -> None:
    """Reads a line, answers it, and so on until /quit or the end of the input."""
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
    """Carries out a line that begins with a slash; returns what to say about it."""
    match line.split():
        case ["/reset"]:
            conversation.reset()
            return "forgotten"
        case ["/thinking", ("on" | "off" | "keep") as wanted]:
            conversation.options.thinking = wanted != "off"
            conversation.options.keep_thoughts = wanted == "keep"
            return "thinking is on, thoughts are kept" if wanted == "keep" else f"thinking is {wanted}"
        case _:
            return HELP
