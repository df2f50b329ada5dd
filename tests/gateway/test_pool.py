"""The pool and its keepers, with fake engines as real child processes."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from compression.events import OnProgress, Progress
from gateway.backends.base import Engine
from gateway.errors import (
    Draining,
    EngineDown,
    LoadRefused,
    ModelLoading,
    ModelNotFound,
    SchemeMismatch,
    StartupError,
)
from gateway.model_settings import ModelSettings
from gateway.pool.pool import Pool
from gateway.pool.state import Patience, State
from gateway.prepared import Prepared
from gateway.registry import Metrics
from gateway.serve import serve
from gateway.settings import Settings
from gateway.specs import VariantSpec, make_specs
from tests.gateway.fake_launch import FakeLaunch
from tests.gateway.harness import is_alive, until
from tests.ports import free_port

IMPATIENT = Patience(
    first_backoff_s=0.01, last_backoff_s=0.02, max_restarts=3, probe_every_s=0.1, load_wait_s=0
)


@asynccontextmanager
async def running(launch: FakeLaunch, model: str = "x") -> AsyncIterator[Pool]:
    """Yield a pool of one model, not yet loaded."""
    settings = Settings(models={"tiny": ModelSettings(model=model)})
    events: list[Progress] = []
    pool = Pool(
        make_specs(settings),
        launch,
        metrics=Metrics(),
        on_progress=events.append,
        patience=IMPATIENT,
    )
    try:
        yield pool
    finally:
        await pool.close(0)
    assert not any(is_alive(engine.pid) for engine in launch.engines)


async def reached(pool: Pool, state: State) -> None:
    """Wait for a state."""
    await until(lambda: pool.find("tiny").state is state)


def test_concurrent_loads_are_one() -> None:
    """Many callers wait for the same single load."""

    async def run() -> FakeLaunch:
        launch = FakeLaunch(prepare_s=0.05)
        async with running(launch) as pool:
            await asyncio.gather(*(pool.ensure_ready() for _ in range(5)))
            await pool.ensure_ready()
            assert pool.find("tiny@int4").state is State.READY
        return launch

    launch = asyncio.run(run())
    assert (launch.num_prepared, len(launch.engines)) == (1, 1)


def test_what_was_loaded_for_one_question_leaves_again() -> None:
    """A borrowed variant goes after its idle time; the active one, and one that is wanted, stay."""

    async def run() -> list[State]:
        ladder = ModelSettings.model_validate({"model": "x", "ladder": ["int4", "int8", "full"]})
        pool = Pool(
            make_specs(Settings(models={"tiny": ladder})),
            FakeLaunch(),
            metrics=Metrics(),
            on_progress=lambda progress: None,
            patience=replace(IMPATIENT, load_wait_s=10, borrowed_s=0.1),
        )
        tending = asyncio.create_task(pool.tend())
        try:
            for name in ("tiny", "tiny@int8", "tiny@full"):
                async with pool.lease(name, borrows=True):
                    assert pool.find(name).state is State.READY
            await pool.control.load("tiny@int8")
            await until(lambda: pool.find("tiny@full").state is State.STOPPED)
            return [pool.find(f"tiny@{variant}").state for variant in ("int4", "int8")]
        finally:
            tending.cancel()
            await pool.close(0)

    assert asyncio.run(run()) == [State.READY, State.READY]


def test_the_loop_goes_on_while_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with many processes takes long to look at; no stream waits for it."""
    is_asked, may_tell, patience_s = threading.Event(), threading.Event(), 60.0
    waited_in_vain: list[int] = []

    def look(session: int) -> int:
        is_asked.set()
        if not may_tell.wait(patience_s):
            waited_in_vain.append(session)
        return 12_345

    monkeypatch.setattr("gateway.backends.process.resident_bytes", look)

    async def run() -> None:
        async with running(FakeLaunch()) as pool:
            await pool.ensure_ready()
            tending = asyncio.create_task(pool.tend())
            assert await asyncio.to_thread(is_asked.wait, patience_s)
            may_tell.set()
            await until(lambda: pool.find("tiny").num_bytes == 12_345)
            tending.cancel()

    asyncio.run(run())
    assert not waited_in_vain


def test_tending_goes_on_after_a_defect(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A service whose idle variants were never stopped again would look as sound as before."""
    looks: list[int] = []

    def look(session: int) -> int:
        looks.append(session)
        if len(looks) == 1:
            raise OSError(24, "Too many open files")
        return 12_345

    monkeypatch.setattr("gateway.backends.process.resident_bytes", look)
    settings = Settings(models={"tiny": ModelSettings(model="x")}, port=free_port())
    silent: Any = SimpleNamespace(on_progress=lambda progress: None, announce=lambda *told: None)

    async def run() -> None:
        serving = asyncio.create_task(serve(settings, silent, launch=FakeLaunch()))
        try:
            await until(lambda: len(looks) > 1)
        finally:
            serving.cancel()
            await asyncio.wait({serving})

    asyncio.run(run())
    assert "work beside requests begins again after a defect" in caplog.text


def test_a_caller_that_gives_up_does_not_end_the_load() -> None:
    """Cancelling one waiter leaves the load running for the others."""

    async def run() -> None:
        async with running(FakeLaunch(prepare_s=0.2)) as pool:
            waiter = asyncio.create_task(pool.ensure_ready())
            await asyncio.sleep(0.05)
            waiter.cancel()
            await pool.ensure_ready()
            assert pool.find("tiny").state is State.READY

    asyncio.run(run())


def test_leases_follow_the_state() -> None:
    """No lease before the load, one while ready, none for strangers or after the drain began."""

    async def run() -> None:
        async with running(FakeLaunch()) as pool:
            with pytest.raises(ModelLoading):
                await pool.lease("tiny").__aenter__()
            await pool.ensure_ready()
            for name in ("other", "tiny@full", "tiny@", "", "@int4"):
                with pytest.raises(ModelNotFound, match="tiny@int4"):
                    await pool.lease(name).__aenter__()
            async with pool.lease("tiny") as lease:
                assert lease.client.served_name == "tiny@int4"
                pool.drain()
                idle = asyncio.create_task(pool.wait_idle())
                await asyncio.sleep(0.01)
                assert not idle.done()
                with pytest.raises(Draining):
                    await pool.lease("tiny").__aenter__()
            await asyncio.wait_for(idle, 30)

    asyncio.run(run())


def test_refused_load() -> None:
    """A refusal reaches who asked for the load, and the model is failed."""

    async def run() -> None:
        async with running(FakeLaunch(), model="refuse") as pool:
            with pytest.raises(LoadRefused):
                await pool.ensure_ready()
            assert pool.find("tiny").state is State.FAILED
            with pytest.raises(EngineDown) as caught:
                await pool.lease("tiny").__aenter__()
            assert caught.value.retry_after_s == 30

    asyncio.run(run())


def test_defect_in_a_load(caplog: pytest.LogCaptureFixture) -> None:
    """Any exception ends the load: one line for who waits, the traceback in the log."""

    class Broken(FakeLaunch):
        async def prepare(self, spec: VariantSpec, on_progress: OnProgress) -> Prepared:
            raise ValueError("embedded null byte\nin 'a\\0b'")

    async def run() -> None:
        async with running(Broken()) as pool:
            with pytest.raises(StartupError) as caught:
                await asyncio.wait_for(pool.ensure_ready(), 30)
            assert str(caught.value) == (
                "tiny@int4 cannot be served: ValueError: embedded null byte in 'a\\0b'"
            )
            assert pool.find("tiny").state is State.FAILED

    asyncio.run(run())
    assert any(record.exc_info for record in caplog.records)


def test_defect_in_a_restart(caplog: pytest.LogCaptureFixture) -> None:
    """Any exception in a restart is logged with its traceback, and the model is failed."""

    class Broken(FakeLaunch):
        async def start(self, spec: VariantSpec, prepared: Prepared, replica: int) -> Engine:
            if self.engines:
                raise OSError(24, "Too many open files")
            return await super().start(spec, prepared, replica)

    async def run() -> None:
        launch = Broken()
        async with running(launch) as pool:
            await pool.ensure_ready()
            os.kill(launch.engines[-1].pid, signal.SIGKILL)
            await reached(pool, State.FAILED)
            with pytest.raises(EngineDown):
                await pool.lease("tiny").__aenter__()

    asyncio.run(run())
    assert any(record.exc_info for record in caplog.records)
    assert "tiny@int4 is not restarted: OSError" in caplog.text


@pytest.mark.parametrize(
    ("applied", "names"),
    [
        (("int8-rows", "none"), "runs int4-g32-asym, none, but .* records int8-rows, none"),
        (("int4-g32-asym", "int8-rows", "none"), "records int4-g32-asym, int8-rows, none"),
        (("int4-g32-asym",), "runs int4-g32-asym, none, but .* records int4-g32-asym:"),
    ],
)
def test_engine_that_fell_back_is_refused(applied: tuple[str, ...], names: str) -> None:
    """An engine whose live schemes are not those of the manifest is ended, and both are named."""

    async def run() -> FakeLaunch:
        launch = FakeLaunch(applied=applied)
        async with running(launch) as pool:
            with pytest.raises(SchemeMismatch, match=names):
                await pool.ensure_ready()
            assert pool.find("tiny").state is State.FAILED
            assert not is_alive(launch.engines[-1].pid)
        return launch

    assert len(asyncio.run(run()).engines) == 1


def test_recovery_does_not_prepare_again() -> None:
    """A lost engine is started from the directory that is there."""

    async def run() -> FakeLaunch:
        launch = FakeLaunch()
        async with running(launch) as pool:
            await pool.ensure_ready()
            os.kill(launch.engines[-1].pid, signal.SIGKILL)
            await reached(pool, State.RESTARTING)
            with pytest.raises(EngineDown):
                await pool.lease("tiny").__aenter__()
            await reached(pool, State.READY)
        return launch

    launch = asyncio.run(run())
    assert (launch.num_prepared, len(launch.engines)) == (1, 2)


def test_crash_loop_ends() -> None:
    """After too many losses in the window the model is failed for good."""

    async def run() -> int:
        launch = FakeLaunch(num_failures=100)
        async with running(launch) as pool:
            await pool.ensure_ready()
            os.kill(launch.engines[-1].pid, signal.SIGKILL)
            await reached(pool, State.FAILED)
        return launch.num_failures_after_first

    assert asyncio.run(run()) == 100 - IMPATIENT.max_restarts


def test_close_while_loading() -> None:
    """Closing in the middle of a load leaves nothing behind and does not hang."""

    async def run() -> None:
        async with running(FakeLaunch(prepare_s=60)) as pool:
            loading = asyncio.create_task(pool.ensure_ready())
            await reached(pool, State.LOADING)
            await pool.close()
            assert pool.find("tiny").state is State.STOPPED
            with pytest.raises(EngineDown, match="is being stopped"):
                await loading

    asyncio.run(run())
