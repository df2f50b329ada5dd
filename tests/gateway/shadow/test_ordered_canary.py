"""A canary that an operator asks for, over a real pool: how it begins, and every way it ends."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import (
    ApiError,
    CanaryRunning,
    InvalidRequest,
    NoCanary,
    NoMemory,
    StepUnderWay,
)
from gateway.pool.state import Patience, State
from gateway.shadow.ladder_order import Terms
from gateway.shadow.ladder_rules import Act, Canary
from gateway.shadow.ladder_standing import Standing
from tests.gateway.harness import until
from tests.gateway.shadow.test_ladder_keeper import Bench
from tests.gateway.shadow.test_ladder_memory import Home
from tests.gateway.shadow.test_slice_routes import CODE

LADDER: list[Any] = ["int4", "int8", "full"]
TERMS = Terms(share=0.3, num_requests=50, patience_s=600)
MODES: tuple[dict[str, Any], ...] = ({}, {"dry_run": True}, {"is_off": True})


async def at(active: str = "int8", ladder: list[Any] = LADDER, **rules: Any) -> Bench:
    """Return a bench whose model is served by that rung, with nothing scored yet."""
    bench = Bench(ladder, num_scored=0, **rules)
    await bench.pool.control.activate(f"tiny@{active}")
    await bench.look()
    return bench


async def start(bench: Bench, rung: str = "int4", terms: Terms = TERMS) -> None:
    """Let a rung be tried, and wait until it takes its share."""
    await bench.operator.start_canary(rung, terms)
    async with asyncio.timeout(20):
        while bench.operator.canary()["canary"]["state"] == "loading":
            await asyncio.sleep(0.01)
            await bench.look()


async def begun(bench: Bench, name: str) -> None:
    """Wait until the load of a variant has begun."""
    async with aclosing(bench.pool.events.follow(0)) as events:
        async for event in events:
            if event.fields == {"model": name, "state": State.LOADING}:
                return


async def gone(bench: Bench, name: str) -> None:
    """Wait until a variant has been stopped, and holds nothing."""
    await until(lambda: bench.pool.find(name).state is State.STOPPED)
    shot = bench.pool.find(name)
    assert (shot.num_bytes, shot.replicas) == (0, ())


def told(bench: Bench) -> list[tuple[str, str, str]]:
    """Return what was done, to which rung, and what came of it."""
    return [(each["act"], each["to"], each["result"]) for each in bench.events]


def last(bench: Bench) -> tuple[str, str]:
    """Return how the last canary ended, and the reason that is given."""
    found = bench.operator.canary()
    assert found["canary"] is None
    return found["last"]["ending"], found["last"]["reason"]


def num_ended(bench: Bench, rung: str, result: str) -> float:
    """Return the metric of canaries that ended so."""
    counters = bench.metrics.counters
    return float(counters["canaries_ended_total"].labels("tiny", rung, result)._value.get())


def over(use: Callable[[], Awaitable[None]]) -> None:
    """Run a test's own loop."""
    asyncio.run(_within(use))


async def _within(use: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(60):
        await use()


@pytest.mark.parametrize("mode", MODES)
def test_a_proven_canary_serves(mode: dict[str, Any]) -> None:
    """Whatever the ladder's mode, `ok` of enough scored requests makes it active, and home."""

    async def use() -> None:
        bench = await at(**mode)
        await start(bench)
        shares = bench.first_choices()
        assert 15 <= shares["int4"] <= 45
        assert shares == bench.first_choices()
        assert [each.spec.variant for each in bench.pool.targets("tiny@int8", "id-1")] == ["int8"]
        bench.score("int4", 0.001, 49)
        assert await bench.look() is Act.STAY
        assert "49 of 50 requests are scored" in bench.operator.canary()["canary"]["reason"]
        bench.score("int4", 0.001, 150)
        assert await bench.look() is Act.PROMOTE
        assert bench.first_choices() == {"int4": 100}
        assert told(bench) == [
            ("start_canary", "int4", "ordered"),
            ("start_canary", "int4", "done"),
            ("promote", "int4", "done"),
        ]
        (evidence,) = bench.events[-1]["evidence"]
        assert (evidence["slice"], evidence["state"]) == ("all", "ok")
        assert last(bench) == ("promoted", "int4: ok after 199 scored requests as a canary")
        assert bench.keeper.status()["home"] == "int4"
        assert num_ended(bench, "int4", "promoted") == 1
        await bench.pool.close(0)

    over(use)


def test_what_was_ok_before_proves_nothing() -> None:
    """An old `ok` and one scored request promote no canary; as many as a new rung needs do."""

    async def use() -> None:
        bench = await at()
        bench.score("int4", 0.001, 300)
        assert bench.judge.verdicts("tiny", "int4")["all"].state == "ok"
        bench.now += 30 * 86_400
        await start(bench, terms=Terms(share=0.3, num_requests=1, patience_s=600))
        assert bench.judge.verdicts("tiny", "int4")["all"].state == "learning"
        bench.score("int4", 0.001, 1)
        assert await bench.look() is Act.STAY
        assert bench.operator.canary()["canary"]["reason"].startswith("int4: all is learning")
        bench.score("int4", 0.001, 200)
        assert await bench.look() is Act.PROMOTE
        await bench.pool.close(0)

    over(use)


def test_a_step_is_not_waited_for() -> None:
    """While a step loads, an order and a withdrawal are told to come again, and where it leads."""

    async def use() -> None:
        bench = await at()
        bench.score("int8", 0.3, 50)
        bench.launch.prepare_s = 30.0
        step = asyncio.create_task(bench.look())
        await begun(bench, "tiny@full")
        for ask in (partial(bench.operator.start_canary, "int4", TERMS), bench.operator.end_canary):
            with pytest.raises(StepUnderWay, match="a step to full of tiny is under way") as caught:
                async with asyncio.timeout(5):
                    await ask()
            assert (caught.value.status, caught.value.retry_after_s) == (503, 5)
        step.cancel()
        await asyncio.gather(step, return_exceptions=True)
        bench.launch.prepare_s = 0.0
        with pytest.raises(NoCanary):
            await bench.operator.end_canary()
        await bench.pool.close(0)

    over(use)


def test_a_canary_that_drifts_goes() -> None:
    """The active rung gets all requests again, and the evidence is told."""

    async def use() -> None:
        bench = await at()
        await start(bench)
        bench.score("int4", 0.3, 50)
        assert await bench.look() is Act.ROLL_BACK
        assert bench.first_choices() == {"int8": 100}
        assert told(bench)[-1] == ("roll_back", "int4", "done")
        assert bench.events[-1]["evidence"][0]["state"] in {"learning", "ok"}  # when it came
        ending, reason = last(bench)
        assert ending == "rolled_back"
        assert reason.startswith("int4: all drifts (tolerance 0.02 nats")
        assert num_ended(bench, "int4", "rolled_back") == 1
        await bench.pool.close(0)

    over(use)


def test_a_pinned_slice_counts() -> None:
    """One that drifts ends the canary, also where all its traffic together is sound."""

    async def use() -> None:
        code = "domain:code"
        bench = await at(pinned=frozenset({code}), tolerance={"all": 1.0, code: 0.02})
        await start(bench)
        bench.score("int4", 0.3, 50)
        assert await bench.look() is Act.ROLL_BACK
        assert last(bench)[1].startswith(f"int4: {code} drifts")
        await bench.pool.close(0)

    over(use)


def test_evidence_that_does_not_suffice_in_time() -> None:
    """A canary that nobody asked enough ends when its time is over."""

    async def use() -> None:
        bench = await at()
        await start(bench)
        bench.score("int4", 0.001, 10)
        bench.now += 600
        assert await bench.look() is Act.ROLL_BACK
        ending, reason = last(bench)
        assert ending == "rolled_back"
        assert reason.startswith("int4: 10 of 50 requests are scored, 60")
        await bench.pool.close(0)

    over(use)


def test_a_canary_that_cannot_be_loaded() -> None:
    """Its end says why; nothing else changes, and another one may begin."""

    async def use() -> None:
        bench = await at("int4", ["int4", {"recipe": "int8", "model": "refuse"}, "full"])
        await bench.operator.start_canary("int8", TERMS)
        while bench.operator.canary()["canary"] is not None:
            await asyncio.sleep(0.01)
            await bench.look()
        assert last(bench) == ("failed", "no model 'refuse': name one that exists")
        assert told(bench)[-1] == ("start_canary", "int8", "failed")
        assert bench.first_choices() == {"int4": 100}
        assert num_ended(bench, "int8", "failed") == 1
        await bench.operator.start_canary("int8", TERMS)
        await bench.operator.end_canary()
        await bench.pool.close(0)

    over(use)


def test_a_canary_takes_no_memory_of_what_serves() -> None:
    """One whose size is known only once it is made fails, and the idle active rung stays."""

    async def use() -> None:
        bench = await at(budget=150)
        bench.pool._memory._patience = Patience(load_wait_s=0.1)
        await bench.operator.start_canary("int4", TERMS)
        while bench.operator.canary()["canary"] is not None:
            await asyncio.sleep(0.01)
            await bench.look()
        ending, reason = last(bench)
        assert ending == "failed"
        assert "the memory budget has no room for tiny@int4" in reason
        assert bench.pool.find("tiny").state is State.READY
        with pytest.raises(NoMemory, match="int4 needs 100 bytes of memory, and 50 are free"):
            await bench.operator.start_canary("int4", TERMS)
        await bench.pool.close(0)

    over(use)


def test_an_engine_that_is_lost_ends_it() -> None:
    """A crash is told and rolls it back, also where the engine would be started again."""

    async def use() -> None:
        bench = await at()
        await start(bench)
        os.kill(bench.launch.engines[-1].pid, signal.SIGKILL)
        while bench.operator.canary()["canary"] is not None:
            await asyncio.sleep(0.01)
            await bench.look()
        ending, reason = last(bench)
        assert ending == "rolled_back"
        assert reason.startswith("int4: an engine of it ")
        assert bench.events[-1]["cause"] == "broken"
        assert bench.first_choices() == {"int8": 100}
        await bench.pool.close(0)

    over(use)


def test_an_operator_ends_it() -> None:
    """While it loads and while it runs; a second time there is none."""

    async def use() -> None:
        bench = await at()
        bench.launch.prepare_s = 30.0
        await bench.operator.start_canary("int4", TERMS)
        await begun(bench, "tiny@int4")
        await bench.operator.end_canary()
        await gone(bench, "tiny@int4")
        assert last(bench) == ("withdrawn", "an operator ended it")
        bench.launch.prepare_s = 0.0
        await start(bench)
        await bench.operator.end_canary()
        assert bench.first_choices() == {"int8": 100}
        assert last(bench) == ("withdrawn", "int4: an operator ended it")
        assert bench.events[-1]["cause"] == "withdrawn"
        assert num_ended(bench, "int4", "withdrawn") == 2
        with pytest.raises(NoCanary, match="tiny has no canary"):
            await bench.operator.end_canary()
        await bench.pool.close(0)

    over(use)


async def end_at_once(bench: Bench) -> None:
    """End the canary, which must not take as long as its load needs to end."""
    async with asyncio.timeout(1):
        await bench.operator.end_canary()


def test_its_load_ends_and_is_not_waited_for() -> None:
    """The answer comes while the build still tidies up; another order waits for that and begins."""

    async def use() -> None:
        bench = await at()
        bench.launch.prepare_s, bench.launch.tidy_s = 30.0, 1.2
        await bench.operator.start_canary("int4", TERMS)
        await begun(bench, "tiny@int4")
        await end_at_once(bench)
        assert bench.pool.find("tiny@int4").state is State.LOADING
        assert last(bench) == ("withdrawn", "an operator ended it")
        bench.launch.prepare_s = 0.0
        await start(bench)
        assert bench.operator.canary()["canary"]["state"] == "running"
        assert bench.launch.num_prepared == 3
        await bench.pool.close(0)

    over(use)


def test_the_start_of_the_ladders_own_is_broken_off() -> None:
    """It is shown while it loads; its end is a step, so that it is not tried again at once."""

    async def use() -> None:
        bench = Bench(["int4", "int8"], return_after_s=100, return_after_requests=10)
        assert await bench.look() is Act.STEP_UP
        await gone(bench, "tiny@int4")
        bench.score("int8", 0.001, 200)
        bench.now += 100
        bench.launch.prepare_s, bench.launch.tidy_s = 30.0, 1.2
        look = asyncio.create_task(bench.look())
        await begun(bench, "tiny@int4")
        shown = bench.operator.canary()["canary"]
        assert (shown["variant"], shown["state"], shown["by"]) == ("int4", "loading", "ladder")
        both = await asyncio.gather(end_at_once(bench), end_at_once(bench), return_exceptions=True)
        assert [type(each) for each in both] == [type(None), NoCanary]
        assert await look is Act.START_CANARY
        assert told(bench)[1:] == [
            ("start_canary", "int4", "withdrawn"),
            ("roll_back", "int4", "done"),
        ]
        assert (bench.events[-1]["cause"], bench.operator.canary()["canary"]) == ("withdrawn", None)
        assert await bench.look() is Act.STAY
        await gone(bench, "tiny@int4")
        assert bench.first_choices() == {"int8": 100}
        bench.launch.prepare_s, bench.now = 0.0, bench.now + 100
        assert await bench.look() is Act.START_CANARY
        assert bench.operator.canary()["canary"]["state"] == "running"
        await bench.pool.close(0)

    over(use)


def test_none_begins_while_an_operator_ends_it() -> None:
    """A start that comes when an operator already waits for the turn loads nothing."""

    async def use() -> None:
        bench = Bench(["int4", "int8"], return_after_s=100, return_after_requests=10)
        assert await bench.look() is Act.STEP_UP
        await gone(bench, "tiny@int4")
        bench.score("int8", 0.001, 200)
        bench.now += 100
        before = bench.launch.num_prepared
        with bench.keeper._steps.breaking_off():
            assert await bench.look() is Act.START_CANARY
        assert told(bench)[-1] == ("start_canary", "int4", "withdrawn")
        assert bench.launch.num_prepared == before
        with pytest.raises(NoCanary):  # that operator has gone
            await end_at_once(bench)
        await bench.pool.close(0)

    over(use)


@pytest.mark.parametrize("terms", [None, replace(TERMS, beside="int8")])
def test_one_that_is_loaded_again_after_a_restart_is_broken_off(
    tmp_path: Path, terms: Terms | None
) -> None:
    """It ends as one that waits does; routes that were taken up before it stay."""

    async def use() -> None:
        home = Home(tmp_path)
        home.keep(Standing("int4", "int8", (), Canary("int4", 9.0, 7, terms), {CODE: "full"}))
        pinned = {"pinned": frozenset({CODE}), "route_slices": True}
        async with home.process(is_killed=True, **pinned) as bench:
            await bench.pool.control.load("tiny@full")
            await bench.pool.ensure_ready()
            bench.launch.prepare_s, bench.launch.tidy_s = 30.0, 1.2
            look = asyncio.create_task(bench.look())
            await begun(bench, "tiny@int4")
            assert bench.operator.canary()["canary"]["state"] == "waiting"
            await end_at_once(bench)
            await look
            assert bench.operator.canary()["canary"] is None
            assert num_ended(bench, "int4", "withdrawn") == (0 if terms is None else 1)
            assert num_ended(bench, "int4", "failed") == 0
            assert (home.standing()["canary"], home.standing()["routes"]) == (None, {CODE: "full"})
            await bench.look()
            assert bench.keeper.status()["routes"] == {CODE: "full"}
            assert [each for each in told(bench) if each[1] == "full"] == [
                ("restore", "full", "done")
            ]
            await gone(bench, "tiny@int4")
        assert (home.standing()["canary"], home.standing()["routes"]) == (None, {CODE: "full"})

    over(use)


@pytest.mark.parametrize("is_there", [True, False])
def test_what_it_loaded_goes_with_it(is_there: bool) -> None:
    """A rung that is ready when its canary ends too early goes, unless it was there before."""

    async def use() -> None:
        bench = await at()
        if is_there:
            await bench.pool.control.load("tiny@int4")
        await bench.operator.start_canary("int4", TERMS)
        await until(lambda: bench.pool.find("tiny@int4").state is State.READY)
        await end_at_once(bench)
        if is_there:
            await asyncio.sleep(0.1)
            assert bench.pool.find("tiny@int4").state is State.READY
        else:
            await gone(bench, "tiny@int4")
        await bench.pool.close(0)

    over(use)


def test_a_load_that_others_began_goes_on() -> None:
    """An operator who loads the same rung gets it, whatever becomes of the canary."""

    async def use() -> None:
        bench = await at()
        bench.launch.prepare_s = 0.5
        load = asyncio.create_task(bench.pool.control.load("tiny@int4"))
        await begun(bench, "tiny@int4")
        await bench.operator.start_canary("int4", TERMS)
        await asyncio.sleep(0)
        await end_at_once(bench)
        assert (await load).state is State.READY
        await bench.pool.close(0)

    over(use)


def test_a_start_that_waits_for_a_swap_is_broken_off() -> None:
    """A canary that is loaded, and waits for an operator's swap, ends at once as withdrawn."""

    async def use() -> None:
        bench = await at()
        await bench.operator.start_canary("int4", TERMS)
        await until(lambda: bench.pool.find("tiny@int4").state is State.READY)
        bench.launch.prepare_s = 30.0
        swap = asyncio.create_task(bench.pool.control.activate("tiny@full"))
        await begun(bench, "tiny@full")
        look = asyncio.create_task(bench.look())
        await until(lambda: bench.keeper._steps.starting is not None)
        await end_at_once(bench)
        await look
        assert last(bench) == ("withdrawn", "an operator ended it")
        await gone(bench, "tiny@int4")
        swap.cancel()
        await asyncio.gather(swap, return_exceptions=True)
        await bench.pool.close(0)

    over(use)


@pytest.mark.parametrize(
    ("rung", "kind", "words"),
    [
        ("int8", InvalidRequest, "which serves tiny already"),
        ("full", InvalidRequest, "activate it"),
        ("int4", NoMemory, "int4 needs 600 bytes of memory, and 400 are free"),
    ],
)
def test_what_is_refused(rung: str, kind: type[ApiError], words: str) -> None:
    """What serves, what has no verdict, and what does not fit: with the reason, and no trace."""

    async def use() -> None:
        ladder = [{"recipe": "int4", "memory": "600"}, "int8", "full"]
        bench = await at("int8", ladder, budget=500)
        with pytest.raises(kind, match=words):
            await bench.operator.start_canary(rung, TERMS)
        assert bench.operator.canary() == {"model": "tiny", "canary": None, "last": None}
        assert bench.events == []
        await bench.pool.close(0)

    over(use)


def test_one_at_a_time() -> None:
    """A second canary is refused while one loads, and while one runs, and names it."""

    async def use() -> None:
        bench = await at()
        await bench.operator.start_canary("int4", TERMS)
        with pytest.raises(CanaryRunning, match=r"tiny has a canary \(int4\)"):
            await bench.operator.start_canary("int4", TERMS)
        while bench.operator.canary()["canary"]["state"] == "loading":
            await asyncio.sleep(0.01)
            await bench.look()
        with pytest.raises(CanaryRunning, match=r"tiny has a canary \(int4\)"):
            await bench.operator.start_canary("int4", TERMS)
        await bench.pool.close(0)

    over(use)


@pytest.mark.parametrize("is_loading", [True, False])
def test_a_drift_of_the_active_rung_comes_first(is_loading: bool) -> None:
    """The ladder steps to the safer rung, and the canary ends with it, loaded or not."""

    async def use() -> None:
        bench = await at()
        if is_loading:
            bench.launch.prepare_s = 30.0
            await bench.operator.start_canary("int4", TERMS)
            await begun(bench, "tiny@int4")
            bench.launch.prepare_s = 0.0
        else:
            await start(bench)
        bench.score("int8", 0.3, 50)
        assert await bench.look() is Act.STEP_UP
        assert bench.first_choices() == {"full": 100}
        ending, reason = last(bench)
        assert ending == "superseded"
        assert reason.startswith("int8: all drifts")
        assert num_ended(bench, "int4", "superseded") == 1
        if is_loading:
            await gone(bench, "tiny@int4")
        await bench.pool.close(0)

    over(use)


def test_a_drift_that_is_only_told_ends_nothing() -> None:
    """In a dry run the step is told once, and the canary goes on to its own end."""

    async def use() -> None:
        bench = await at(dry_run=True)
        await start(bench)
        bench.score("int8", 0.3, 50)
        for _ in range(3):
            await bench.look()
        assert [each[0] for each in told(bench)].count("would_step_up") == 1
        bench.score("int4", 0.001, 200)
        assert await bench.look() is Act.PROMOTE
        assert bench.first_choices() == {"int4": 100}
        await bench.pool.close(0)

    over(use)


def test_a_trial_makes_room_for_a_safer_rung() -> None:
    """Where the rung that a drift asks for does not fit beside the canary, the canary goes."""

    async def use() -> None:
        bench = await at(ladder=["int4", "int8", {"recipe": "full", "memory": "100"}], budget=250)
        await start(bench)
        bench.score("int8", 0.3, 50)
        assert await bench.look() is Act.ROLL_BACK
        assert "full needs 100 bytes of memory, and 50 are free" in last(bench)[1]
        while bench.first_choices() != {"full": 100}:
            await asyncio.sleep(0.01)
            await bench.look()
        await bench.pool.close(0)

    over(use)


@pytest.mark.parametrize(("chosen", "ending"), [("full", "withdrawn"), ("int4", "superseded")])
def test_an_operators_swap_ends_it(chosen: str, ending: str) -> None:
    """What is activated by hand stays active: another rung, or the canary itself."""

    async def use() -> None:
        bench = await at()
        await start(bench)
        await bench.pool.control.activate(f"tiny@{chosen}")
        await bench.look()
        assert last(bench)[0] == ending
        assert bench.first_choices() == {chosen: 100}
        assert bench.keeper.status()["home"] == chosen
        await bench.pool.close(0)

    over(use)


def test_the_ladders_own_tries_are_not_used_up() -> None:
    """Neither an order nor its withdrawal counts as a try of the ladder, or as a failed one."""

    async def use() -> None:
        bench = Bench(["int4", "int8"], return_after_s=100, return_after_requests=10, max_returns=1)
        assert await bench.look() is Act.STEP_UP
        for _ in range(2):
            await start(bench)
            await bench.operator.end_canary()
        bench.score("int8", 0.001, 200)
        bench.now += 100
        while bench.operator.canary()["canary"] is None:
            await asyncio.sleep(0.01)  # the rung still ends what was begun
            await bench.look()
        assert bench.operator.canary()["canary"]["by"] == "ladder"
        with pytest.raises(CanaryRunning):
            await bench.operator.start_canary("int4", TERMS)
        await bench.operator.end_canary()
        assert bench.first_choices() == {"int8": 100}
        await bench.pool.close(0)

    over(use)


@pytest.mark.parametrize(("is_loading", "mode"), [(True, {"is_off": True}), (False, {})])
def test_a_canary_survives_a_restart(
    tmp_path: Path, mode: dict[str, Any], is_loading: bool
) -> None:
    """With its share, its count and its clock it goes on, loaded or not; then it may serve."""

    async def use() -> None:
        home = Home(tmp_path)
        async with home.process(is_killed=True, **mode) as bench:
            await bench.pool.ensure_ready()
            if is_loading:
                await bench.operator.start_canary("int8", TERMS)
            else:
                await start(bench, "int8")
                bench.score("int8", 0.001, 20)
                bench.now += 40
                await bench.look()
        async with home.process(**mode) as bench:
            await bench.pool.ensure_ready()
            while bench.operator.canary()["canary"]["state"] != "running":
                await asyncio.sleep(0.01)
                await bench.look()
            canary = bench.operator.canary()["canary"]
            assert (canary["scored"], canary["share"]) == (0 if is_loading else 20, 0.3)
            assert 15 <= bench.first_choices()["int8"] <= 45
            bench.score("int8", 0.001, 200)
            assert await bench.look() is Act.PROMOTE
        async with home.process(**mode) as bench:
            assert bench.pool.shape("tiny").active == "int8"
            assert last(bench)[0] == "promoted"
            assert bench.keeper.status()["home"] == "int8"

    over(use)


@pytest.mark.parametrize("terms", [None, replace(TERMS, beside="int8")])
def test_one_that_waits_after_a_restart_is_ended(tmp_path: Path, terms: Terms | None) -> None:
    """Whoever began it, a withdrawal is a step of the ladder and ends it for good; routes stay."""

    async def use() -> None:
        home = Home(tmp_path)
        home.keep(Standing("int4", "int8", (), Canary("int4", 9.0, 7, terms), {CODE: "full"}))
        async with home.process() as bench:
            assert bench.operator.canary()["canary"]["state"] == "waiting"
            await bench.operator.end_canary()
            (step,) = bench.keeper.status()["steps"]
            assert (step["act"], step["to"], step["cause"]) == ("roll_back", "int4", "withdrawn")
            assert told(bench)[-1] == ("roll_back", "int4", "done")
            assert bench.operator.canary()["canary"] is None
            assert num_ended(bench, "int4", "withdrawn") == (0 if terms is None else 1)
            assert (home.standing()["canary"], home.standing()["routes"]) == (None, {CODE: "full"})
            await bench.pool.ensure_ready()
            await bench.look()
            assert bench.first_choices() == {"int8": 100}
            assert bench.operator.canary()["canary"] is None
            assert (terms is None) == (bench.operator.canary()["last"] is None)
            with pytest.raises(NoCanary):
                await bench.operator.end_canary()

    over(use)


def test_who_was_killed_while_it_began_proves_it_anew(tmp_path: Path) -> None:
    """An `ok` from before the canary is no proof after a restart either; one since it is."""

    async def use() -> None:
        home = Home(tmp_path)
        async with home.process() as bench:
            bench.score("int4", 0.001, 300)
            begun_at = bench.now + 1
        terms = Terms(share=0.3, num_requests=1, patience_s=600, beside="int8")
        home.keep(Standing("int4", "int8", (), Canary("int4", begun_at, 0, terms)))
        for count in (1, 300):
            async with home.process(is_killed=count == 300) as bench:
                bench.now = begun_at + count
                await bench.pool.ensure_ready()
                await bench.look()
                bench.score("int4", 0.001, count)
                assert await bench.look() is (Act.STAY if count == 1 else Act.PROMOTE)
        async with home.process() as bench:
            assert bench.pool.shape("tiny").active == "int4"

    over(use)


def test_another_ladder_ends_it(tmp_path: Path) -> None:
    """What was under way on other rungs is told as withdrawn at the next start, and kept so."""

    async def use() -> None:
        home = Home(tmp_path)
        async with home.process(is_killed=True) as bench:
            await bench.pool.ensure_ready()
            await bench.operator.start_canary("int8", TERMS)
        async with home.process(plan="another") as bench:
            ending, reason = last(bench)
            assert ending == "withdrawn"
            assert reason.startswith("the settings name another ladder, recipe, mode")
            assert told(bench) == [("roll_back", "int8", "withdrawn")]
        assert home.standing()["ended"]["ending"] == "withdrawn"

    over(use)


def test_a_canary_that_is_not_there_after_a_restart(tmp_path: Path) -> None:
    """One that cannot be loaded any longer has failed, and says so."""

    async def use() -> None:
        home = Home(tmp_path)
        async with home.process(is_killed=True) as bench:
            await bench.pool.ensure_ready()
            await start(bench, "int8")
        async with home.process() as bench:
            await bench.pool.ensure_ready()
            bench.launch.nll["int8"] = 9.0
            await bench.look()
            ending, reason = last(bench)
            assert (ending, reason) == ("failed", "int8 could not be taken up after the restart")
            assert bench.first_choices() == {"int4": 100}
        assert home.standing()["ended"]["ending"] == "failed"

    over(use)
