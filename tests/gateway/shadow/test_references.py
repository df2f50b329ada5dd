"""References within their memory, and the pauses after failures."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from compression.events import OnProgress
from gateway.backends.base import Engine
from gateway.errors import ChildFailed, EngineDown, NarrowgateError, StartupError
from gateway.model_settings import ModelSettings
from gateway.prepared import Prepared
from gateway.protocol import EngineInfo
from gateway.registry import Metrics
from gateway.shadow.reference import Reference
from gateway.shadow.reference_spec import reference_spec
from gateway.shadow.references import References
from gateway.shadow_settings import ReferenceSettings
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient

MODEL = ModelSettings(model="fake", recipe="int4", threads=4, max_model_len=512)


class Client(EngineClient):
    """Says that it can score."""

    async def info(self) -> EngineInfo:
        """Return a description."""
        return EngineInfo(served_model_name="x", max_capture=64)


@dataclass
class FakeEngine:
    """An engine that only is there."""

    backend: str = "fake"
    last_words: str = "nothing"
    is_stopped: bool = False
    client: EngineClient = field(
        default_factory=lambda: Client("http://127.0.0.1:1", served_name="x", read_timeout_s=1)
    )

    async def is_healthy(self, timeout_s: float, *, is_busy: bool) -> bool:
        """Return that it gets on."""
        return True

    def resident_bytes(self) -> int:
        """Return 0."""
        return 0

    def cpu_s(self) -> float:
        """Return 0."""
        return 0.0

    async def wait(self) -> int:
        """Wait for ever."""
        await asyncio.Event().wait()
        return 0

    async def stop(self, grace_s: float) -> None:
        """Note it."""
        self.is_stopped = True


class Launch:
    """Starts fake engines, or fails."""

    def __init__(self) -> None:
        self.engines: list[FakeEngine] = []
        self.is_broken = False

    async def prepare(self, spec: VariantSpec, on_progress: OnProgress) -> Prepared:
        """Prepare nothing."""
        return Prepared(Path("/nowhere"), None)

    async def start(self, spec: VariantSpec, prepared: Prepared, replica: int) -> Engine:
        """Return an engine."""
        if self.is_broken:
            raise ChildFailed("it ended")
        self.engines.append(FakeEngine())
        return self.engines[-1]

    def memory_bytes(self, spec: VariantSpec, prepared: Prepared) -> int:
        """Return 100 bytes."""
        return 100


def test_how_a_reference_is_started() -> None:
    """The full model with few threads, behind everybody else, without a memory of prefixes."""
    spec = reference_spec("a", MODEL, ReferenceSettings(threads=2))
    assert (spec.served_name, spec.niceness) == ("a@reference", 19)
    found = spec.settings
    assert (found.recipe, found.threads, found.max_model_len) == ("full", 2, 512)
    assert (found.enable_prefix_caching, found.max_num_seqs) == (False, 1)
    there = reference_spec("a", MODEL, ReferenceSettings(urls={"a": "http://10.0.0.5:1/v1/"}))
    assert there.settings.urls == ("http://10.0.0.5:1",)


@pytest.mark.parametrize(("memory", "num_running"), [(None, 3), (300, 3), (250, 2), (100, 1)])
def test_references_share_their_memory(memory: int | None, num_running: int) -> None:
    """The one that was used least lately makes room."""

    async def use() -> None:
        launch = Launch()
        references = References(
            {name: MODEL for name in "abc"},
            ReferenceSettings.model_validate({"memory": memory}),
            launch,
            metrics=Metrics(),
            is_wanted=lambda alias: True,
        )
        for name in "abc":
            await references.of(name).scorer()
        running = [name for name in "abc" if references.of(name).is_running]
        assert running == list("abc")[-num_running:]
        await references.stop()
        assert all(engine.is_stopped for engine in launch.engines)

    asyncio.run(use())


def test_who_is_asked_makes_no_room() -> None:
    """A reference in use stays and the other one has no room; once it is free it is ended."""

    async def use() -> None:
        references = References(
            {name: MODEL for name in "abc"},
            ReferenceSettings.model_validate({"memory": 199}),
            Launch(),
            metrics=Metrics(),
            is_wanted=lambda alias: True,
        )
        await references.of("a").scorer()
        with references.of("a").using():
            with pytest.raises(StartupError, match=r"no room .* those in use hold 100 of 199"):
                await references.of("b").scorer()
            assert references.of("a").is_running
        await references.of("c").scorer()
        assert not references.of("a").is_running
        await references.stop()

    asyncio.run(use())


def test_a_reference_that_is_too_large_is_refused() -> None:
    """The line names both sizes and the setting."""

    async def use() -> None:
        references = References(
            {"a": MODEL},
            ReferenceSettings.model_validate({"memory": 99}),
            Launch(),
            metrics=Metrics(),
            is_wanted=lambda alias: True,
        )
        with pytest.raises(StartupError, match=r"needs 100 bytes, 'shadow.reference.memory' is 99"):
            await references.of("a").scorer()
        assert references.status("a")["state"] == "paused"

    asyncio.run(use())


def test_pauses_grow_and_end() -> None:
    """Starts that fail are tried after 1, 2, 4 ... 300 s; a success begins anew."""
    now = [0.0]
    launch = Launch()
    launch.is_broken = True

    async def room(reference: Reference, num_bytes: int) -> None:
        pass

    async def use() -> None:
        spec = reference_spec("a", MODEL, ReferenceSettings())
        options: dict[str, Any] = {"metrics": Metrics(), "make_room": room}
        reference = Reference(spec, launch, clock=lambda: now[0], **options)
        pauses = []
        for _ in range(11):
            with pytest.raises(NarrowgateError):
                await reference.scorer()
            pauses.append(reference.pause_left_s)
            with pytest.raises(EngineDown, match="left alone for"):
                await reference.scorer()
            now[0] += pauses[-1]
        assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
        launch.is_broken = False
        await reference.scorer()
        reference.succeed()
        # Single scorings that fail are borne with; the third in a row is too much.
        for expected in ("ready", "ready", "paused"):
            reference.fail("no numbers")
            assert reference.state == expected
        assert reference.pause_left_s == 4
        await reference.stop(0)

    asyncio.run(use())


def test_who_is_asked_is_not_idle() -> None:
    """A reference in use stays, however long it takes; afterwards its idleness begins anew."""

    async def use() -> None:
        launch = Launch()
        references = References(
            {"a": MODEL},
            ReferenceSettings.model_validate({"idle_s": 0.01}),
            launch,
            metrics=Metrics(),
            is_wanted=lambda alias: True,
        )
        reference = references.of("a")
        with pytest.raises(EngineDown, match="the reference of a does not run"):
            reference.using().__enter__()
        await reference.scorer()
        with reference.using() as client:
            assert client is launch.engines[0].client
            reference.last_used = -1000.0
            await references._tend_running("a", reference)
            assert reference.is_running
        await references._tend_running("a", reference)
        assert reference.is_running
        reference.last_used = -1000.0
        await references._tend_running("a", reference)
        assert not reference.is_running

    asyncio.run(use())
