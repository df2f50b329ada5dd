"""When a replica that fails is left alone, and when it gets its next chance."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.pool.breaker import Breaker, BreakerState
from gateway.pool.pool import Pool
from gateway.pool.state import Patience, State
from gateway.pool.variant import Variant
from gateway.registry import Metrics
from gateway.settings import load_settings
from gateway.specs import make_specs
from tests.gateway.conftest import StartGateway
from tests.gateway.fake_launch import FakeLaunch
from tests.gateway.harness import CHAT, Gateway, body, eventually, until


def opened(*, at: float = 0.0, pause_s: float = 5.0) -> Breaker:
    """Return a breaker that has just opened."""
    breaker = Breaker(max_failures=1, pause_s=pause_s)
    breaker.fail(at)
    return breaker


def test_breaker() -> None:
    """Three failures in a row open it; after the pause one trial decides."""
    breaker = Breaker(max_failures=3, pause_s=5)
    breaker.fail(0)
    breaker.fail(0)
    breaker.succeed()
    breaker.fail(1)
    breaker.fail(1)
    assert breaker.allows(1)
    breaker.fail(1)
    assert (breaker.state(5.9), breaker.allows(5.9)) == (BreakerState.OPEN, False)
    assert (breaker.state(6.0), breaker.allows(6.0)) == (BreakerState.HALF_OPEN, True)
    breaker.enter(6.0)
    assert not breaker.allows(6.1)  # the trial is under way
    breaker.fail(6.2)
    assert breaker.state(11.1) is BreakerState.OPEN
    breaker.enter(11.3)
    breaker.succeed()
    assert breaker.state(11.3) is BreakerState.CLOSED


def test_what_it_does_unless_told_otherwise() -> None:
    """Three failures open it, for five seconds."""
    breaker = Breaker()
    states = []
    for _ in range(3):
        breaker.fail(10.0)
        states.append(breaker.state(10.0))
    assert states == [BreakerState.CLOSED, BreakerState.CLOSED, BreakerState.OPEN]
    assert breaker.state(14.9) is BreakerState.OPEN
    assert breaker.state(15.0) is BreakerState.HALF_OPEN


def test_only_one_request_is_the_trial() -> None:
    """The first to pass once the pause is over is told so; none before it, and none beside it."""
    breaker = Breaker(max_failures=1, pause_s=5)
    assert not breaker.enter(0)
    breaker.fail(0)
    assert not breaker.enter(4.9)
    assert breaker.allows(5)  # who entered too early is no trial
    assert breaker.enter(5)
    assert not breaker.enter(5)
    assert not breaker.allows(9.9)
    assert breaker.state(9.9) is BreakerState.HALF_OPEN


def test_a_trial_that_goes_on_and_on_is_not_waited_for() -> None:
    """A long answer keeps others out for one pause; then the next request is a trial."""
    breaker = opened()
    first = breaker.enter(5)
    assert not breaker.allows(9.9)
    assert breaker.allows(10)
    second = breaker.enter(10)
    assert first is not None
    assert second is not None
    breaker.leave(first)
    assert not breaker.allows(14.9)
    breaker.leave(second)
    assert breaker.allows(14.9)


def test_an_old_trial_does_not_end_a_new_one() -> None:
    """It was cut short by the failure of another request; when it leaves, the next one is on."""
    breaker = opened()
    old = breaker.enter(5)
    breaker.fail(6)  # a request from before it opened
    new = breaker.enter(11)
    assert old is not None
    assert new is not None
    breaker.leave(old)
    assert not breaker.allows(12)
    breaker.leave(new)
    assert breaker.allows(12)


def test_a_trial_that_says_nothing_lets_another_one_in() -> None:
    """A client that leaves in the middle of the trial neither keeps it out nor clears it."""
    breaker = opened()
    trial = breaker.enter(5)
    assert trial is not None
    breaker.leave(trial)
    assert (breaker.state(5), breaker.allows(5)) == (BreakerState.HALF_OPEN, True)
    trial = breaker.enter(5)
    assert trial is not None
    breaker.fail(6)
    breaker.leave(trial)
    assert breaker.state(10.9) is BreakerState.OPEN


def test_a_trial_that_fails_is_followed_by_another_one() -> None:
    """The pause begins anew with it, and the next request after that is a trial again."""
    breaker = opened()
    breaker.enter(5)
    breaker.fail(6)
    assert (breaker.state(10.9), breaker.allows(10.9)) == (BreakerState.OPEN, False)
    assert breaker.allows(11)
    assert breaker.enter(11)


def test_a_trial_that_succeeds_wipes_the_slate() -> None:
    """It takes as many failures as at first to open it again, and there is a trial again then."""
    breaker = Breaker(max_failures=2, pause_s=5)
    breaker.fail(0)
    breaker.fail(0)
    breaker.enter(5)
    breaker.succeed()
    assert breaker.allows(5)
    breaker.fail(6)
    assert breaker.state(6) is BreakerState.CLOSED
    breaker.fail(7)
    assert breaker.state(7) is BreakerState.OPEN
    assert breaker.enter(12)


def test_requests_from_before_it_opened_still_count() -> None:
    """One that fails late begins the pause anew; one that is answered late closes it."""
    breaker = opened()
    breaker.fail(4)
    assert breaker.state(8.9) is BreakerState.OPEN
    assert breaker.state(9) is BreakerState.HALF_OPEN
    breaker.succeed()
    assert breaker.state(9) is BreakerState.CLOSED


def test_a_new_replica_begins_with_a_clean_slate() -> None:
    """Neither failures nor a trial of the old one count."""
    breaker = Breaker(max_failures=2, pause_s=5)
    breaker.fail(0)
    breaker.reset()
    breaker.fail(0)
    assert breaker.state(0) is BreakerState.CLOSED
    breaker.fail(0)
    breaker.enter(5)
    breaker.reset()
    assert (breaker.state(5), breaker.allows(5)) == (BreakerState.CLOSED, True)
    breaker.fail(6)
    breaker.fail(6)
    assert breaker.enter(11)


@asynccontextmanager
async def two_replicas() -> AsyncIterator[tuple[Pool, Variant]]:
    """Yield a loaded pool whose first replica has just been left alone."""
    models = {"tiny": {"model": "fake", "recipe": "int4", "replicas": 2}}
    pool = Pool(
        make_specs(load_settings(None, {"models": models}, {})),
        FakeLaunch(),
        metrics=Metrics(),
        on_progress=lambda progress: None,
        patience=Patience(first_backoff_s=0.01, probe_every_s=0.1),
    )
    try:
        await pool.ensure_ready()
        variant = pool.targets("tiny")[0]
        variant.replicas[0].breaker = opened(at=time.monotonic(), pause_s=600)
        yield pool, variant
    finally:
        await pool.close(0)


async def asked(pool: Pool, variant: Variant) -> int:
    """Return which replica takes a request that ends without a word on it."""
    async with pool.use(variant) as lease:
        return lease.replica.index


def test_requests_go_elsewhere_then_one_tries() -> None:
    """The idlest replica is passed over while its breaker is open; then one request tries it."""

    async def run() -> None:
        async with two_replicas() as (pool, variant):
            assert [await asked(pool, variant) for _ in range(3)] == [1, 1, 1]
            breaker = variant.replicas[0].breaker = opened(at=time.monotonic() - 1, pause_s=1)
            assert breaker.state(time.monotonic()) is BreakerState.HALF_OPEN
            async with pool.use(variant) as trial:
                assert trial.replica.index == 0
                assert [await asked(pool, variant) for _ in range(3)] == [1, 1, 1]
            # It said nothing of the replica, so the next one tries.
            async with pool.use(variant) as trial:
                assert trial.replica.index == 0
                assert await asked(pool, variant) == 1
                breaker.succeed()
                assert breaker.state(time.monotonic()) is BreakerState.CLOSED

    asyncio.run(run())


def test_who_is_no_trial_ends_none() -> None:
    """A request from before the breaker opened that ends within a trial lets no second one in."""

    async def run() -> None:
        async with two_replicas() as (pool, variant):
            breaker = variant.replicas[0].breaker = opened(pause_s=1)
            breaker.reset()
            old = pool.use(variant)
            assert (await old.__aenter__()).replica.index == 0
            breaker.fail(time.monotonic() - 1)
            assert breaker.state(time.monotonic()) is BreakerState.HALF_OPEN
            async with pool.use(variant, excluding=[variant.replicas[1]]) as trial:
                assert trial.replica.index == 0
                await old.__aexit__(None, None, None)
                assert not breaker.allows(time.monotonic())
            assert breaker.allows(time.monotonic())

    asyncio.run(run())


def test_an_engine_that_was_started_again_is_trusted() -> None:
    """What its predecessor failed is not held against it."""

    async def run() -> None:
        async with two_replicas() as (pool, variant):
            first = variant.replicas[0]
            first.breaker = opened(at=time.monotonic(), pause_s=600)
            assert first.snapshot().breaker is BreakerState.OPEN
            assert first.engine is not None
            pid = (await first.engine.client.info()).pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda: first.state is State.RESTARTING)
            await until(lambda: first.state is State.READY)
            assert first.snapshot().breaker is BreakerState.CLOSED
            assert await asked(pool, variant) == 0

    asyncio.run(run())


def breakers(gateway: Gateway) -> list[str]:
    """Return the state of each replica's breaker."""
    (variant,) = gateway.http.get("/admin/models").json()["data"]
    return [each["breaker"] for each in variant["replicas"]]


@pytest.mark.parametrize("is_stream", [False, True])
def test_answers_to_the_end_close_it_and_broken_ones_open_it(
    start_gateway: StartGateway, *, is_stream: bool
) -> None:
    """So it is for streams and for whole replies; a refusal is no failure of the engine."""
    gateway = start_gateway(models={"tiny": {"model": "fake", "recipe": "int4"}}, max_retries=0)

    def ask(**script: object) -> None:
        gateway.http.post(CHAT, json=body(stream=is_stream, fake=script))

    broken = (
        {"tokens": 5, "fault": "truncate", "after": 3}
        if is_stream
        else {"status": 500, "body": "{}"}
    )
    for script in (broken, broken, {"tokens": 1}, broken, broken, {"status": 400, "body": "{}"}):
        ask(**script)
        assert breakers(gateway) == ["closed"]
    ask(**broken)
    eventually(lambda: breakers(gateway) == ["open"])
    ask(tokens=1)
    eventually(lambda: breakers(gateway) == ["closed"])
