"""Whatever is sent to Nano as `moonshard up` serves it: no 5xx, no cut connection, no error in the log.

    python -m tests.bench.fuzz schemathesis [NUMBER]   bodies from our own OpenAPI page, right and nearly right
    python -m tests.bench.fuzz mutations [NUMBER]      right bodies of all dialects, damaged

429 and 503 are honest answers to an overload if they say when to come again. A client waits `PATIENCE_S` and leaves.
"""

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi import checks

from tests.bench.mutations import mutations
from tests.bench.served import ErrorLines, served_nano
from tests.bench.table import print_table
from tests.bench.traffic import Tally

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
    """Send what fits the page of the gateway, and what nearly does, one operation after another in several threads."""
    document = httpx.get(f"{url}/openapi.json", trust_env=False).raise_for_status().json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    operations = [result.ok() for result in schema.get_all_operations()]
    with_body = [operation for operation in operations if list(operation.body)]
    left = count(0)

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

    def work(number: int) -> None:
        operation = with_body[number % len(with_body)]
        examples(operation, list(GenerationMode)[number // len(with_body) % 2], number)

    for number, operation in enumerate(operations):
        if operation not in with_body:
            examples(operation, GenerationMode.POSITIVE, number)
    tally.counts.clear()
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        running = [pool.submit(work, next(left)) for _ in range(NUM_AT_ONCE)]
        while running:
            running.pop(0).result()
            if tally.counts.total() < num_bodies:
                running.append(pool.submit(work, next(left)))


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


def main() -> None:
    part = sys.argv[1] if len(sys.argv) > 1 else "mutations"
    num_bodies = int(sys.argv[2]) if len(sys.argv) > 2 else NUM_BODIES[part]
    tally = Tally()
    with served_nano(DEFAULT_MAX_TOKENS="16") as cluster:
        errors = ErrorLines(cluster)
        started_s = time.monotonic()
        if part == "schemathesis":
            fuzz_page(cluster.url, num_bodies, tally)
        else:
            asyncio.run(fuzz_mutations(cluster.url, num_bodies, tally))
        seconds = round(time.monotonic() - started_s)
        errors.read()
    counts = dict(sorted(tally.counts.items()))
    print_table(f"Fuzzing with {part}", [{"seconds": seconds, **counts, "ERROR lines": len(errors.found)}])
    print("\n".join(["", *tally.notes, *errors.found[:20]]))


if __name__ == "__main__":
    main()
