"""What the OpenAPI document promises holds for requests that a machine thinks up."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.e2e.serving import Server

KEY = {"Authorization": "Bearer key"}
EXAMPLES = settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def server():
    with Server("--api-key", "key") as server:
        server.wait_until_ready()
        yield server


def test_every_answer_is_as_documented(server):
    """Statuses, headers and bodies are those of the document, and none is a 5xx."""
    documented = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in documented.get_all_operations()]
    assert len(operations) == 7
    for operation in operations:

        @EXAMPLES
        @given(operation.as_strategy())
        def check(case):
            case.call_and_validate(headers=KEY, excluded_checks=[positive_data_acceptance])

        check()
