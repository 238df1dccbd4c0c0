"""Our OpenAPI page against the server: whatever fits the page, or nearly fits it, gets an answer that fits it too."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from gateway.dialects.answer_schemas import ANSWERS
from tests.gateway.fuzzing import site_in_thread

OPERATIONS = 28
CHECKED = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
FEW = settings(
    max_examples=8,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def url(vocabulary):
    with site_in_thread(vocabulary, max_body_bytes=50_000, endless=True) as url:
        yield url


@pytest.fixture(scope="module")
def operations(url):
    """All operations of the page, as the gateway serves it."""
    document = httpx.get(f"{url}/openapi.json", trust_env=False).raise_for_status().json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    return [result.ok() for result in schema.get_all_operations()]


@pytest.mark.slow
def test_the_page_is_whole(operations):
    assert len(operations) >= OPERATIONS
    posts = [operation for operation in operations if operation.method == "post"]
    without = [operation.path for operation in posts if not list(operation.body)]
    assert all(path.startswith("/v1/responses/") for path in without)


def test_answers_are_told_for_operations_that_there_are(operations):
    told = {(operation.method, operation.path) for operation in operations}
    assert not ANSWERS.keys() - told


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.slow
def test_every_operation(operations, mode):
    for operation in operations:
        # There is no wrong text for a path.
        if mode is GenerationMode.POSITIVE or list(operation.body):
            check(operation, mode)


def check(operation, mode):
    """A few requests to one operation."""

    @FEW
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        case.call_and_validate(checks=CHECKED)

    ask()
