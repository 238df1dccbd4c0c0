"""A turn of an agent on a long conversation: how long from the request to the engine."""

import random
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from services.tokenizer.vocabulary import Vocabulary, load_vocabulary
from tests.bench.gateway_site import bench, clients

HISTORY_TOKENS = 100_000
TURN_TOKENS = 200
NUM_TURNS = 16
NUM_WARM = 3
RESULT_TOKENS = 1500  # of a call in the history
NUM_TOOLS = 20

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{number}",
            "description": "Read a part of a file of the project, with the numbers of its lines.",
            "parameters": {
                "type": "object",
                "properties": {
                    "path": {"type": "string", "description": "Path of the file, from the root of the project."},
                    "first_line": {"type": "integer", "minimum": 1},
                    "kind": {"enum": ["text", "bytes"], "type": "string"},
                },
                "required": ["path"],
            },
        },
    }
    for number in range(NUM_TOOLS)
]


class Conversation:
    """An agent's conversation: a task, then calls and what they returned, which is text from this project."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._random = random.Random(1)
        root = Path(__file__).resolve().parents[2]
        files = sorted((root / "services").rglob("*.py"))
        self._token_ids = vocabulary.encode("\n".join(file.read_text() for file in files))
        self.messages: list[dict[str, Any]] = [{"role": "user", "content": "Find what is slow here, and mend it."}]
        self.num_tokens = 0

    def add(self, num_tokens: int) -> None:
        """Add a call and its result, of about so many tokens in all."""
        number = sum(message["role"] == "assistant" for message in self.messages)
        call = {"name": f"tool_{number % NUM_TOOLS}", "arguments": '{"path": "services/runtime/server.py"}'}
        call_id = f"functions.{call['name']}:{number}"
        start = self._random.randrange(len(self._token_ids) - num_tokens)
        thought = "The next file to read is the one that calls this."
        self.messages += [
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": thought,
                "tool_calls": [{"id": call_id, "type": "function", "function": call}],
            },
            {
                "role": "tool",
                "tool_call_id": call_id,
                "content": self._vocabulary.decode(self._token_ids[start : start + num_tokens - 50]),
            },
        ]
        self.num_tokens += num_tokens


async def measure_history(folder: Path) -> dict[str, object]:
    """Return one row: turns of TURN_TOKENS tokens on HISTORY_TOKENS."""
    vocabulary = load_vocabulary(folder)
    conversation = Conversation(vocabulary)
    while conversation.num_tokens < HISTORY_TOKENS:
        conversation.add(RESULT_TOKENS)
    seconds: list[float] = []
    cpu: list[np.ndarray] = []
    async with bench(folder, 0.001) as running, clients(running, 1) as (client,):
        for _ in range(NUM_TURNS):
            conversation.add(TURN_TOKENS)
            started = np.array(running.cpu_s())
            options = {"tools": TOOLS, "thinking": {"type": "enabled"}}
            answer = await client.ask(running.take_seed(), 1, conversation.messages, **options)
            seconds.append((await running.noted(answer))["called"] - answer.sent)
            cpu.append(np.array(running.cpu_s()) - started)
    warm = [one * 1e3 for one in seconds[NUM_WARM:]]
    return {
        "history tokens": conversation.num_tokens,
        "first turn ms": f"{seconds[0] * 1e3:.0f}",
        "request to engine ms p50 / max": f"{median(warm):.1f} / {max(warm):.1f}",
        "CPU ms, gateway + tokenizer": " + ".join(f"{one * 1e3:.0f}" for one in np.mean(cpu[NUM_WARM:], axis=0)),
    }
