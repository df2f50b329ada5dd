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
from gateway.shadow import references as references_module
from gateway.shadow.reference import Reference
from gateway.shadow.reference_memory import NoRoom
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
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
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

    def __post_init__(self) -> None:
        self.may_end.set()

    async def stop(self, grace_s: float) -> None:
        """Note it."""
        await self.may_end.wait()
        self.is_stopped = True


class Launch:
    """Starts fake engines, or fails."""

    def __init__(self) -> None:
        self.engines: list[FakeEngine] = []
        self.is_broken = False
        self.is_slow = False
        self.hangs_for = ""
        self.digest: str | None = None
        self.most_held = 0
        """Bytes of all engines that were there or started at once."""
        self._num_starting = 0

    async def prepare(self, spec: VariantSpec, on_progress: OnProgress) -> Prepared:
        """Prepare nothing."""
        return Prepared(Path("/nowhere"), None, self.digest)

    async def read(
        self, spec: VariantSpec, prepared: Prepared, on_progress: OnProgress
    ) -> Prepared:
        """Read nothing."""
        return prepared

    async def start(self, spec: VariantSpec, prepared: Prepared, replica: int) -> Engine:
        """Return an engine."""
        if self.is_broken:
            raise ChildFailed("it ended")
        if spec.alias == self.hangs_for:
            await asyncio.Event().wait()
        self._num_starting += 1
        num_there = self._num_starting + sum(not each.is_stopped for each in self.engines)
        self.most_held = max(self.most_held, 100 * num_there)
        if self.is_slow:
            await asyncio.sleep(0.01)
        self._num_starting -= 1
        self.engines.append(FakeEngine())
        return self.engines[-1]

    def memory_bytes(self, spec: VariantSpec, prepared: Prepared) -> int:
        """Return 100 bytes."""
        return 100


def make_references(names: str, launch: Launch, **settings: object) -> References:
    """Return references of models with these names, each of 100 bytes."""
    return References(
        {name: MODEL for name in names},
        ReferenceSettings.model_validate(settings),
        launch,
        metrics=Metrics(),
        is_wanted=lambda alias: True,
    )


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
    """A reference in use stays and the other one has no room, which is no failure of its own."""

    async def use() -> None:
        references = References(
            {name: MODEL for name in "abc"},
            ReferenceSettings.model_validate({"memory": 199}),
            Launch(),
            metrics=Metrics(),
            is_wanted=lambda alias: True,
            room_wait_s=0.01,
        )
        await references.of("a").scorer()
        with references.of("a").using():
            with pytest.raises(NoRoom, match=r"no room .* others hold 100 of 199"):
                await references.of("b").scorer()
            assert references.of("a").is_running
            assert references.of("b").state == "stopped"
        await references.of("c").scorer()
        assert not references.of("a").is_running
        await references.stop()

    asyncio.run(use())


def test_two_at_once_do_not_take_the_same_room() -> None:
    """While one has room set aside and starts, another one finds it taken."""

    async def use() -> None:
        launch = Launch()
        references = make_references("abc", launch, memory=150)
        await references.of("a").scorer()
        launch.is_slow = True
        starting = [asyncio.create_task(references.of(name).scorer()) for name in "bc"]
        await asyncio.wait(starting)
        # Both have the first one ended, and there was a moment for both to see its room free.
        assert launch.most_held == 100
        assert sum(references.of(name).is_running for name in "abc") == 1
        await references.stop()

    asyncio.run(use())


def test_room_is_free_when_the_process_has_ended() -> None:
    """One that is given time to end holds its memory until then."""

    async def use() -> None:
        launch = Launch()
        references = make_references("ab", launch, memory=100)
        await references.of("a").scorer()
        launch.engines[0].may_end.clear()
        stopping = asyncio.create_task(references.of("a").stop())
        await asyncio.sleep(0)
        starting = asyncio.create_task(references.of("b").scorer())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not starting.done()
        assert len(launch.engines) == 1
        launch.engines[0].may_end.set()
        await asyncio.gather(stopping, starting)
        assert (launch.most_held, references.of("b").is_running) == (100, True)
        await references.stop()

    asyncio.run(use())


def test_who_waits_for_room_gets_it() -> None:
    """It is ended between two scores, although there is always a next one that wants to begin."""

    async def use() -> None:
        references = make_references("ab", Launch(), memory=100)
        first = references.of("a")
        begun = asyncio.Event()

        async def ask_again_and_again() -> None:
            while True:
                await first.scorer()
                with first.using():
                    begun.set()
                    await asyncio.sleep(0.001)

        asking = asyncio.create_task(ask_again_and_again())
        await begun.wait()
        async with asyncio.timeout(5):
            await references.of("b").scorer()
        with references.of("b").using():
            assert not first.is_running
            assert first.state in {"starting", "stopped"}
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await references.stop()

    asyncio.run(use())


def test_one_that_starts_is_not_taken_for_an_idle_one() -> None:
    """It holds room and nobody asks it yet, but the one that is idle makes room."""

    async def use() -> None:
        launch = Launch()
        references = make_references("abc", launch, memory=200)
        await references.of("a").scorer()
        launch.hangs_for = "b"
        starting = asyncio.create_task(references.of("b").scorer())
        while not references.of("b").num_bytes:  # noqa: ASYNC110 - a task of its own takes it
            await asyncio.sleep(0)
        assert references.of("b").last_used > references.of("a").last_used
        references.of("b").last_used = -1000.0
        async with asyncio.timeout(5):
            await references.of("c").scorer()
        assert not references.of("a").is_running
        assert references.of("b").state == "starting"
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await references.stop()

    asyncio.run(use())


def test_no_standstill_over_one_that_ends_and_is_asked_again() -> None:
    """Who waits for its room gets it, and who asks for it anew comes behind."""

    async def use() -> None:
        launch = Launch()
        references = make_references("ab", launch, memory=100)
        first, second = references.of("a"), references.of("b")
        await second.scorer()
        launch.engines[0].may_end.clear()
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(second.make_way(0, 2.0))]
        for claimant in (second, first):
            for _ in range(5):
                await asyncio.sleep(0)
            tasks.append(asyncio.create_task(claimant.scorer()))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        launch.engines[0].may_end.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks)
        # One after the other: the second claimant ended the first one's.
        assert [each.is_running for each in (first, second)] == [False, True]
        assert (len(launch.engines), launch.most_held) == (3, 100)
        await references.stop()

    asyncio.run(use())


def test_residents_do_not_end_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one of two, one stays until the other one is asked for."""
    monkeypatch.setattr(references_module, "_TEND_EVERY_S", 0.001)

    async def use() -> None:
        launch = Launch()
        references = make_references("ab", launch, memory=100, mode="resident")
        tending = asyncio.create_task(references.tend())
        await asyncio.sleep(0.1)
        assert len(launch.engines) == 1
        (other,) = [name for name in "ab" if not references.of(name).is_running]
        await references.of(other).scorer()
        await asyncio.sleep(0.1)
        assert len(launch.engines) == 2
        assert references.of(other).is_running
        tending.cancel()
        await asyncio.gather(tending, return_exceptions=True)
        await references.stop()

    asyncio.run(use())


def test_a_reference_that_starts_slowly_holds_up_no_other_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others are tended meanwhile: started, or ended when they are idle."""
    monkeypatch.setattr(references_module, "_TEND_EVERY_S", 0.001)

    async def use() -> None:
        launch = Launch()
        launch.hangs_for = "a"
        references = make_references("ab", launch, mode="resident")
        tending = asyncio.create_task(references.tend())
        async with asyncio.timeout(5):
            while not references.of("b").is_running:  # noqa: ASYNC110 - a task of its own starts it
                await asyncio.sleep(0.001)
        assert references.of("a").state == "starting"
        tending.cancel()
        await asyncio.gather(tending, return_exceptions=True)
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


def test_a_reference_is_known_by_its_weights() -> None:
    """Its identity has their digest once it has run, and another one when they are replaced."""

    async def use() -> None:
        launch = Launch()
        references = make_references("a", launch)
        reference = references.of("a")
        assert reference.identity == "fake"
        seen = []
        for digest in ("1" * 64, "2" * 64):
            launch.digest = digest
            await reference.scorer()
            seen.append(reference.identity)
            await reference.stop(0)
        assert seen == ["fake#" + "1" * 16, "fake#" + "2" * 16]
        assert reference.identity == seen[-1]

    asyncio.run(use())


def test_pauses_grow_and_end() -> None:
    """Starts that fail are tried after 1, 2, 4 ... 300 s; a success begins anew."""
    now = [0.0]
    launch = Launch()
    launch.is_broken = True

    async def room(reference: Reference, num_bytes: int, *, may_evict: bool) -> None:
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
