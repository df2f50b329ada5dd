"""Hostile bodies at the engine's own door: a refusal by name or an answer, never a failure."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.fakes import MESSAGES, MODEL, RunningEngine
from tests.hostile import MUTATIONS, changed, encoded

LIMIT_S = 60
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": MESSAGES, "max_tokens": 2},
    "/v1/completions": {"model": MODEL, "prompt": "a", "max_tokens": 2},
    "/tokenize": {"model": MODEL, "prompt": "a"},
    "/detokenize": {"model": MODEL, "tokens": [1]},
    "/engine/score": {"model": MODEL, "token_ids": [5, 6], "start": 1, "candidates": [[6]]},
}


@pytest.fixture(scope="module")
def http(shared: RunningEngine) -> Iterator[httpx.Client]:
    """Return a client that keeps its connection."""
    with httpx.Client(base_url=shared.url, timeout=LIMIT_S) as client:
        yield client


@settings(
    max_examples=50,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(path=st.sampled_from(list(BODIES)), changes=MUTATIONS)
def test_any_field_may_hold_anything(
    http: httpx.Client, path: str, changes: dict[str, Any]
) -> None:
    """Numbers that are none, huge ones, half characters and deep nesting, in any known field."""
    raw = encoded(changed(BODIES[path], changes))
    reply = http.post(path, content=raw)
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400:
        assert set(json.loads(reply.content)["error"]) == {"message", "type", "param", "code"}
