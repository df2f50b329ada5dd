"""Fixed texts that engines read at their load: damage is seen, and nothing else is."""

import asyncio
import itertools
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.shadow.at_load import check_at_load
from benchmarks.shadow.damaged import DAMAGES, Damage, scaled, write_damaged
from compression.errors import ArtifactError
from compression.events import ignore
from compression.fixed_texts import ALL, FILE_NAME, read_fixed_texts
from compression.manifest import read_manifest
from compression.packed.linear import NEVER
from compression.prepare import build_to, prepare
from gateway.engine.fixed_texts import add_reading, read
from gateway.engine.runner import Runner, load_runner
from gateway.engine.tokenizer import load_tokenizer
from gateway.errors import EngineDown, EngineTimeout
from gateway.model_settings import VariantSettings
from gateway.pool.lease import ReadyEngine
from gateway.prepared import Prepared
from gateway.registry import Metrics, render
from gateway.shadow.embedded_scorer import EmbeddedScorer
from gateway.shadow.fixed_texts import FixedTextsCheck
from gateway.shadow.fixed_texts_finding import Finding, Outcome
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient
from tests.engine.fakes import MODEL, RunningEngine, running_engine

SPEC = VariantSpec("tiny", "int8", VariantSettings(model="tiny"))
RECIPE = "weights: {scheme: int8}\nkv_cache: {key: {scheme: int8}, value: {scheme: int8}}\n"
DUE = "fixed_texts_due_timestamp_seconds"
TENTH = Damage("a scale", lambda tensors: scaled(tensors, "layers.1.self_attn.v_proj", 1.1))


def load(directory: Path) -> Runner:
    """Load with one thread, as small models need."""
    return load_runner(directory, threads=1, max_model_len=None)


def build(source: Path, place: Path, recipe: str) -> Path:
    """Build an artifact that is measured and read."""
    build_to(str(source), recipe, None, place, ignore, is_measured=True)
    add_reading(place, 1, ignore)
    return place


@pytest.fixture(scope="module")
def artifact(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build in int8."""
    return build(tiny_llama_dir, tmp_path_factory.mktemp("read") / "int8", "int8-fast")


def serve(directory: Path) -> Any:
    """Serve an artifact in this process."""
    return running_engine(load(directory), load_tokenizer(directory), token_budget=128)


@pytest.fixture(scope="module")
def sound(artifact: Path) -> Iterator[RunningEngine]:
    """Serve the artifact as it was built."""
    with serve(artifact) as engine:
        yield engine


@pytest.fixture(scope="module")
def damaged(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """Serve it with the scales of one of its layers 10 % too large."""
    place = tmp_path_factory.mktemp("broken") / "int8"
    write_damaged(artifact, TENTH, place)
    with serve(place) as engine:
        yield engine


@dataclass
class Bench:
    """A check of one engine and all that it tells."""

    directory: Path | None
    events: list[dict[str, Any]] = field(default_factory=list)
    told: list[Outcome | None] = field(default_factory=list)
    times: set[float] = field(default_factory=set)
    """Of the readings that were told of."""
    metrics: Metrics = field(default_factory=Metrics)
    ready: list[ReadyEngine] = field(default_factory=list)
    every_s: float = 0.0

    def __post_init__(self) -> None:
        manifest = None if self.directory is None else read_manifest(self.directory)
        fields = None if manifest is None else manifest.model_dump(mode="json")
        self.prepared = Prepared(self.directory, fields)
        self.check = FixedTextsCheck(
            self.metrics,
            lambda: self.ready,
            lambda alias, variant: self.prepared,
            publish=lambda kind, fields: self.events.append({"kind": kind, **fields}),
            tell=self.take,
            every_s=self.every_s,
        )

    def take(self, alias: str, variant: str, found: Finding | None) -> None:
        """Note what is told."""
        self.told.append(None if found is None else found.outcome)
        self.times |= set() if found is None else {found.time}

    def look(self, *engines: RunningEngine, looks: int = 1, **info: Any) -> Outcome | None:
        """Let the check see these engines as replicas, each a start of its own."""

        async def use() -> None:
            self.ready.clear()
            for number, engine in enumerate(engines):
                client = EngineClient(engine.url, served_name=MODEL, read_timeout_s=60)
                found = (await client.info()).model_copy(update=info)
                self.ready.append(ReadyEngine(SPEC, f"tiny@int8/{number}", client, number, found))
            for _ in range(looks):
                await self.check.look()
            for each in self.ready:
                await each.client.aclose()

        asyncio.run(use())
        found = self.check.finding("tiny", "int8")
        return None if found is None else found.outcome

    def sample(self, name: str, **labels: str) -> float | None:
        """Return a gauge's value; None: it is not there."""
        labels = {"model": "tiny", "variant": "int8", **labels}
        return self.metrics.registry.get_sample_value(f"narrowgate_{name}", labels)


def test_a_sound_engine_is_as_it_was_at_the_build(artifact: Path, sound: RunningEngine) -> None:
    """The same processor reads the same way, in whatever company: to a thousandth."""
    bench = Bench(artifact)
    assert bench.look(sound) is Outcome.OK
    found = bench.check.finding("tiny", "int8")
    assert found is not None
    assert found.distances == pytest.approx(found.usual, rel=1e-3)
    assert bench.sample("fixed_texts_check", result="ok") == 1
    assert bench.sample("fixed_texts_check", result="changed") == 0
    assert bench.sample("fixed_text_distance_nats", text=ALL) == found.distances[ALL]
    assert [each["outcome"] for each in bench.events] == ["ok"]


def test_a_damaged_scale_is_seen_before_any_request(
    artifact: Path, sound: RunningEngine, damaged: RunningEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """By event, log, gauges and finding; a restart that mends it takes all back."""
    bench = Bench(artifact)
    assert bench.look(damaged) is Outcome.CHANGED
    (event,) = bench.events
    assert event["kind"] == "fixed_texts"
    assert event["distances"][ALL] > event["limits"][ALL] > event["usual"][ALL]
    assert "changed since the build: all" in event["reason"]
    assert "changed since the build: all" in caplog.text
    assert bench.sample("fixed_texts_check", result="changed") == 1
    assert bench.look(sound) is Outcome.OK
    assert bench.sample("fixed_texts_check", result="changed") == 0
    assert bench.told[-1] is Outcome.OK


def test_one_damaged_replica_is_enough(
    artifact: Path, sound: RunningEngine, damaged: RunningEngine
) -> None:
    """The worst engine speaks for the variant, and once it is gone the others do."""
    bench = Bench(artifact)
    assert bench.look(sound, damaged, sound) is Outcome.CHANGED
    assert bench.look(sound) is Outcome.OK
    assert bench.look() is None
    assert bench.told[-1] is None
    assert b"fixed_texts_check{" not in render(bench.metrics.registry, "text/plain")[0]


@pytest.mark.parametrize(("every_s", "expected"), [(0.0, 1), (1e-9, 3)])
def test_an_engine_is_read_once_unless_told_otherwise(
    artifact: Path, sound: RunningEngine, every_s: float, expected: int
) -> None:
    """What was read stays known; with a period it is read again."""
    bench = Bench(artifact, every_s=every_s)
    assert bench.look(sound, looks=3) is Outcome.OK
    assert bench.told == [Outcome.OK] * 3
    assert len(bench.times) == expected
    assert len(bench.events) == 1


def test_what_is_not_kept_is_no_finding(
    tiny_llama_dir: Path, artifact: Path, sound: RunningEngine, tmp_path: Path
) -> None:
    """Artifacts that were not measured, engines elsewhere, and builds that no engine read."""
    place = tmp_path / "unmeasured"
    build_to(str(tiny_llama_dir), "int8-fast", None, place, ignore)
    assert Bench(place).look(sound) is Outcome.NOT_KEPT
    assert Bench(None).look(sound) is Outcome.NOT_KEPT
    unread = Bench(artifact)
    assert unread.prepared.manifest is not None
    fields = dict(unread.prepared.manifest)
    fields["fixed_texts"] = {**fields["fixed_texts"], "reading": None}
    unread.prepared = Prepared(artifact, fields)
    assert unread.look(sound, reads_with=None) is Outcome.NOT_KEPT
    assert unread.sample("fixed_texts_check", result="not_kept") == 1
    assert unread.sample(DUE) is None
    # An engine of the kind that reads texts, which failed to behind the build or the upgrade.
    assert unread.look(sound) is Outcome.UNREAD
    assert unread.sample(DUE) is not None


@pytest.mark.parametrize(
    ("info", "every_s", "is_due"),
    [
        ({"reads_with": "W8A8"}, 3600, True),
        ({"program": "torch 9"}, 3600, True),
        ({"reads_with": None}, 3600, False),
        ({"program": "torch 9"}, 0, False),
    ],
)
def test_engines_that_compute_otherwise_are_held_against_nothing(
    artifact: Path, damaged: RunningEngine, info: dict[str, Any], every_s: float, is_due: bool
) -> None:
    """Other products, versions, or an engine that reads no texts, which alone is nobody's fault.

    One that is not looked at again is not due.
    """
    bench = Bench(artifact, every_s=every_s)
    assert bench.look(damaged, **info) is Outcome.OTHER_NUMERICS
    assert len(bench.events) == 1
    assert (bench.sample(DUE) is not None) is is_due


@pytest.mark.parametrize(
    ("spare", "outcome"), [(0, Outcome.OK), (-1, Outcome.TOO_LONG)], ids=["fits", "short"]
)
def test_a_context_that_is_too_short_is_nothing_to_wait_for(
    artifact: Path, spare: int, outcome: Outcome
) -> None:
    """It is legal, and no later try would find another one."""
    read = max(len(text.token_ids) for text in read_fixed_texts(artifact).texts) - 1
    runner = load_runner(artifact, threads=1, max_model_len=read + spare)
    bench = Bench(artifact, every_s=3600)
    with running_engine(runner, load_tokenizer(artifact), token_budget=128) as engine:
        assert bench.look(engine) is outcome
    assert (bench.sample(DUE) is None) is (outcome is Outcome.TOO_LONG)
    assert bench.sample("fixed_texts_check", result="too_long") == int(spare < 0)


@pytest.mark.parametrize("stands", ["monotonic", "time"])
def test_one_clock_that_stands_still_keeps_no_engine_from_being_read(
    artifact: Path, sound: RunningEngine, monkeypatch: pytest.MonkeyPatch, stands: str
) -> None:
    """One does while a machine sleeps; the other may be set back."""
    now = 1e9
    ticking, standing = (lambda: now), (lambda: 1e9)
    clock = SimpleNamespace(monotonic=ticking, time=ticking)
    setattr(clock, stands, standing)
    monkeypatch.setattr("gateway.shadow.fixed_texts.time", clock)
    bench = Bench(artifact, every_s=3600)
    bench.look(sound)
    asked: list[float] = []

    async def fail(self: EmbeddedScorer, *arguments: Any) -> None:
        asked.append(now - 1e9)
        raise EngineTimeout("the engine took too long")

    monkeypatch.setattr(EmbeddedScorer, "score", fail)
    for passed in (3599, 3601, 3660, 3662):
        now = 1e9 + passed
        asyncio.run(bench.check.look())
    assert asked == [3601, 3662]


@pytest.mark.parametrize("every_s", [0.0, 3600.0])
def test_when_an_engine_is_due_is_told(
    artifact: Path, sound: RunningEngine, monkeypatch: pytest.MonkeyPatch, every_s: float
) -> None:
    """A period after a reading, and once it is overdue that stays so however often it is tried."""
    bench = Bench(artifact, every_s=every_s)
    bench.look(sound)
    found = bench.check.finding("tiny", "int8")
    assert found is not None
    due = found.time + every_s if every_s else None
    assert bench.sample(DUE) == due
    now = [time.time()]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0])
    monkeypatch.setattr("gateway.shadow.fixed_texts.time", clock)

    async def fail(self: EmbeddedScorer, *arguments: Any) -> None:
        raise EngineTimeout("the engine took too long")

    monkeypatch.setattr(EmbeddedScorer, "score", fail)
    for _ in range(3):
        now[0] += 7200
        asyncio.run(bench.check.look())
    assert (bench.check.finding("tiny", "int8") is found) is (not every_s)
    assert bench.sample(DUE) == due
    began = now[0]
    bench.look(sound)  # a restart
    now[0] += 7200
    asyncio.run(bench.check.look())
    assert bench.sample(DUE) == began
    assert bench.look() is None
    assert bench.sample(DUE) is None


def test_what_a_clock_found_at_load_changes_no_reading(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    """Products that are timed round otherwise by rows than densely; each load may choose anew."""
    place = build(tiny_llama_dir, tmp_path / "nf4", "nf4")
    runner, (text, *_) = load(place), read_fixed_texts(place).texts
    timed = [linear for linear in runner.decoder.linears if linear.is_timed]
    assert timed
    found = []
    for dense_from in (2, NEVER):
        for linear in timed:
            linear.dense_from = dense_from
        found.append((runner.reads_with, read(runner, text)))
    assert found[0] == found[1]
    bench = Bench(place)
    with running_engine(runner, load_tokenizer(place), token_budget=128) as engine:
        assert bench.look(engine) is Outcome.OK
    told = bench.check.finding("tiny", "int8")
    assert told is not None
    assert told.distances == pytest.approx(told.usual, rel=1e-6)
    assert {linear.dense_from for linear in timed} == {NEVER}


def test_what_cannot_be_read_is_said(artifact: Path, sound: RunningEngine, tmp_path: Path) -> None:
    """A file that is missing or does not fit, and an engine that has gone."""
    bench = Bench(artifact)
    bench.look(sound)

    async def use() -> None:
        away = EngineClient("http://127.0.0.1:9", served_name=MODEL, read_timeout_s=1)
        bench.ready = [replace(bench.ready[0], client=away)]
        await bench.check.look()
        await away.aclose()

    asyncio.run(use())
    found = bench.check.finding("tiny", "int8")
    assert found is not None
    assert found.outcome is Outcome.UNREAD
    missing = Bench(artifact)
    missing.prepared = Prepared(tmp_path, missing.prepared.manifest)
    assert missing.look(sound) is Outcome.UNREAD
    (tmp_path / FILE_NAME).write_text("{")
    assert missing.look(sound) is Outcome.UNREAD


def test_what_was_shown_outlives_readings_that_fail(
    artifact: Path, damaged: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine under load that reads no text is as damaged as before, and is not asked at once."""
    bench = Bench(artifact, every_s=1e-9)
    assert bench.look(damaged) is Outcome.CHANGED
    asked: list[float] = []

    async def fail(self: EmbeddedScorer, *arguments: Any) -> None:
        asked.append(1.0)
        raise EngineTimeout("the engine took too long")

    monkeypatch.setattr(EmbeddedScorer, "score", fail)

    async def use() -> None:
        for _ in range(3):
            await bench.check.look()

    asyncio.run(use())
    found = bench.check.finding("tiny", "int8")
    assert found is not None
    assert found.outcome is Outcome.CHANGED
    assert len(asked) == 1
    assert bench.told == [Outcome.CHANGED] * 4
    assert [each["outcome"] for each in bench.events] == ["changed"]


def test_readings_that_fail_again_and_again_become_rare(
    artifact: Path, sound: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails each time is not tried every minute for ever."""
    bench = Bench(artifact)
    bench.look(sound)
    now, asked = [0.0], []
    # The check's own clock alone: the engine serves in another thread of this process.
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr("gateway.shadow.fixed_texts.time", clock)

    async def fail(self: EmbeddedScorer, *arguments: Any) -> None:
        asked.append(now[0])
        raise KeyError("a defect")

    monkeypatch.setattr(EmbeddedScorer, "score", fail)
    bench.ready = [replace(bench.ready[0], client=EngineClient(sound.url, served_name=MODEL,
                                                             read_timeout_s=1))]  # fmt: skip

    async def use() -> None:
        for second in range(0, 15_000, 20):
            now[0] = float(second)
            await bench.check.look()

    asyncio.run(use())
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert pauses[:6] == [60, 120, 240, 480, 960, 1920]
    assert set(pauses[6:]) == {3600}
    found = bench.check.finding("tiny", "int8")
    assert found is not None
    assert (found.outcome, found.reason) == (Outcome.UNREAD, "a defect: KeyError")
    assert [each["outcome"] for each in bench.events] == ["ok", "unread"]


def test_an_engine_that_went_is_told_before_others_are_read(
    artifact: Path, damaged: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading may take minutes, in which nothing must stand of an engine that is gone."""
    bench = Bench(artifact)
    bench.look(damaged)
    told_before: list[Outcome | None] = []

    async def note(self: EmbeddedScorer, *arguments: Any) -> None:
        told_before.extend(bench.told)
        raise EngineDown("gone")

    monkeypatch.setattr(EmbeddedScorer, "score", note)
    bench.look(damaged)
    assert told_before == [Outcome.CHANGED, None]


def test_a_reading_that_cannot_be_kept_is_told(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a store that is mounted read-only: engines are held against it all the same."""
    before = read_manifest(artifact)
    assert before is not None
    assert before.fixed_texts is not None

    def fail(*arguments: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("gateway.engine.fixed_texts.write_manifest", fail)
    found = add_reading(artifact, 1, ignore)
    assert found.fixed_texts is not None
    assert found.fixed_texts.reading == before.fixed_texts.reading
    assert read_manifest(artifact) == before


def test_a_reading_holds_wherever_the_same_program_computes_alike(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another processor it is not read again, but kept as true there too."""
    place = Path(shutil.copytree(artifact, tmp_path / "copy"))
    manifest = read_manifest(place)
    assert manifest is not None
    assert manifest.fixed_texts is not None
    before = manifest.fixed_texts.reading
    assert before is not None
    monkeypatch.setattr("gateway.engine.fixed_texts.instruction_sets", lambda: "z80")
    monkeypatch.setattr("gateway.engine.fixed_texts.read", None)
    after = add_reading(place, 1, ignore).fixed_texts
    assert after is not None
    assert after.reading == before.model_copy(update={"processors": (*before.processors, "z80")})
    assert read_manifest(place) == manifest.model_copy(update={"fixed_texts": after})


def test_no_number_is_no_reading(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that held one could not be read any more."""
    place = Path(shutil.copytree(artifact, tmp_path / "copy"))
    before = read_manifest(place)
    monkeypatch.setattr("gateway.engine.fixed_texts.program", lambda: "torch 9")
    monkeypatch.setattr("gateway.engine.fixed_texts.read", lambda runner, text: [math.inf])
    with pytest.raises(ArtifactError, match="is no number here: build it again"):
        add_reading(place, 1, ignore)
    assert read_manifest(place) == before


def test_a_cache_of_eight_bits_is_read_as_it_is_served(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    """What the cache rounds is part of what is usual, and damage is seen through it."""
    recipe = tmp_path / "kv8.yaml"
    recipe.write_text(RECIPE)
    place = build(tiny_llama_dir, tmp_path / "kv8", str(recipe))
    with serve(place) as engine:
        assert Bench(place).look(engine) is Outcome.OK
    write_damaged(place, TENTH, tmp_path / "broken")
    with serve(tmp_path / "broken") as engine:
        assert Bench(place).look(engine) is Outcome.CHANGED


@pytest.mark.real_model
def test_two_percent_in_one_layer_of_the_real_model_are_seen(tmp_path: Path) -> None:
    """By the engine's own process, at its load; the artifact as it was built passes."""
    stored = prepare("smollm2", "int8", None, ignore, is_measured=True).directory
    add_reading(stored, 1, ignore)
    found = asyncio.run(check_at_load(stored, threads=1))
    assert found.outcome is Outcome.OK
    assert found.distances[ALL] == pytest.approx(found.usual[ALL], rel=0.03)
    write_damaged(stored, DAMAGES["scale 2 %"], tmp_path / "damaged")
    found = asyncio.run(check_at_load(tmp_path / "damaged", threads=1))
    assert found.outcome is Outcome.CHANGED
    assert found.distances[ALL] > 1.2 * found.limits[ALL]
    assert {"code", "german"} <= set(found.changed)
