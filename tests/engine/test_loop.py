"""Tests of the step thread on a scripted model."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Literal

import pytest
import torch

from gateway.engine.generation import Generation
from gateway.engine.loop import EngineLoop
from gateway.engine.metrics import EngineMetrics
from gateway.engine.output import Output
from gateway.engine.scheduler import Scheduler
from gateway.engine.sequence import Delta, SamplingParams, Sequence
from gateway.engine.soundness import BrokenLogits
from gateway.engine.tokenizer import Tokenizer
from gateway.errors import ApiError, InternalError
from tests.engine.fakes import FakeRunner, make_runner, make_toy_tokenizer, wait_until

ANSWER = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return the tiny byte-level tokenizer."""
    return make_toy_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def runner(tokenizer: Tokenizer) -> Iterator[FakeRunner]:
    """Return a model that says ``ANSWER``; a hanging one is freed at the end."""
    runner = make_runner(tokenizer, ANSWER)
    yield runner
    runner.healed.set()


@asynccontextmanager
async def running(
    runner: FakeRunner, *, max_num_sequences: int = 4, token_budget: int = 64
) -> AsyncIterator[EngineLoop]:
    """Run a loop around the model."""
    scheduler = Scheduler(max_num_sequences=max_num_sequences, token_budget=token_budget)
    loop = EngineLoop(runner, scheduler, EngineMetrics(scheduler, model="toy"))
    loop.start(asyncio.get_running_loop())
    try:
        yield loop
    finally:
        runner.healed.set()
        loop.stop()


def submit(
    loop: EngineLoop,
    tokenizer: Tokenizer,
    question: str = "hi",
    *,
    max_tokens: int = 100,
    request_id: str = "-",
) -> Generation:
    """Queue a greedy request."""
    ids = tokenizer.encode(f"{question}<|im_start|>assistant\n")
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    output = Output(params, vocabulary=tokenizer.vocabulary, eos_ids=tokenizer.eos_ids)
    return loop.submit(Sequence(ids, params), output, request_id=request_id)


async def collect(generation: Generation) -> list[Delta]:
    """Return all deltas."""
    return [delta async for arrived in generation for delta in arrived]


def text_of(deltas: list[Delta]) -> str:
    """Return the whole text."""
    return "".join(delta.text for delta in deltas)


async def until(condition: object, *, timeout_s: float = 60.0) -> None:
    """Let the event loop run until the condition holds, or fail."""
    end = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def test_an_answer_arrives_token_by_token(runner: FakeRunner, tokenizer: Tokenizer) -> None:
    """Every token is its own delta; the last one says why it ended; counts are exact."""

    async def scenario() -> None:
        async with running(runner) as loop:
            generation = submit(loop, tokenizer)
            deltas = await collect(generation)
            assert text_of(deltas) == ANSWER
            assert len(deltas) == len(runner.answer) + 1
            assert deltas[-1].finish_reason == "stop"
            assert generation.num_output_tokens == len(runner.answer) + 1
            assert generation.num_prompt_tokens == sum(len(i) for i in runner.batches[0])
            assert loop.num_unfinished == 0

    asyncio.run(scenario())


def test_four_sequences_share_the_steps(runner: FakeRunner, tokenizer: Tokenizer) -> None:
    """Concurrent requests are batched, and each gets the answer it would get alone."""
    runner.delay_s = 0.01

    async def scenario() -> None:
        async with running(runner) as loop:
            generations = [submit(loop, tokenizer, "x" * n) for n in (1, 30, 90, 2)]
            answers = await asyncio.gather(*map(collect, generations))
            assert [text_of(deltas) for deltas in answers] == [ANSWER] * 4

    asyncio.run(scenario())
    assert max(map(len, runner.batches)) == 4


def test_one_at_a_time_keeps_the_order_of_arrival(runner: FakeRunner, tokenizer: Tokenizer) -> None:
    """With one running sequence the others wait, first come first served."""

    async def scenario() -> None:
        finished: list[int] = []

        async def consume(number: int, generation: Generation) -> None:
            await collect(generation)
            finished.append(number)

        async with running(runner, max_num_sequences=1) as loop:
            generations = [submit(loop, tokenizer) for _ in range(4)]
            await asyncio.gather(*(consume(n, g) for n, g in enumerate(generations)))
        assert finished == [0, 1, 2, 3]

    asyncio.run(scenario())
    assert max(map(len, runner.batches)) == 1


def test_a_cancelled_request_stops_within_one_step(
    runner: FakeRunner, tokenizer: Tokenizer
) -> None:
    """After cancel, the step under way is the last one, and the next request gets its turn."""
    runner.delay_s = 0.2  # so long that nobody is held up for two steps

    async def scenario() -> None:
        async with running(runner, max_num_sequences=1) as loop:
            first, second = submit(loop, tokenizer), submit(loop, tokenizer)
            await anext(first)
            num_steps = len(runner.batches)
            first.cancel()
            assert [d async for d in first] == []
            await until(lambda: loop.num_unfinished == 1)
            assert len(runner.batches) <= num_steps + 2
            runner.delay_s = 0
            assert text_of(await collect(second)) == ANSWER

    asyncio.run(scenario())


def test_cancelling_while_a_long_prompt_is_read(runner: FakeRunner, tokenizer: Tokenizer) -> None:
    """A prompt of many chunks is dropped after the chunk under way, waiting ones at once."""
    runner.delay_s = 0.2

    async def scenario() -> None:
        async with running(runner, max_num_sequences=1, token_budget=4) as loop:
            reading = submit(loop, tokenizer, "x" * 200)
            waiting = submit(loop, tokenizer)
            await until(lambda: runner.batches)
            reading.cancel()
            waiting.cancel()
            await until(lambda: loop.num_unfinished == 0)
            assert len(runner.batches) <= 4

    asyncio.run(scenario())


def test_a_failing_step_fails_its_requests_and_the_loop_lives_on(
    runner: FakeRunner, tokenizer: Tokenizer
) -> None:
    """The error says nothing of the cause; the next request is answered."""

    async def scenario() -> None:
        async with running(runner) as loop:
            runner.fault = "raise"
            with pytest.raises(InternalError) as caught:
                await collect(submit(loop, tokenizer))
            assert "secret" not in str(caught.value)
            assert loop.num_unfinished == 0
            runner.fault = None
            assert text_of(await collect(submit(loop, tokenizer))) == ANSWER

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_failures_are_logged_with_the_request(
    runner: FakeRunner,
    tokenizer: Tokenizer,
    fault: Literal["raise", "nan"],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says which requests a broken step or broken logits ended."""
    runner.fault = fault

    async def scenario() -> None:
        async with running(runner) as loop:
            with pytest.raises(ApiError):
                await collect(submit(loop, tokenizer, request_id="id-from-the-gateway"))

    asyncio.run(scenario())
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert "id-from-the-gateway" in record.getMessage()


def test_nan_logits_fail_only_the_request_they_belong_to(
    runner: FakeRunner, tokenizer: Tokenizer
) -> None:
    """Of two requests in one batch the broken one gets an error, the other its answer."""
    [marker] = tokenizer.encode("Z")
    runner.fault, runner.faulty_ids = "nan", frozenset({marker})

    async def scenario() -> None:
        async with running(runner) as loop:
            broken, sound = submit(loop, tokenizer, "Z"), submit(loop, tokenizer, "a")
            with pytest.raises(BrokenLogits, match="nan"):
                await collect(broken)
            assert text_of(await collect(sound)) == ANSWER

    asyncio.run(scenario())


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_unusable_rows_are_refused(value: float, tokenizer: Tokenizer) -> None:
    """Infinite maxima and rows of nothing but minus infinity are no distributions."""

    class BrokenRunner(FakeRunner):
        def forward(self, batch: object, *, is_reading: bool = False) -> torch.Tensor:
            return torch.full((1, self.vocab_size), value)

    runner = BrokenRunner(answer=[], prompt_end=[1], eos=2)

    async def scenario() -> None:
        async with running(runner) as loop:
            with pytest.raises(ApiError, match="maximum"):
                await collect(submit(loop, tokenizer))

    asyncio.run(scenario())


def test_a_loop_that_makes_no_progress_is_stalled(runner: FakeRunner, tokenizer: Tokenizer) -> None:
    """Stalled means work without a finished step; an idle loop never is."""

    async def scenario() -> None:
        async with running(runner) as loop:
            assert not loop.is_stalled(0.0)
            runner.fault = "hang"
            generation = submit(loop, tokenizer)
            assert not loop.is_stalled(5.0)
            await asyncio.sleep(0.05)
            assert loop.is_stalled(0.03)
            runner.fault = None
            runner.healed.set()
            await collect(generation)
            assert not loop.is_stalled(0.0)

    asyncio.run(scenario())


def test_the_step_thread_never_waits_for_the_event_loop(
    runner: FakeRunner, tokenizer: Tokenizer
) -> None:
    """A blocked event loop does not hold up decoding; all tokens are there afterwards."""

    async def scenario() -> None:
        async with running(runner) as loop:
            generation = submit(loop, tokenizer)
            wait_until(lambda: len(runner.batches) >= len(runner.answer))  # it blocks the loop
            assert text_of(await anext(generation)) == ANSWER

    asyncio.run(scenario())


def test_stopping_ends_the_thread(runner: FakeRunner, tokenizer: Tokenizer) -> None:
    """After stop no engine thread is left, even with a request under way."""
    runner.delay_s = 0.01

    async def scenario() -> None:
        async with running(runner) as loop:
            await anext(submit(loop, tokenizer))

    asyncio.run(scenario())
    assert not [t for t in threading.enumerate() if t.name == "engine-loop"]
