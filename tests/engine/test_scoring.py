"""Tests of the scoring route: exact numbers, bounded chunks, and giving way to requests."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from gateway.engine.loop import MAX_SCORINGS
from gateway.engine.runner import load_runner
from gateway.engine.scoring import Scores
from gateway.engine.tokenizer import load_tokenizer
from tests.engine.fakes import (
    ANSWER,
    MODEL,
    RunningEngine,
    body,
    make_runner,
    make_toy_tokenizer,
    post,
    running_engine,
    wait_until,
)


@pytest.fixture(scope="module")
def real(tiny_llama_dir: Path) -> Iterator[RunningEngine]:
    """Serve a tiny model with random weights."""
    runner = load_runner(tiny_llama_dir, threads=1, max_model_len=None)
    with running_engine(runner, load_tokenizer(tiny_llama_dir)) as engine:
        yield engine


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[RunningEngine]:
    """Serve the scripted model."""
    tokenizer = make_toy_tokenizer(tmp_path)
    with running_engine(make_runner(tokenizer, ANSWER), tokenizer) as engine:
        yield engine


def score(engine: RunningEngine, **fields: Any) -> httpx.Response:
    """Ask for scores."""
    return httpx.post(f"{engine.url}/engine/score", json={"model": MODEL, **fields}, timeout=30)


def token_ids(count: int) -> list[int]:
    """Return a text of random tokens."""
    found: list[int] = torch.randint(
        3, 300, (count,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    return found


def test_scores_are_those_of_reading_the_text_at_once(real: RunningEngine) -> None:
    """Chunks of 128 tokens give the log-probabilities that one pass gives, at every position."""
    ids = token_ids(300)
    start = 40
    candidates = [[ids[place], 7, 250] for place in range(start, 300)] + [[1]]
    reply = score(real, token_ids=ids, start=start, candidates=candidates).json()

    logits = real.runner.score(ids)[start - 1 :]
    expected = logits.log_softmax(1)
    scores = reply["scores"]
    assert reply["object"] == "scores"
    assert (reply["start"], reply["model"]) == (start, MODEL)
    assert [len(row) for row in scores["logprobs"]] == [3] * 260 + [1]
    for row, wanted, found in zip(expected, candidates, scores["logprobs"], strict=True):
        assert found == pytest.approx(row[wanted].tolist(), abs=0.1)
    agree = [a == b for a, b in zip(scores["argmax"], expected.argmax(1).tolist(), strict=True)]
    assert sum(agree) > 0.9 * len(agree)
    inside = torch.tensor([row[:1] for row in scores["logprobs"]]).exp().sum(1)
    assert (inside <= 1).all()


def test_log_probabilities_are_of_the_whole_vocabulary() -> None:
    """Double candidates have the same, a certain one has 0, all of them add up to 1."""
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    logits[0, 2] = 200.0  # all but certain
    scores = Scores()
    scores.extend(logits, [[2], [0, 3, 3], [0, 1, 2, 3, 4, 5]])
    assert scores.logprobs[0] == [0.0]
    assert scores.argmax[0] == 2
    assert scores.logprobs[1][1] == scores.logprobs[1][2]
    assert scores.logprobs[1][:2] == pytest.approx(logits[1].log_softmax(0)[[0, 3]].tolist())
    assert torch.tensor(scores.logprobs[2]).exp().sum() == pytest.approx(1, abs=1e-5)
    assert scores.kl == []


def test_requests_go_first(fake: RunningEngine) -> None:
    """While an answer is decoded, a long text waits; afterwards it is scored to its end."""
    fake.runner.delay_s = 0.01
    text = token_ids(250)
    replies: list[httpx.Response] = []
    scorer = threading.Thread(
        target=lambda: replies.append(score(fake, token_ids=text, start=1, candidates=[[5]] * 250))
    )
    scorer.start()
    wait_until(lambda: fake.runner.batches)
    num_before = len(fake.runner.batches)
    assert post(fake, body()).json()["choices"][0]["message"]["content"] == ANSWER
    during = fake.runner.batches[num_before:]
    scorer.join(20)
    assert len(replies[0].json()["scores"]["argmax"]) == 250
    # Each step of the answer fed one sequence alone.
    assert sum(len(step) == 1 and len(step[0]) == 1 for step in during) >= len(ANSWER) // 4
    assert all(len(step) == 1 for step in during)


def test_a_client_that_leaves_stops_its_scoring(fake: RunningEngine) -> None:
    """Nothing is computed for nobody."""
    fake.runner.delay_s = 0.05
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{fake.url}/engine/score",
            json={"model": MODEL, "token_ids": token_ids(250), "start": 1, "candidates": [[5]]},
            timeout=httpx.Timeout(10, read=0.02),
        )
    wait_until(lambda: fake.service.loop.num_unfinished == 0)


def test_the_queue_is_bounded(fake: RunningEngine) -> None:
    """More texts than may wait get 503 with a time to come back."""
    fake.runner.fault = "hang"
    threads = [
        threading.Thread(target=lambda: score(fake, token_ids=[1, 2, 3], start=1, candidates=[[5]]))
        for _ in range(MAX_SCORINGS)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: fake.service.loop.num_unfinished == MAX_SCORINGS)
    refused = score(fake, token_ids=[1, 2, 3], start=1, candidates=[[5]])
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "too_many_texts"
    assert "retry-after" in refused.headers
    fake.runner.fault = None
    fake.runner.healed.set()
    for thread in threads:
        thread.join(20)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"start": 0}, "start", "greater than or equal to 1"),
        ({"candidates": []}, "candidates", "at least 1"),
        ({"candidates": [[]]}, "candidates.0", "at least 1"),
        ({"candidates": [[1]] * 4}, "candidates", "position 5"),
        ({"candidates": [[320]]}, "candidates", "token id 320: the vocabulary ends at 319"),
        ({"token_ids": [1, 400, 3]}, "token_ids", "token id 400"),
        ({"token_ids": [1, -1, 3]}, "token_ids.1", "greater than or equal to 0"),
        ({"token_ids": [1] * 300, "start": 299}, "token_ids", "maximum context length is 256"),
        ({"candidates": [list(range(257))]}, "candidates.0", "at most 256"),
    ],
)
def test_bad_requests(fake: RunningEngine, fields: dict[str, Any], param: str, words: str) -> None:
    """One error that names the field and the remedy."""
    valid = {"token_ids": [1, 2, 3], "start": 2, "candidates": [[5], [6]]}
    refused = score(fake, **(valid | fields))
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


def test_failed_steps_fail_the_scoring(fake: RunningEngine) -> None:
    """The error says nothing of the cause, and the next text is scored."""
    fake.runner.fault = "raise"
    refused = score(fake, token_ids=[1, 2, 3], start=1, candidates=[[5]])
    assert refused.status_code == 500
    assert "secret" not in refused.text
    fake.runner.fault = None
    assert score(fake, token_ids=[1, 2, 3], start=1, candidates=[[5]]).status_code == 200


def test_metrics_are_served_under_both_names(fake: RunningEngine) -> None:
    """Answers are counted, texts that were scored are not."""
    post(fake, body())
    score(fake, token_ids=[1, 2, 3], start=1, candidates=[[5]])
    own = httpx.get(f"{fake.url}/metrics").text
    view = httpx.get(f"{fake.url}/metrics/vllm").text
    assert f'narrowgate_engine_sequences_total{{finished_reason="stop",model="{MODEL}"}} 1.0' in own
    assert "vllm:request_success_total" in view
    assert "narrowgate" not in view


def test_one_broken_row_of_a_scored_text_is_an_error(fake: RunningEngine) -> None:
    """A position without numbers ends the scoring instead of becoming null."""
    fake.runner.fault, fake.runner.faulty_ids = "nan_row", frozenset({12})
    for ids, status in (([10, 11, 12, 13, 14], 500), ([10, 11, 13, 14], 200)):
        candidates = [[token_id] for token_id in ids[1:]]
        reply = score(fake, token_ids=ids, start=1, candidates=candidates)
        assert reply.status_code == status
        if status == 500:
            assert reply.json()["error"]["code"] == "broken_logits"
