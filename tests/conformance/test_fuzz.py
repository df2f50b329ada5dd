"""Requests made from our own OpenAPI document: none ends in a 5xx of ours, none hangs."""

from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import (
    CheckFunction,
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.core.result import Ok

from tests.gateway.harness import Gateway

LIMIT_S = 60
"""A request that takes longer hangs."""

EXAMPLES = 12
CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

OPERATIONS = (
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/responses",
    "POST /v1/embeddings",
    "POST /tokenize",
    "POST /detokenize",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "GET /health",
    "GET /ready",
    "GET /metrics",
    "GET /metrics/vllm",
    "GET /metrics/otel",
    "GET /version",
    "GET /admin/live",
    "GET /admin/models",
    "GET /admin/compare",
    "POST /admin/compare",
    "GET /admin/compare/{comparison}",
    "DELETE /admin/compare/{comparison}",
    "GET /admin/fidelity",
    "GET /admin/shadow",
    "POST /admin/shadow",
    "POST /admin/side-by-side",
    "POST /admin/models/{model}/canary",
    "GET /admin/models/{model}/canary",
    "DELETE /admin/models/{model}/canary",
    "POST /admin/models/{model}/load",
    "POST /admin/models/{model}/unload",
    "POST /admin/models/{model}/activate",
)
ENDLESS = {"GET /admin/events"}

ATTEMPTS = [
    (label, mode)
    for label in OPERATIONS
    for mode in GenerationMode
    # Without a body nothing can be wrong.
    if mode is GenerationMode.POSITIVE or (label.startswith("POST") and "{model}" not in label)
]

Operations = dict[str, schemathesis.APIOperation[Any, Any, Any, Any]]


@pytest.fixture(scope="module")
def operations(gateway: Gateway) -> Operations:
    """Return every operation of the document by its label."""
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    found = [item.ok() for item in schema.get_all_operations() if isinstance(item, Ok)]
    return {operation.label: operation for operation in found}


def test_every_operation_is_tried(operations: Operations) -> None:
    """The list above is the document's."""
    assert set(operations) == set(OPERATIONS) | ENDLESS


@pytest.mark.parametrize(("label", "mode"), ATTEMPTS)
def test_requests_from_the_document(
    operations: Operations, gateway: Gateway, label: str, mode: GenerationMode
) -> None:
    """Valid and invalid requests get a documented status, and a body of the documented form."""

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operations[label].as_strategy(mode))
    def attempt(case: Case[Any]) -> None:
        if label.startswith("POST") and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "tiny"  # else all that is tried is the name
        with requests.Session() as session:
            response = case.call(base_url=gateway.url, session=session, timeout=LIMIT_S)
        case.validate_response(response, checks=CHECKS)

    attempt()
    assert gateway.status("/ready") == 200
