"""The worker over a scorer that is told when to answer: what it keeps, and what it costs."""

import asyncio
import gc
from collections.abc import Callable, Sequence

import pytest

from gateway.registry import Metrics
from gateway.shadow.candidate import Candidate
from gateway.shadow.free_runner import FreeRunner
from gateway.shadow.free_runs import FreeRuns
from gateway.shadow.queue import ShadowQueue
from gateway.shadow.records import Captured, Position, ScoredPosition
from gateway.shadow.references import References
from gateway.shadow.scored import ScoredRequest, Sink
from gateway.shadow.tally import Tally
from gateway.shadow.worker import Waiting, Worker
from gateway.shadow.yielding import Yielding
from gateway.shadow_settings import ShadowSettings
from tests.gateway.shadow.test_references import MODEL, Launch

SERVED = Position(5, -0.5, {5: -0.5, 6: -1.5})


class Scorer:
    """Says of each position what was served there, once it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.num_asked = 0

    async def score(
        self, token_ids: Sequence[int], start: int, candidates: Sequence[Sequence[int]]
    ) -> list[ScoredPosition]:
        """Return one position for each that is asked for."""
        self.num_asked += 1
        await self.may_answer.wait()
        return [ScoredPosition(dict(SERVED.top), 5) for _ in candidates]


class Bench:
    """A worker, its queue, and the number of requests that are in its way."""

    def __init__(self, *, sinks: Sequence[Sink] = (), **settings: object) -> None:
        found = ShadowSettings.model_validate({"rate": 1, **settings})
        self.metrics = Metrics()
        self.scorer = Scorer()
        self.num_busy = 0
        self.charged: list[int] = []
        self.given_back: list[Candidate] = []
        self.tally = Tally(self.metrics)
        self.launch = Launch()
        self.references = References(
            {"tiny": MODEL},
            found.reference,
            self.launch,
            metrics=self.metrics,
            is_wanted=lambda alias: True,
            make_scorer=lambda client, info, backend: self.scorer,
        )
        self.yielding = Yielding(self.references, lambda: self.num_busy, max_running=None)
        self.queue: ShadowQueue[Waiting] = ShadowQueue(
            60,
            on_old=lambda item: None,
            on_change=lambda: None,
            clock=asyncio.get_running_loop().time,
        )
        self.worker = Worker(
            self.queue,
            self.references.of("tiny"),
            found,
            metrics=self.metrics,
            yielding=self.yielding,
            free_runner=FreeRunner(
                FreeRuns(found.free_run, self.metrics),
                self.yielding,
                found,
                metrics=self.metrics,
                meanwhile=self.queue.age_out,
            ),
            sinks=sinks,
            charge=self.charged.append,
            give_back=lambda item: self.given_back.append(item.candidate),
        )

    def put(self) -> Candidate:
        """Queue a reply of four tokens behind a prompt of three; return whose it is."""
        candidate = Candidate(
            "id",
            "tiny",
            {},
            tally=self.tally,
            make_capture=lambda info, engine: None,
            on_reply=lambda candidate: None,
            on_drop=lambda candidate, reason: None,
        )
        captured = Captured((1, 2, 3), (SERVED,) * 4)
        self.queue.put(Waiting(candidate, captured, "int4", {"all": range(4)}))
        return candidate

    @property
    def num_tokens(self) -> float:
        """Return how many tokens the reference was given."""
        counter = self.metrics.counters["shadow_reference_tokens_total"].labels("tiny")
        return float(counter._value.get())


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until it is so."""
    for _ in range(5000):
        if is_so():
            return
        await asyncio.sleep(0.001)
    pytest.fail("it never came to be")


async def until_over(candidate: Candidate) -> None:
    """Wait until it is scored or dropped."""
    await until(lambda: candidate.is_over)


def test_nothing_of_a_request_is_kept_while_none_comes() -> None:
    """Once it is scored nobody holds its token ids any more."""

    def kept() -> set[int]:
        gc.collect()
        # Some objects of torch complain when asked for their class.
        return {id(each) for each in gc.get_objects() if type(each) in (Waiting, Captured)}

    async def use() -> None:
        bench = Bench()
        before = kept()  # of other tests in this process
        working = asyncio.create_task(bench.worker.run())
        await until_over(bench.put())
        await asyncio.sleep(0.01)
        assert kept() <= before
        working.cancel()
        await bench.references.stop()

    asyncio.run(use())


def test_a_score_that_is_broken_off_again_and_again_is_given_up() -> None:
    """After three attempts; each is counted, and the budget pays for those after the first."""

    async def use() -> None:
        bench = Bench()
        bench.scorer.may_answer.clear()
        working = asyncio.create_task(bench.worker.run())
        candidate = bench.put()
        yields = bench.metrics.counters["shadow_yields_total"].labels("tiny")
        for attempt in (1, 2, 3):
            await until(lambda: bench.scorer.num_asked == attempt)  # noqa: B023 (at once)
            bench.num_busy = 1
            await until(lambda: yields._value.get() == attempt)  # noqa: B023 (at once)
            bench.num_busy = 0
        await until_over(candidate)
        assert bench.tally.of("tiny")["dropped"] == {"busy": 1}
        assert (bench.num_tokens, bench.charged) == (3 * 7, [7, 7])
        working.cancel()
        await bench.references.stop()

    asyncio.run(use())


def test_what_was_never_read_is_not_paid_for() -> None:
    """A reference that cannot be started, or requests that leave no room, spend no tokens."""

    async def use() -> None:
        bench = Bench(queue_s=0.05)
        bench.launch.is_broken = True
        working = asyncio.create_task(bench.worker.run())
        given_up = [bench.put()]
        await until_over(given_up[0])
        bench.num_busy = 1
        given_up.append(bench.put())
        await until_over(given_up[1])
        assert bench.tally.of("tiny")["dropped"] == {"reference": 1, "busy": 1}
        assert (bench.num_tokens, bench.charged, bench.given_back) == (0, [], given_up)
        working.cancel()
        await bench.references.stop()

    asyncio.run(use())


def test_the_noise_floor_is_paid_for() -> None:
    """Its two readings are charged when they begin."""

    async def use() -> None:
        bench = Bench(floor_every=1)
        working = asyncio.create_task(bench.worker.run())
        await until_over(bench.put())
        await until(lambda: bench.scorer.num_asked == 3)
        assert (bench.num_tokens, bench.charged) == (3 * 7, [14])
        working.cancel()
        await bench.references.stop()

    asyncio.run(use())


def test_a_reference_is_not_ended_in_the_middle_of_a_score() -> None:
    """A score that takes longer than idleness is borne is finished."""

    async def use() -> None:
        bench = Bench(reference={"idle_s": 0.01})
        bench.scorer.may_answer.clear()
        working = asyncio.create_task(bench.worker.run())
        candidate = bench.put()
        await until(lambda: bench.scorer.num_asked == 1)
        reference = bench.references.of("tiny")
        reference.last_used = -1000.0
        await bench.references._tend_running("tiny", reference)
        assert reference.is_running
        bench.scorer.may_answer.set()
        await until_over(candidate)
        await until(lambda: not reference.num_users)
        assert bench.tally.of("tiny")["scored"] == 1
        working.cancel()
        await bench.references.stop()

    asyncio.run(use())


class Listener:
    """A sink that has the worker's task cancelled while it takes a record, if it is to."""

    def __init__(self, *, cancels: bool) -> None:
        self.taken: list[ScoredRequest] = []
        self._cancels = cancels

    def take(self, record: ScoredRequest) -> None:
        """Keep it."""
        self.taken.append(record)
        task = asyncio.current_task()
        if self._cancels and task is not None:
            task.cancel()


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("floor_every", [0, 1])
def test_a_record_is_taken_by_all_sinks_or_none(place: int, floor_every: int) -> None:
    """An end of the worker between two of them comes too late: both have it, and it is scored."""

    async def use() -> None:
        sinks = [Listener(cancels=number == place) for number in range(2)]
        bench = Bench(sinks=sinks, floor_every=floor_every)
        working = asyncio.create_task(bench.worker.run())
        bench.put()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert [len(sink.taken) for sink in sinks] == [1, 1]
        found = bench.tally.of("tiny")
        assert (found["scored"], found["dropped"]) == (1, {})
        await bench.references.stop()

    asyncio.run(use())


def test_a_score_that_is_stopped_before_is_taken_by_none() -> None:
    """What ends behind the answer of the reference, before the sinks, is dropped."""

    async def use() -> None:
        sinks = [Listener(cancels=False), Listener(cancels=False)]
        bench = Bench(sinks=sinks)
        working = asyncio.create_task(bench.worker.run())
        candidate = bench.put()
        await until(lambda: bench.scorer.num_asked == 1)
        working.cancel()
        await until_over(candidate)
        assert [len(sink.taken) for sink in sinks] == [0, 0]
        found = bench.tally.of("tiny")
        assert (found["scored"], found["dropped"]) == (0, {"stopped": 1})
        await bench.references.stop()

    asyncio.run(use())
