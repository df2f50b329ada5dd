"""Exact scores: one engine keeps what it served, another compares the whole distributions."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import orjson
import pytest
import torch

from compression.events import ignore
from compression.fidelity import TokenScores, score_tokens
from compression.prepare import build_to
from gateway.engine.runner import load_runner
from gateway.engine.tokenizer import load_tokenizer
from gateway.shadow.divergence import Divergence, compare
from gateway.shadow.embedded_capture import EmbeddedCapture, WholeRows
from gateway.shadow.embedded_scorer import EmbeddedScorer
from gateway.shadow.exact import reading
from gateway.shadow.records import Captured
from gateway.shadow.releases import Releases
from gateway.upstream import EngineClient
from tests.engine.fakes import MODEL, RunningEngine, body, running_engine

MIB = 1024 * 1024
CHUNK = 128
"""Tokens that a reference reads in a step."""


@pytest.fixture(scope="module")
def served(
    tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEngine]:
    """Serve a tiny random model in int4."""
    directory = tmp_path_factory.mktemp("built") / "int4"
    built = build_to(str(tiny_llama_dir), "int4", None, directory, ignore).directory
    runner = load_runner(built, threads=1, max_model_len=None)
    with running_engine(runner, load_tokenizer(built), row_bytes=MIB) as engine:
        yield engine


@pytest.fixture(scope="module")
def full(tiny_llama_dir: Path) -> Iterator[RunningEngine]:
    """Serve the full model, as a reference is served."""
    runner = load_runner(tiny_llama_dir, threads=1, max_model_len=None)
    with running_engine(runner, load_tokenizer(tiny_llama_dir), token_budget=CHUNK) as engine:
        yield engine


def client_of(engine: RunningEngine) -> EngineClient:
    """Return the gateway's client of an engine."""
    return EngineClient(engine.url, served_name=MODEL, read_timeout_s=30)


async def serve(client: EngineClient, capture: EmbeddedCapture, count: int) -> Captured:
    """Ask for so many tokens, as the gateway does for a drawn request; return what was captured."""
    fields = body(max_tokens=count, ignore_eos=True, temperature=0.8, seed=3)
    path = "/v1/chat/completions"
    async with client.generate(path, capture.fields(fields), "r", capture.headers()) as reply:
        orjson.loads(await reply.body())
    captured = await capture.result(client)
    assert captured is not None
    assert len(captured.positions) == count
    return captured


async def exact(
    served: RunningEngine, full: RunningEngine, count: int
) -> tuple[Captured, Divergence]:
    """Return an answer and its score; afterwards nothing of it is kept."""
    client, reference = client_of(served), client_of(full)
    releases = Releases()
    capture = EmbeddedCapture(8, WholeRows(200, releases))
    captured = await serve(client, capture, count)
    scored = await reading(EmbeddedScorer(reference), captured)
    capture.forget(client)
    wait = asyncio.gather(*releases._tasks)
    await wait
    await client.aclose()
    await reference.aclose()
    return captured, compare(captured.positions, scored)


def offline(served: RunningEngine, full: RunningEngine, captured: Captured) -> TokenScores:
    """Return the comparison of the same tokens by the code of ``narrowgate compare``."""
    answer = [position.token_id for position in captured.positions]
    prompt = list(captured.prompt_token_ids)
    ids = prompt + answer
    runner = served.runner
    cache = runner.new_cache(len(ids))
    rows = [runner.forward([(cache, prompt, 1)])]
    rows += [runner.forward([(cache, [token], 1)]) for token in answer[:-1]]
    cache = full.runner.new_cache(len(ids))
    found = []
    for start in range(0, len(ids) - 1, CHUNK):
        part = ids[:-1][start : start + CHUNK]
        found.append(full.runner.forward([(cache, part, len(part))]))
    return score_tokens(torch.cat(found)[len(prompt) - 1 :], torch.cat(rows), answer)


@pytest.mark.parametrize("count", [1, 150])
def test_an_exact_score_is_that_of_the_offline_comparison(
    served: RunningEngine, full: RunningEngine, count: int
) -> None:
    """Position by position to 1e-6 nats, also over several steps; top-k says less, never more."""
    captured, found = asyncio.run(exact(served, full, count))
    expected = offline(served, full, captured)
    assert found.estimator == "exact"
    assert found.kl == pytest.approx(expected.kld.tolist(), abs=1e-6)
    assert all(bound <= kl + 1e-6 for bound, kl in zip(found.bound, found.kl, strict=True))
    assert 0 < found.mean_bound < found.mean_kl
    assert fmean(found.kl) > 1e-4  # int4 moves this model
    assert served.service.captures.row_budget.used == 0
