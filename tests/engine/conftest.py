"""One engine around the scripted model, for the tests that speak HTTP to it."""

from collections.abc import Iterator

import openai
import pytest

from tests.engine.fakes import (
    ANSWER,
    RunningEngine,
    make_runner,
    make_toy_tokenizer,
    running_engine,
    wait_until,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """Return one engine for the whole module."""
    tokenizer = make_toy_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    with running_engine(make_runner(tokenizer, ANSWER), tokenizer) as engine:
        yield engine


@pytest.fixture
def engine(shared: RunningEngine) -> Iterator[RunningEngine]:
    """Return the engine, whole and idle before and after."""
    yield shared
    shared.runner.delay_s = 0.0
    shared.runner.fault = None
    shared.service.is_draining = False
    wait_until(lambda: shared.service.is_idle)
    shared.runner.batches.clear()


@pytest.fixture
def client(engine: RunningEngine) -> Iterator[openai.OpenAI]:
    """Return the official client, without retries."""
    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as client:
        yield client
