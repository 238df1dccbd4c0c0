"""Whatever is sent: no 5xx, no cut connection, no error in the log.

    python -m tests.bench.abuse.fuzz schemathesis [NUMBER [site]]   bodies that fit our OpenAPI page or nearly do
    python -m tests.bench.abuse.fuzz mutations [NUMBER [site]]      right bodies of all dialects, damaged

They go to Nano as `moonshard up` serves it, or to the tests' site: the real gateway and tokenizer before scripted
engines, in this process, which takes a fraction of the time.

429 and 503 are honest answers to an overload if they say when to come again. A client waits `PATIENCE_S` and leaves.
"""

import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi import checks

from services.tokenizer.vocabulary import load_vocabulary
from tests.bench.abuse.mutations import mutations
from tests.bench.abuse.traffic import Tally
from tests.bench.served import ErrorLines, served_nano
from tests.bench.table import print_table
from tests.gateway.conftest import NUM_TOKENS
from tests.gateway.fuzzing import site_in_thread
from tests.gateway.site import CONTEXT_TOKENS, MODEL
from tests.small_tokenizer import write_small_tokenizer

NUM_BODIES = {"schemathesis": 20_000, "mutations": 100_000}
NUM_AT_ONCE = 8
NUM_EXAMPLES = 50  # of one operation before the next
PATIENCE_S = 10.0
CHECKED = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def judge(status: int, retry_after: str | None, what: str, tally: Tally) -> None:
    """Count an answer, and note it if it is none that a client may get."""
    if status < 500 or (status in (503, 529) and retry_after):
        tally.counts[f"{status}"] += 1
    else:
        tally.note(f"{status}", what)


def fuzz_page(url: str, num_bodies: int, tally: Tally) -> None:
    """Send what fits the page of the gateway, and what nearly does, one operation after another."""
    document = httpx.get(f"{url}/openapi.json", trust_env=False).raise_for_status().json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    operations = [result.ok() for result in schema.get_all_operations()]
    with_body = [operation for operation in operations if list(operation.body)]

    def examples(operation: schemathesis.APIOperation, mode: GenerationMode, number: int) -> None:
        @seed(number)
        @settings(
            max_examples=NUM_EXAMPLES,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = MODEL  # most other names end in 404, and nothing behind it is tried
            what = f"{operation.method} {operation.path} {case.body!r}"[:800]
            try:
                response = case.call(timeout=PATIENCE_S)
            except requests.Timeout:
                tally.counts["left"] += 1
                return
            except requests.RequestException as error:
                tally.note("cut", f"{type(error).__name__} {error} {what}"[:800])
                return
            again = (response.headers.get("retry-after") or [None])[0]
            judge(response.status_code, again, what, tally)
            try:
                case.validate_response(response, checks=CHECKED)
            except (Failure, FailureGroup) as failure:
                tally.note("not as the page says", f"{failure} {what}"[:800])

        send()

    for number, operation in enumerate(operations):
        if operation not in with_body:
            examples(operation, GenerationMode.POSITIVE, number)
    tally.counts.clear()
    # One after another: hypothesis fails with threads while it describes lambdas.
    for number in count():
        if tally.counts.total() >= num_bodies:
            return
        operation = with_body[number % len(with_body)]
        examples(operation, list(GenerationMode)[number // len(with_body) % 2], number)


async def fuzz_mutations(url: str, num_bodies: int, tally: Tally) -> None:
    """Send damaged bodies, several at once."""
    damaged = mutations(num_bodies)

    async def client(http: httpx.AsyncClient) -> None:
        for path, headers, body in damaged:
            what = f"{path} {headers} {body[:700]!r}"
            try:
                async with asyncio.timeout(PATIENCE_S):
                    response = await http.post(path, content=body, headers=headers)
            except TimeoutError:
                tally.counts["left"] += 1
                continue
            except httpx.HTTPError as error:
                tally.note("cut", f"{type(error).__name__} {error} {what}")
                continue
            judge(response.status_code, response.headers.get("retry-after"), what, tally)
            is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
            if is_stream and not any(end in response.text for end in ("[DONE]", "message_stop", "response.")):
                tally.note("cut", f"the stream ends early {what}")

    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http, asyncio.TaskGroup() as group:
        for _ in range(2 * NUM_AT_ONCE):
            group.create_task(client(http))


@contextmanager
def nano() -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """The URL of a cluster, and a function that returns the errors in its log so far."""
    with served_nano(DEFAULT_MAX_TOKENS="16") as cluster:
        errors = ErrorLines(cluster)

        def found() -> list[str]:
            errors.read()
            return errors.found

        yield cluster.url, found


@contextmanager
def scripted() -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """The same of the tests' site."""
    handler = Errors()
    logging.getLogger().addHandler(handler)
    with tempfile.TemporaryDirectory() as folder:
        write_small_tokenizer(Path(folder), NUM_TOKENS, CONTEXT_TOKENS)
        with site_in_thread(load_vocabulary(Path(folder)), max_body_bytes=1 << 20) as url:
            yield url, lambda: handler.found


class Errors(logging.Handler):
    """Keeps the errors of this process."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.found.append(logging.Formatter().format(record)[:2000])


def main() -> None:
    part = sys.argv[1] if len(sys.argv) > 1 else "mutations"
    num_bodies = int(sys.argv[2]) if len(sys.argv) > 2 else NUM_BODIES[part]
    tally = Tally()
    with (scripted if sys.argv[3:] == ["site"] else nano)() as (url, errors):
        started_s = time.monotonic()
        # An interrupt ends the run early; the table says how far it came.
        with suppress(KeyboardInterrupt):
            if part == "schemathesis":
                fuzz_page(url, num_bodies, tally)
            else:
                asyncio.run(fuzz_mutations(url, num_bodies, tally))
        seconds = round(time.monotonic() - started_s)
        lines = errors()
    counts = dict(sorted(tally.counts.items()))
    print_table(f"Fuzzing with {part}", [{"seconds": seconds, **counts, "ERROR lines": len(lines)}])
    print("\n".join(["", *tally.notes, *lines[:20]]))


if __name__ == "__main__":
    main()
