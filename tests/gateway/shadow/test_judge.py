"""The judge: scored requests become verdicts, events, gauges and lines of the ledger."""

import asyncio
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from compression.fidelity_record import SliceFidelity
from gateway.errors import SettingsError
from gateway.registry import Metrics, render
from gateway.shadow.divergence import Divergence
from gateway.shadow.judge import Judge
from gateway.shadow.ledger import Ledger
from gateway.shadow.ledger_file import Window
from gateway.shadow.monitor_state import identified
from gateway.shadow.rules import Rules, ledger_path, make_rules
from gateway.shadow.scored import ScoredRequest
from gateway.shadow.slices import ALL, places_of
from gateway.shadow.subject import Subject
from gateway.shadow.tolerance import Source
from gateway.shadow.verdict import State
from gateway.shadow_settings import Estimator, LedgerSettings, ShadowSettings

SUBJECT = Subject("recipe", "source", None)
NAMES = [ALL, "domain:code"]


def rules(**verdict: Any) -> Rules:
    """Return rules with these settings of verdicts."""
    return make_rules(ShadowSettings.model_validate({"verdict": verdict}))


def record(
    kl: float, *, variant: str = "int4", recipe: str = "recipe", estimator: Estimator = "topk"
) -> ScoredRequest:
    """Return a request of four tokens."""
    found = Divergence((kl,) * 4, (True,) * 4, (1.0,) * 4, (0.0,) * 4)
    return ScoredRequest(
        request_id="r",
        model="tiny",
        variant=variant,
        recipe_digest=recipe,
        reference="full",
        slices=places_of(NAMES, 4),
        num_prompt_tokens=3,
        divergence=found,
        estimator=estimator,
        time=time.time(),
    )


@dataclass
class Bench:
    """A judge and all that it tells; its clock is set by hand."""

    rules: Rules
    rate: float = 1.0
    ledger: Ledger | None = None
    subject: Subject | None = SUBJECT
    reference: str = "full"
    now: float = field(default_factory=time.time)
    events: list[dict[str, Any]] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.judge = Judge(
            self.rules,
            rate_of=lambda alias: self.rate,
            reference_of=lambda alias: self.reference,
            look=lambda alias, variant: self.subject,
            metrics=self.metrics,
            publish=lambda kind, fields: self.events.append({"kind": kind, **fields}),
            ledger=self.ledger,
            clock=lambda: self.now,
        )

    def score(self, kl: float, count: int, **options: Any) -> None:
        """Let the judge take so many requests."""
        for _ in range(count):
            self.judge.take(record(kl, **options))
        self.judge.look()

    def state(self, name: str = ALL) -> State:
        """Return a slice's verdict."""
        return self.judge.verdicts("tiny", "int4")[name].state

    def gauge(self, name: str, **labels: str) -> list[float]:
        """Return the values of a gauge."""
        text = render(self.metrics.registry, "")[0].decode()
        return [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"narrowgate_{name}" and labels.items() <= sample.labels.items()
        ]


def test_from_learning_to_ok_to_drift() -> None:
    """Each change is one event with its evidence, a count, and a value of the gauge."""
    bench = Bench(rules(tolerance={ALL: 0.02}))
    bench.score(0.001, 1)
    assert bench.state() is State.LEARNING
    assert bench.gauge("drift_state", slice=ALL) == [0]
    bench.score(0.001, 300)
    assert bench.state() is State.OK
    bench.score(0.2, 60)
    assert bench.state() is State.DRIFT
    told = [(each["from"], each["to"]) for each in bench.events if each["slice"] == ALL]
    assert told == [(State.LEARNING, State.OK), (State.OK, State.DRIFT)]
    assert bench.events[-1]["evidence"]["tolerance"] == 0.02
    assert {each["kind"] for each in bench.events} == {"verdict"}
    labels = {"model": "tiny", "variant": "int4", "slice": ALL}
    assert bench.gauge("drift_state", **labels) == [2]
    assert bench.gauge("drift_tolerance_nats", **labels) == [0.02]
    assert bench.gauge("drift_mean_lower_nats", **labels) < bench.gauge(
        "drift_mean_upper_nats", **labels
    )
    assert bench.gauge("drift_e_value_log10", **labels)[0] > 6
    assert bench.gauge("verdict_changes_total", **labels, state="drift") == [1]
    # Slices that nobody asked for have no series.
    assert len(bench.gauge("drift_state")) == len([*NAMES, "position:0-63"])
    summary = bench.judge.summary("tiny", "int4")
    assert summary is not None
    assert summary.state is State.DRIFT


def test_the_full_model_is_a_floor_and_never_judged() -> None:
    """What is scored as ``full`` gives figures, no verdict."""
    bench = Bench(rules())
    bench.score(0.004, 2, variant="full")
    bench.score(0.001, 1, variant="full")
    bench.judge.served("tiny", "full")
    floor = bench.judge.floor("tiny")
    assert floor is not None
    assert (floor.num_requests, floor.largest) == (3, 0.004)
    assert floor.mean == pytest.approx(0.003)
    assert bench.judge.summary("tiny", "full") is None
    assert bench.judge.floor("other") is None


def test_tolerance_of_the_manifest() -> None:
    """What was measured when the variant was made says what is borne."""
    interval = (0.04, 0.06)
    measured = SliceFidelity(
        name="code",
        kld_mean=0.05,
        kld_mean_ci95=interval,
        kld_p99=0.1,
        top1=0.9,
        top1_ci95=interval,
        tokens=10,
    )
    bench = Bench(rules(), subject=replace(SUBJECT, fidelity=(measured,)))
    bench.score(0.01, 1)
    verdict = bench.judge.verdicts("tiny", "int4")["domain:code"]
    assert verdict.tolerance == pytest.approx(0.06)
    assert verdict.tolerance_source is Source.MANIFEST


def test_another_digest_begins_anew() -> None:
    """Evidence for one artifact says nothing of another, and late scores count for none."""
    bench = Bench(rules(tolerance={ALL: 0.02}))
    bench.score(0.2, 100)
    assert bench.state() is State.DRIFT
    bench.subject = replace(SUBJECT, recipe_digest="another")
    bench.score(0.2, 3)
    assert bench.state() is State.LEARNING
    assert bench.judge.num_scored("tiny", "int4") == 0
    bench.score(0.2, 3, recipe="another")
    assert bench.judge.num_scored("tiny", "int4") == 3


def test_verdicts_are_bound_to_the_weights_of_the_reference() -> None:
    """Nothing is lost when they become known; other ones under the same name begin anew."""
    bench = Bench(rules(tolerance={ALL: 0.02}))
    bench.judge.served("tiny", "int4")  # the reference has not run yet
    bench.score(0.2, 50)
    bench.reference = identified("full", "abc")
    bench.score(0.2, 50)
    assert bench.state() is State.DRIFT
    assert bench.judge.num_scored("tiny", "int4") == 100
    bench.reference = identified("full", "def")
    bench.score(0.2, 1)
    assert bench.state() is State.LEARNING
    assert bench.judge.num_scored("tiny", "int4") == 1


@pytest.mark.parametrize("estimator", ["topk", "exact"])
@pytest.mark.parametrize(("weights", "state"), [("abc", State.DRIFT), ("def", State.LEARNING)])
def test_kept_verdicts_are_bound_to_the_weights_of_the_reference(
    tmp_path: Path, weights: str, state: State, estimator: Estimator
) -> None:
    """After a restart they hold until the reference has run, and then if it is the same one."""
    subject = replace(SUBJECT, estimator=estimator)

    async def use() -> None:
        path = tmp_path / "ledger"
        first = Bench(rules(tolerance={ALL: 0.02}), ledger=Ledger(path), subject=subject)
        first.reference = identified("full", "abc")
        first.judge._kept = {}
        first.score(0.2, 100, estimator=estimator)
        await first.judge.close()
        second = Bench(rules(tolerance={ALL: 0.02}), ledger=Ledger(path), subject=subject)
        running = asyncio.create_task(second.judge.run())
        while not second.judge.verdicts("tiny", "int4"):
            second.judge.served("tiny", "int4")
            await asyncio.sleep(0.001)
        assert second.state() is State.DRIFT
        second.reference = identified("full", weights)
        second.judge.look()
        assert second.state() is state
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await second.judge.close()

    asyncio.run(use())


def test_silence_is_stale_from_the_first_request_on() -> None:
    """Served requests alone make a verdict stale; at a small rate it takes more of them."""
    bench = Bench(rules(stale_after_s=60))
    for _ in range(100):
        bench.judge.served("tiny", "int4")
    bench.judge.look()
    assert bench.state() is State.LEARNING
    bench.now += 61
    bench.judge.look()
    assert bench.state() is State.STALE
    assert bench.gauge("drift_state", slice=ALL) == [3]
    assert bench.events[-1]["to"] == "stale"
    rare = Bench(rules(stale_after_s=60), rate=0.01)
    for _ in range(999):
        rare.judge.served("tiny", "int4")
    rare.now += 61
    rare.judge.look()
    assert rare.state() is State.LEARNING
    rare.judge.served("tiny", "int4")
    rare.judge.look()
    assert rare.state() is State.STALE


def test_a_slice_is_stale_alone() -> None:
    """Drawn and not scored any more, it is stale, while others and the whole model stay."""
    bench = Bench(rules(tolerance={ALL: 0.02}, stale_after_s=60))
    bench.score(0.001, 300)
    assert {bench.state(), bench.state("domain:code")} == {State.OK}
    names = [ALL, "domain:code", "position:0-63"]
    for _ in range(100):
        assert bench.state("domain:code") is State.OK
        bench.judge.served("tiny", "int4")
        bench.judge.drawn("tiny", "int4", names)
        bench.now += 1
        bench.judge.take(replace(record(0.001), slices=places_of([ALL, "domain:prose"], 4)))
        bench.judge.look()
    assert bench.state("domain:code") is State.STALE
    assert {bench.state(), bench.state("position:0-63")} == {State.OK}
    told = [(each["slice"], each["to"]) for each in bench.events]
    assert told[-1] == ("domain:code", State.STALE)
    assert bench.gauge("drift_state", slice="domain:code") == [3]
    bench.now += 1e6
    bench.score(0.001, 1)
    assert bench.state("domain:code") is State.OK


def test_a_slice_that_nobody_asks_on_is_not_stale() -> None:
    """Its verdict stays, however long and however much others are asked for."""
    bench = Bench(rules(tolerance={ALL: 0.02}, stale_after_s=60))
    bench.score(0.001, 300)
    for _ in range(200):
        bench.judge.served("tiny", "int4")
        bench.judge.drawn("tiny", "int4", [ALL, "domain:prose"])
        bench.now += 10
        bench.judge.take(replace(record(0.001), slices=places_of([ALL, "domain:prose"], 4)))
        bench.judge.look()
    assert {bench.state(), bench.state("domain:code")} == {State.OK}


def test_a_drawn_request_stands_for_those_that_were_not() -> None:
    """At a rate of 1 % ten drawn ones without a score make a slice stale, as 1,000 served do."""
    bench = Bench(rules(stale_after_s=60), rate=0.01)
    bench.judge.served("tiny", "int4")
    for _ in range(9):
        bench.judge.drawn("tiny", "int4", ["domain:code"])
    bench.now += 61
    bench.judge.look()
    assert bench.state("domain:code") is State.LEARNING
    bench.judge.drawn("tiny", "int4", ["domain:code"])
    bench.judge.look()
    assert (bench.state("domain:code"), bench.state()) == (State.STALE, State.LEARNING)
    assert bench.gauge("drift_state", slice="domain:code") == [3]


def test_a_new_rate_is_a_new_patience() -> None:
    """What silence means follows the share that is scored now, not the one at the first request."""
    bench = Bench(rules(stale_after_s=60), rate=0.01)
    for _ in range(500):
        bench.judge.served("tiny", "int4")
    bench.now += 61
    bench.judge.look()
    assert bench.state() is State.LEARNING
    bench.rate = 1.0
    bench.judge.look()
    assert bench.state() is State.STALE
    bench.rate = 0.01
    bench.judge.look()
    assert bench.state() is State.LEARNING


def test_nothing_is_watched_that_is_not_scored() -> None:
    """A model whose rate is 0, or a variant that is not loaded, has no verdict."""
    bench = Bench(rules(), rate=0)
    bench.judge.served("tiny", "int4")
    assert bench.judge.summary("tiny", "int4") is None
    gone = Bench(rules(), subject=None)
    gone.score(0.1, 1)
    gone.judge.try_again("tiny", "int4")
    assert gone.judge.verdicts("tiny", "int4") == {}


def test_verdicts_survive_a_restart(tmp_path: Path) -> None:
    """What was known is in the ledger when the process ends, beside each request's numbers."""

    async def use() -> None:
        first = Bench(rules(tolerance={ALL: 0.02}), ledger=Ledger(tmp_path / "ledger"))
        running = asyncio.create_task(first.judge.run())
        await asyncio.sleep(0)
        while not first.judge.verdicts("tiny", "int4"):
            first.score(0.2, 1)
            await asyncio.sleep(0.001)
        first.score(0.2, 100)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await first.judge.close()

        ledger = Ledger(tmp_path / "ledger")
        (found,) = [
            each for each in await ledger.aggregates(Window()) if each.slice == "domain:code"
        ]
        assert found.num_requests > 100
        assert found.mean_divergence == pytest.approx(0.2)
        second = Bench(rules(tolerance={ALL: 0.02}), ledger=ledger)
        running = asyncio.create_task(second.judge.run())
        while not second.judge.verdicts("tiny", "int4"):
            second.judge.served("tiny", "int4")
            await asyncio.sleep(0.001)
        assert second.state() is State.DRIFT
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await second.judge.close()

    asyncio.run(use())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"verdict": {"tolerance": {"domain:cod": 1}}}, "'shadow.verdict.tolerance' names"),
        ({"ladder": {"pinned": ["x"]}}, "'shadow.ladder.pinned' names the slice 'x': use one of"),
        ({"slices": {"a b": ["x"]}}, "'a b' is no name"),
    ],
)
def test_slices_that_are_none(fields: dict[str, Any], words: str) -> None:
    """A misspelt slice is one clear line when the service starts."""
    with pytest.raises(SettingsError, match=words):
        make_rules(ShadowSettings.model_validate(fields))


def test_on_and_off_as_yaml_reads_them() -> None:
    """Bare words of a settings file mean what they say."""
    for said, mode in ((True, "on"), (False, "off"), ("dry-run", "dry-run")):
        found = ShadowSettings.model_validate({"ladder": {"mode": said}})
        assert found.ladder.mode == mode


def test_where_the_ledger_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the cache unless a file is named; ``off`` keeps nothing."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path))
    assert ledger_path(LedgerSettings(), 8000) == tmp_path / "ledger-8000.sqlite"
    assert ledger_path(LedgerSettings(path=tmp_path / "own"), 8000) == tmp_path / "own"
    assert ledger_path(LedgerSettings.model_validate({"path": False}), 8000) is None
