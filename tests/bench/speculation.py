"""What drafts from the context gain: agents' answers on the 1.3-billion-parameter benchmark checkpoint.

    python -m tests.bench.speculation [--model FOLDER] [--transcripts 20]

The texts are real, the weights are random: every answer is forced, token by token, by a constraint that allows no
other. So the time is that of the real engine, and what a draft guesses right depends on the texts alone. An agent's
answer edits a file that it has just read, or calls tools in a loop; prose is new text after other prose.
"""

import argparse
import asyncio
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from services.attention.assembly import Assembly
from services.attention.engine.generation import Event, Generation, Tokens
from services.attention.replica import EngineReplica
from services.attention.sampling.on_host import Rule, SamplingParams
from services.attention.settings import AttentionSettings
from services.checkpoint.block_names import BlockNames
from services.local.cluster import num_cores
from services.local.random_checkpoint.write import write_random_checkpoint
from services.tokenizer.vocabulary import load_vocabulary
from tests.bench.engines import spread
from tests.bench.table import print_table

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 3
STREAMS = (1, 8)
FILE_LINES = 40
PROSE = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "kernels/README.md", "gateway/README.md")

Case = tuple[list[int], list[int]]
"""Prompt and answer."""


class Forced:
    """A constraint that allows one answer."""

    def __init__(self, token_ids: Sequence[int], num_prompt: int, answer: Sequence[int], size: int) -> None:
        self._token_ids = token_ids
        self._num_prompt = num_prompt
        self._answer = answer
        self._mask = np.zeros(size, dtype=np.bool_)

    def rule(self) -> Rule:
        self._mask[:] = False
        self._mask[self._answer[len(self._token_ids) - self._num_prompt]] = True
        return Rule(self._mask)


def edit_of_a_file(number: int) -> tuple[str, str]:
    """Read a file, then name the lines to replace and what replaces them."""
    rng = random.Random(number)
    path = rng.choice(sorted(ROOT.glob("services/**/*.py")))
    lines = path.read_text().splitlines()
    first = rng.randrange(max(1, len(lines) - FILE_LINES))
    shown = lines[first : first + FILE_LINES]
    place = rng.randrange(max(1, len(shown) - 8))
    old = shown[place : place + 8]
    new = [line.replace("self", "this") for line in old]
    call = {"path": str(path.relative_to(ROOT)), "old": "\n".join(old), "new": "\n".join(new)}
    prompt = f"Read {call['path']} and rename self.\n" + "\n".join(shown) + "\n"
    return prompt, json.dumps(call, indent=1)


def tool_loop(number: int) -> tuple[str, str]:
    """One call after another of the same form, as an agent makes them that goes through a folder."""
    rng = random.Random(number)
    names = [str(path.relative_to(ROOT)) for path in rng.sample(sorted(ROOT.glob("tests/**/*.py")), 9)]
    prompt = "Look at these files, one by one:\n" + "\n".join(names) + "\n"
    calls = [f'{{"name": "read_file", "arguments": {{"path": "{name}", "first": 1, "last": 200}}}}' for name in names]
    return prompt, "\n".join(calls)


def prose(number: int) -> tuple[str, str]:
    text = (ROOT / PROSE[number % len(PROSE)]).read_text()
    first = random.Random(number).randrange(len(text) // 2)
    return text[first : first + 1200], text[first + 1200 : first + 2000]


class Bench:
    """A replica in this process."""

    def __init__(self, replica: EngineReplica) -> None:
        self._replica = replica

    async def answer(self, prompt: Sequence[int], answer: Sequence[int]) -> tuple[list[int], float]:
        """Return the tokens that came, and the seconds from the first to the last."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        limits = self._replica.limits
        token_ids = list(prompt)
        generation = Generation(
            request_id="bench",
            token_ids=token_ids,
            num_prompt=len(prompt),
            sampling=SamplingParams(temperature=0.0),
            max_tokens=len(prompt) + len(answer),
            names=BlockNames(limits.names_root, limits.block_tokens, num_prompt=len(prompt)),
            sink=lambda event: loop.call_soon_threadsafe(events.put_nowait, event),
            constraint=Forced(token_ids, len(prompt), answer, limits.vocab_size),
        )
        self._replica.engine.submit(generation)
        tokens, first_s = [], 0.0
        while True:
            event = await events.get()
            assert isinstance(event, Tokens), event
            first_s = first_s or time.perf_counter()
            tokens += [choice.token_id for choice in event.choices]
            if event.finish_reason is not None:
                return tokens, time.perf_counter() - first_s


async def rates(model: Path, draft_tokens: int, cases: Sequence[Case]) -> dict[int, list[float]]:
    """Return tokens per second by the number of streams at once, one figure for each repeat."""
    settings = AttentionSettings(
        listen="127.0.0.1:0",
        model=model,
        role="decode",
        num_blocks=512,
        threads=num_cores(),
        draft_tokens=draft_tokens,
    )
    replica = Assembly(settings).replica()
    await replica.open(60.0)
    bench = Bench(replica)
    found: dict[int, list[float]] = {}
    try:
        for streams, _ in itertools.product(STREAMS, range(REPEATS)):
            seconds, num_tokens = 0.0, 0
            for first in range(0, len(cases), streams):
                together = cases[first : first + streams]
                results = await asyncio.gather(*(bench.answer(*case) for case in together))
                assert [tokens for tokens, _ in results] == [answer for _, answer in together]
                seconds += max(s for _, s in results)
                num_tokens += sum(len(tokens) for tokens, _ in results)
            found.setdefault(streams, []).append(num_tokens / seconds)
    finally:
        await replica.close()
    return found


def rows(model: Path, num_transcripts: int) -> Iterator[dict[str, object]]:
    vocabulary = load_vocabulary(model)
    texts = {
        "agents": [(edit_of_a_file if n % 2 else tool_loop)(n) for n in range(num_transcripts)],
        "prose": [prose(n) for n in range(num_transcripts)],
    }
    for name, pairs in texts.items():
        cases = [(vocabulary.encode(prompt), vocabulary.encode(answer)) for prompt, answer in pairs]
        plain, drafted = (asyncio.run(rates(model, most, cases)) for most in (0, 8))
        for streams in STREAMS:
            gain = sorted(drafted[streams])[REPEATS // 2] / sorted(plain[streams])[REPEATS // 2]
            yield {
                "text": name,
                "streams": streams,
                "tokens": sum(len(answer) for _, answer in cases),
                "without drafts tok/s": spread(plain[streams]),
                "with drafts tok/s": spread(drafted[streams]),
                "gain": f"{gain:.2f}",
            }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--transcripts", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = options.model or Path(folder) / "bench-1b"
        if not model.exists():
            write_random_checkpoint(model, dims="bench-1b")
        print_table("Drafts from the context, bench-1b", list(rows(model, options.transcripts)))


if __name__ == "__main__":
    main()
