"""The keeper of a ladder, with a real pool and no engine: what it does when a step fails."""

import asyncio
from typing import Any

from gateway.metrics import Metrics
from gateway.pool.pool import Pool
from gateway.pool.state import Patience
from gateway.settings import load_settings
from gateway.shadow.judge import Judge
from gateway.shadow.ladder_keeper import LadderKeeper
from gateway.shadow.ladder_rules import Act, LadderRules
from gateway.shadow.rules import make_rules
from gateway.shadow.subject import Subject
from gateway.specs import make_specs
from tests.gateway.fake_launch import FakeLaunch
from tests.gateway.shadow.test_judge import record

LADDER = ["int4", {"recipe": "int8", "model": "refuse", "memory": "600"}]


class Bench:
    """A keeper whose int4 drifts; its clock is set by hand."""

    def __init__(self, **rules: Any) -> None:
        fields = {
            "models": {"tiny": {"model": "fake", "ladder": LADDER}},
            "shadow": {"rate": 1, "verdict": {"tolerance": {"all": 0.02}}},
        }
        settings = load_settings(None, fields, {})
        self.now = 1000.0
        self.events: list[dict[str, Any]] = []
        metrics = Metrics()
        self.pool = Pool(
            make_specs(settings),
            FakeLaunch(),
            metrics=metrics,
            on_progress=lambda progress: None,
            patience=Patience(),
            memory_budget=rules.pop("budget", None),
        )
        self.judge = Judge(
            make_rules(settings.shadow),
            rate_of=lambda alias: 1,
            reference_of=lambda alias: "full",
            look=lambda alias, variant: Subject("recipe", "source", None),
            metrics=metrics,
            publish=lambda kind, fields: None,
        )
        self.keeper = LadderKeeper(
            "tiny",
            LadderRules(**rules),
            pool=self.pool,
            judge=self.judge,
            metrics=metrics,
            publish=lambda kind, fields: self.events.append({"kind": kind, **fields}),
            clock=lambda: self.now,
        )
        for _ in range(50):
            self.judge.take(record(0.3))
        self.judge.look()


def test_a_rung_that_cannot_be_loaded() -> None:
    """The old one stays, the event says so, and the next attempt waits for the cool-down."""

    async def use() -> None:
        bench = Bench(cool_down_s=60)
        for _ in range(3):
            assert (await bench.keeper.look()).act is Act.STEP_UP
            bench.now += 1
        (event,) = bench.events
        assert (event["kind"], event["act"], event["result"]) == (
            "ladder_step",
            "step_up",
            "failed",
        )
        assert bench.pool.shape("tiny").active == "int4"
        assert bench.keeper.status()["steps"] == []
        bench.now += 60
        await bench.keeper.look()
        assert [each["result"] for each in bench.events] == ["failed", "failed"]

    asyncio.run(use())


def test_a_rung_without_room_is_not_tried() -> None:
    """What the memory budget cannot hold beside the active one is said, and not attempted."""

    async def use() -> None:
        bench = Bench(budget=500)
        decision = await bench.keeper.look()
        assert decision.act is Act.STAY
        assert decision.reason.endswith("int8 needs 600 bytes of memory, and 500 are free")
        assert bench.events == []
        assert bench.keeper.status()["reason"] == decision.reason

    asyncio.run(use())


def test_a_dry_run_tells_once() -> None:
    """The same decision with other numbers is no news."""

    async def use() -> None:
        bench = Bench(dry_run=True)
        for _ in range(3):
            decision = await bench.keeper.look()
            bench.judge.take(record(0.3))
            bench.judge.look()
        assert decision.name == "would_step_up"
        assert [each["act"] for each in bench.events] == ["would_step_up"]

    asyncio.run(use())
