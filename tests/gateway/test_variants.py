"""Variants under one pool, loaded on demand, evicted, swapped, replicated; engines are real."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from compression.events import OnProgress, ignore
from gateway.backends.process import EngineProcess
from gateway.demand import Demand
from gateway.errors import (
    EngineDown,
    LoadRefused,
    ModelLoading,
    ModelNotFound,
    NoMemory,
    SmokeCheckFailed,
)
from gateway.pool.lease import Lease
from gateway.pool.pool import Pool
from gateway.pool.state import Patience, State
from gateway.prepared import Prepared
from gateway.registry import Metrics
from gateway.settings import Settings
from gateway.specs import VariantSpec, make_specs
from tests.gateway.fake_launch import FakeLaunch
from tests.gateway.harness import is_alive, until

PATIENCE = Patience(
    first_backoff_s=0.01,
    last_backoff_s=0.02,
    probe_every_s=0.1,
    load_wait_s=10,
    retry_load_after_s=0.2,
    drain_s=10,
)


@asynccontextmanager
async def pool_of(
    models: Mapping[str, Any],
    launch: FakeLaunch,
    *,
    budget: int | None = None,
    patience: Patience = PATIENCE,
) -> AsyncIterator[Pool]:
    """Yield a tended pool of these models; none of its engines outlives the block."""
    settings = Settings.model_validate(
        {"models": {alias: {"model": "x"} | fields for alias, fields in models.items()}}
    )
    pool = Pool(
        make_specs(settings),
        launch,
        metrics=Metrics(),
        on_progress=ignore,
        patience=patience,
        memory_budget=budget,
    )
    tending = asyncio.create_task(pool.tend())
    try:
        yield pool
    finally:
        tending.cancel()
        await pool.close(0)
    assert not any(is_alive(engine.pid) for engine in launch.engines)


def states(pool: Pool) -> dict[str, str]:
    """Return the state of every variant."""
    return {shot.spec.served_name: shot.state.value for shot in pool.snapshots()}


def num_running(engine: EngineProcess) -> int:
    """Return how many requests a fake engine works on."""
    found: int = httpx.get(f"{engine.client.base_url}/fake/state").json()["running"]
    return found


async def answer(lease: Lease, tokens: int = 2) -> dict[str, Any]:
    """Ask the engine of a lease for a few tokens."""
    fields = {"prompt": "one two", "fake": {"tokens": tokens}}
    reply: dict[str, Any] = await lease.client.complete(fields, "test")
    return reply


MB = 1_000_000
"""Real engines are measured, so the budgets of the tests must be larger than these are."""

LADDER = {"ladder": ["int4", "int8", "full"]}


def test_a_variant_is_loaded_when_it_is_asked_for() -> None:
    """Only the active one is loaded first; who names another one waits for its load, once."""

    async def run() -> FakeLaunch:
        launch = FakeLaunch(prepare_s=0.05)
        async with pool_of({"a": LADDER}, launch) as pool:
            await pool.ensure_ready()
            assert states(pool) == {"a@int4": "ready", "a@int8": "stopped", "a@full": "stopped"}

            async def ask() -> str:
                async with pool.lease("a@full") as lease:
                    return str((await answer(lease))["model"])

            assert set(await asyncio.gather(*(ask() for _ in range(5)))) == {"a@full"}
            assert states(pool)["a@full"] == "ready"
            with pytest.raises(ModelNotFound, match="a@int8"):
                pool.targets("a@int3")
        return launch

    assert len(asyncio.run(run()).engines) == 2


def test_a_request_does_not_wait_for_ever() -> None:
    """A load that takes longer than a request may wait goes on without it."""

    async def run() -> None:
        patience = Patience(load_wait_s=0.05)
        async with pool_of({"a": {}}, FakeLaunch(prepare_s=0.5), patience=patience) as pool:
            with pytest.raises(ModelLoading):
                await pool.lease("a").__aenter__()
            await until(lambda: pool.find("a").state is State.READY)

    asyncio.run(run())


def test_a_failed_load_is_tried_again_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests within the pause are refused at once; one after it starts a new load."""

    class Mending(FakeLaunch):
        async def prepare(self, spec: VariantSpec, on_progress: Any) -> Prepared:
            prepared = await super().prepare(spec, on_progress)
            if self.num_prepared == 1:
                raise LoadRefused("the disk is full")
            return prepared

    async def run() -> int:
        launch = Mending()
        patience = replace(PATIENCE, retry_load_after_s=60)
        async with pool_of({"a": {}}, launch, patience=patience) as pool:
            for _ in range(3):
                with pytest.raises(EngineDown, match="could not be loaded"):
                    await pool.lease("a").__aenter__()
            now = time.monotonic
            monkeypatch.setattr(time, "monotonic", lambda: now() + 60)
            async with pool.lease("a") as lease:
                await answer(lease)
        return launch.num_prepared

    assert asyncio.run(run()) == 2


def test_the_budget_evicts_the_idle() -> None:
    """A load stops the longest unused variants, and only as many as it needs."""

    async def run() -> None:
        models = {name: {"preload": False, "memory": "100MB"} for name in "abc"}
        async with pool_of(models, FakeLaunch(), budget=250 * MB) as pool:
            for name in "aba":
                async with pool.lease(name):
                    pass
            assert states(pool) == {"a@int4": "ready", "b@int4": "ready", "c@int4": "stopped"}
            async with pool.lease("c"):
                pass
            assert states(pool) == {"a@int4": "ready", "b@int4": "stopped", "c@int4": "ready"}

    asyncio.run(run())


def test_fixed_texts_are_read_within_the_budget() -> None:
    """By a process in the memory of engines that are not there yet, others having made room."""

    class Watching(FakeLaunch):
        async def read(
            self, spec: VariantSpec, prepared: Prepared, on_progress: OnProgress
        ) -> Prepared:
            seen[spec.alias] = (states(pools[0]), pools[0].unused_bytes(), len(self.engines))
            return replace(prepared, manifest={**self.manifest, "read": spec.alias})

    seen: dict[str, tuple[dict[str, str], int | None, int]] = {}
    pools: list[Pool] = []

    async def run() -> None:
        models = {name: {"preload": False, "memory": "100MB"} for name in "ab"}
        async with pool_of(models, Watching(), budget=150 * MB) as pool:
            pools.append(pool)
            for name in "ab":
                async with pool.lease(name):
                    pass
            prepared = pool.find("b@int4").prepared
            assert prepared is not None
            assert prepared.manifest is not None
            assert prepared.manifest["read"] == "b"

    asyncio.run(run())
    assert seen["b"] == ({"a@int4": "stopped", "b@int4": "loading"}, 50 * MB, 1)


def test_what_is_in_use_is_never_evicted() -> None:
    """A load waits until somebody is idle, and fails if nobody is in time; users feel nothing."""

    async def run() -> None:
        models = {name: {"preload": False, "memory": "100MB"} for name in "ab"}
        patience = Patience(load_wait_s=1.2, retry_load_after_s=0)
        async with pool_of(models, FakeLaunch(), budget=150 * MB, patience=patience) as pool:
            await pool.control.load("a")
            async with pool.lease("a") as lease:
                with pytest.raises((NoMemory, ModelLoading)):
                    await pool.lease("b").__aenter__()
                await answer(lease)
                with pytest.raises(NoMemory, match="in use or pinned"):
                    await pool.control.load("b")
                waiting = asyncio.create_task(pool.control.load("b"))
                await asyncio.sleep(0.1)
                assert states(pool)["a@int4"] == "ready"
            await waiting
            assert states(pool) == {"a@int4": "stopped", "b@int4": "ready"}

    asyncio.run(run())


def test_pins_and_impossible_budgets() -> None:
    """A pinned model stays; what can never fit is refused with both numbers."""

    async def run() -> None:
        models = {
            "a": {"memory": "100MB", "pin": True},
            "b": {"memory": "100MB", "preload": False},
            "c": {"memory": "900MB", "preload": False},
        }
        patience = Patience(load_wait_s=0.1)
        async with pool_of(models, FakeLaunch(), budget=150 * MB, patience=patience) as pool:
            await pool.ensure_ready()
            with pytest.raises(NoMemory, match="in use or pinned"):
                await pool.control.load("b")
            with pytest.raises(
                NoMemory, match="c@int4 needs 900000000 bytes, the memory budget is 150"
            ):
                await pool.control.load("c")
            assert states(pool)["a@int4"] == "ready"

    asyncio.run(run())


def test_keep_alive_stops_the_idle() -> None:
    """A variant without requests for its keep-alive time is stopped, and comes back when asked."""

    async def run() -> None:
        async with pool_of({"a": {"keep_alive_s": 0.3}}, FakeLaunch()) as pool:
            async with pool.lease("a"):
                await asyncio.sleep(1.2)  # in use, so it stays
                assert states(pool)["a@int4"] == "ready"
            await until(lambda: pool.find("a").state is State.STOPPED)
            async with pool.lease("a") as lease:
                await answer(lease)

    asyncio.run(run())


def test_swaps_under_load_fail_no_request() -> None:
    """While clients ask all the time the active variant changes; each gets a whole answer."""

    async def run() -> None:
        seen: set[str] = set()
        done = asyncio.Event()
        num_answers = 0

        async def ask(pool: Pool) -> None:
            nonlocal num_answers
            while not done.is_set():
                async with pool.lease("a", Demand(4)) as lease:
                    seen.add(str((await answer(lease))["model"]))
                    num_answers += 1

        async with pool_of({"a": LADDER}, FakeLaunch()) as pool:
            await pool.ensure_ready()
            clients = [asyncio.create_task(ask(pool)) for _ in range(4)]
            for variant in ("int8", "int4", "full"):
                shot = await pool.control.activate(f"a@{variant}")
                assert (shot.state, shot.is_active) == (State.READY, True)
                assert pool.find("a").spec.variant == variant
            done.set()
            await asyncio.gather(*clients)
            assert seen == {"a@int4", "a@int8", "a@full"}
            assert num_answers > 20
            assert states(pool) == {"a@int4": "stopped", "a@int8": "stopped", "a@full": "ready"}

    asyncio.run(run())


def test_who_lets_go_of_a_variant_frees_nobody_elses_hold() -> None:
    """A load beside the active one, begun before or within a swap, ends no hold of the swap."""

    async def use() -> None:
        async with pool_of({"tiny": LADDER}, FakeLaunch(prepare_s=0.3)) as pool:
            await pool.ensure_ready()
            model, _ = pool._roster.find("tiny")
            old, new = model.variants["int4"], model.variants["full"]
            swap = asyncio.create_task(pool.control.activate("tiny@full"))
            await until(lambda: new.state is State.LOADING)
            with model.keeping_active():
                assert old.resident().is_in_use
            assert old.is_held
            with model.keeping_active():
                await swap
                assert (old.is_held, new.is_held) == (False, True)
            assert not new.is_held

    asyncio.run(use())


def test_a_swap_waits_for_the_running_requests_of_the_old_one() -> None:
    """The old variant's engine ends only after its last answer."""

    async def run() -> None:
        async with pool_of({"a": LADDER}, FakeLaunch()) as pool:
            await pool.ensure_ready()
            async with pool.lease("a") as lease:
                swapping = asyncio.create_task(pool.control.activate("a@int8"))
                await until(lambda: pool.find("a").spec.variant == "int8")
                await asyncio.sleep(0.2)
                assert not swapping.done()
                assert (await answer(lease))["model"] == "a@int4"
            await swapping
            assert states(pool)["a@int4"] == "stopped"

    asyncio.run(run())


def test_a_variant_that_fails_the_smoke_check_is_not_swapped_in() -> None:
    """A known text that costs the new engine far more ends the swap; the old one goes on."""

    async def run() -> None:
        launch = FakeLaunch(nll={"int4": 0.5, "int8": 9.0, "full": 1.2})
        async with pool_of({"a": LADDER}, launch) as pool:
            await pool.ensure_ready()
            with pytest.raises(SmokeCheckFailed, match=r"a@int8 finds a known text 8\.50 nats"):
                await pool.control.activate("a@int8")
            assert pool.find("a").spec.variant == "int4"
            assert states(pool)["a@int8"] == "failed"
            async with pool.lease("a") as lease:
                assert (await answer(lease))["model"] == "a@int4"
            await pool.control.activate("a@full")

    asyncio.run(run())


def test_a_broken_variant_can_be_swapped_out() -> None:
    """A first engine that is broken keeps no good one out, but does not come back in."""

    async def run() -> None:
        launch = FakeLaunch(nll={"int4": 9.0, "int8": 0.5})
        async with pool_of({"a": LADDER}, launch) as pool:
            await pool.ensure_ready()
            await pool.control.activate("a@int8")
            with pytest.raises(SmokeCheckFailed):
                await pool.control.activate("a@int4")
            assert pool.find("a").spec.variant == "int8"

    asyncio.run(run())


def test_replicas_share_the_work() -> None:
    """Requests go where least is to be done, a dead replica is passed by and brought back."""

    async def run() -> None:
        launch = FakeLaunch()
        async with pool_of({"a": {"replicas": 2}}, launch) as pool:
            await pool.ensure_ready()
            async with pool.lease("a", Demand(100)) as one, pool.lease("a", Demand(100)) as two:
                assert {one.replica.index, two.replica.index} == {0, 1}
            os.kill(launch.engines[0].pid, signal.SIGKILL)
            await until(
                lambda: (
                    sorted(each.state for each in pool.find("a").replicas)
                    == [State.READY, State.RESTARTING]
                )
            )
            assert pool.find("a").state is State.READY
            async with pool.lease("a") as lease:
                await answer(lease)
            await until(lambda: all(each.state is State.READY for each in pool.find("a").replicas))
            assert sorted(each.num_restarts for each in pool.find("a").replicas) == [0, 1]

    asyncio.run(run())


def test_unload_and_load() -> None:
    """Unloading waits for running requests; requests that come meanwhile wait for the new load."""

    async def run() -> None:
        async with pool_of({"a": {}}, FakeLaunch()) as pool:
            await pool.ensure_ready()
            async with pool.lease("a") as lease:
                unloading = asyncio.create_task(pool.control.unload("a"))
                await until(lambda: pool.find("a").state is State.STOPPING)
                late = asyncio.create_task(pool.lease("a").__aenter__())
                await answer(lease)
            assert (await unloading).state in (State.STOPPED, State.LOADING)
            assert (await answer(await late))["model"] == "a@int4"

    asyncio.run(run())


def test_fallbacks_are_named_in_order() -> None:
    """The next rung follows the active variant, and a pinned name has no second choice."""

    async def run() -> None:
        models = {"a": LADDER | {"fallback": ["next-rung", "b", "b@full"]}, "b": LADDER}
        async with pool_of(models, FakeLaunch()) as pool:

            def names(name: str) -> list[str]:
                return [each.spec.served_name for each in pool.targets(name)]

            assert names("a") == ["a@int4", "a@int8", "b@int4", "b@full"]
            await pool.control.activate("a@full")
            assert names("a") == ["a@full", "b@int4", "b@full"]
            assert names("a@int4") == ["a@int4"]
            assert names("b") == ["b@int4"]

    asyncio.run(run())


def test_events_tell_the_story() -> None:
    """Whoever follows sees states and progress in order, and may come back later."""

    async def run() -> None:
        async with pool_of({"a": LADDER}, FakeLaunch()) as pool:
            await pool.ensure_ready()
            story: list[tuple[str, str]] = []
            last = 0
            following = pool.events.follow(0)
            async for event in following:
                story.append((event.kind, str(event.fields.get("state", ""))))
                last = event.number
                if story[-1] == ("state", "ready"):
                    break
            await following.aclose()
            assert [state for kind, state in story if kind == "state"][-2:] == ["loading", "ready"]
            assert ("progress", "") in story
            again = pool.events.follow(last)
            waiting = asyncio.create_task(anext(again))
            await asyncio.sleep(0)
            await pool.control.activate("a@int8")
            assert (await waiting).kind == "swap_started"
            await again.aclose()

    asyncio.run(run())


def test_a_load_that_is_ended_tells_who_waits() -> None:
    """An operator who unloads a model while it loads ends the wait of others with an error."""

    async def run() -> None:
        async with pool_of({"a": {}}, FakeLaunch(prepare_s=60)) as pool:
            waiting = asyncio.create_task(pool.ensure_ready())
            await until(lambda: pool.find("a").state is State.LOADING)
            assert (await pool.control.unload("a")).state is State.STOPPED
            with pytest.raises(EngineDown, match="is being stopped"):
                await waiting

    asyncio.run(run())


def test_who_begins_to_use_a_victim_keeps_it() -> None:
    """A variant that gets a request while another one stops for the same load is not stopped."""

    async def run() -> None:
        models = {name: {"preload": False, "memory": "100MB"} for name in "abc"}
        models["c"]["memory"] = "200MB"
        patience = Patience(load_wait_s=2, stop_grace_s=1)
        launch = FakeLaunch()
        async with pool_of(models, launch, budget=200 * MB, patience=patience) as pool:
            await pool.control.load("a")
            await pool.control.load("b")
            # An engine that has work of its own takes its whole grace to stop.
            fields = {"prompt": "one two", "fake": {"head_s": 30}}
            busy = asyncio.create_task(launch.engines[0].client.complete(fields, "test"))
            await until(lambda: num_running(launch.engines[0]) == 1)
            loading = asyncio.create_task(pool.control.load("c"))
            await until(lambda: pool.find("a").state is State.STOPPING)
            async with pool.lease("b") as lease:
                with pytest.raises(NoMemory, match="in use or pinned"):
                    await loading
                assert pool.find("b").state is State.READY
                await answer(lease)
            await asyncio.gather(busy, return_exceptions=True)

    asyncio.run(run())


def test_a_stop_goes_on_when_its_caller_leaves() -> None:
    """A cancelled unload leaves nothing in between: the variant is stopped and can come back."""

    async def run() -> None:
        async with pool_of({"a": {}}, FakeLaunch()) as pool:
            await pool.ensure_ready()
            async with pool.lease("a"):
                unloading = asyncio.create_task(pool.control.unload("a"))
                await until(lambda: pool.find("a").state is State.STOPPING)
                unloading.cancel()
                await asyncio.gather(unloading, return_exceptions=True)
            await until(lambda: pool.find("a").state is State.STOPPED)
            assert (await pool.control.load("a")).state is State.READY

    asyncio.run(run())


def test_a_variant_that_was_given_up_is_not_swapped_in() -> None:
    """Its earlier load counts for nothing; after the pause it is loaded anew, or refused."""

    async def run() -> None:
        launch = FakeLaunch(num_failures=1000)
        patience = Patience(max_restarts=1, first_backoff_s=0.01, retry_load_after_s=60)
        async with pool_of({"a": LADDER}, launch, patience=patience) as pool:
            await pool.control.load("a@int8")
            await pool.control.load("a@int4")
            os.kill(launch.engines[0].pid, signal.SIGKILL)
            await until(lambda: pool.find("a@int8").state is State.FAILED)
            with pytest.raises(EngineDown, match="failed too often"):
                await pool.control.activate("a@int8")
            assert states(pool)["a@int4"] == "ready"
            assert pool.find("a").spec.variant == "int4"

    asyncio.run(run())
