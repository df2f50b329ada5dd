"""The keeper of a ladder over a real pool: steps, canaries, and what happens when one fails."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from gateway.pool.pool import Pool
from gateway.pool.state import Patience
from gateway.pool.state import State as PoolState
from gateway.registry import Metrics
from gateway.settings import load_settings
from gateway.shadow.judge import Judge
from gateway.shadow.ladder_keeper import LadderKeeper
from gateway.shadow.ladder_rules import Act, LadderRules
from gateway.shadow.ledger import Ledger
from gateway.shadow.rules import make_rules
from gateway.shadow.subject import Subject
from gateway.specs import make_specs
from tests.gateway.fake_launch import FakeLaunch
from tests.gateway.shadow.test_judge import record

EVERYWHERE = {"all": 0.02}
REFUSED = ["int4", {"recipe": "int8", "model": "refuse", "memory": "600"}]


class Bench:
    """A keeper whose int4 drifts; its clock is set by hand, and scores come by hand."""

    def __init__(
        self,
        ladder: list[Any] = REFUSED,
        *,
        tolerance: Mapping[str, float] = EVERYWHERE,
        ledger: Ledger | None = None,
        plan: str = "plan",
        num_scored: int = 50,
        **rules: Any,
    ) -> None:
        fields = {
            "models": {"tiny": {"model": "fake", "ladder": ladder}},
            "shadow": {"rate": 1, "verdict": {"tolerance": dict(tolerance)}},
        }
        settings = load_settings(None, fields, {})
        self.now = time.time()
        self.events: list[dict[str, Any]] = []
        self.metrics, self.launch = Metrics(), FakeLaunch()
        metrics = self.metrics
        self.pool = Pool(
            make_specs(settings),
            self.launch,
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
            ledger=ledger,
            clock=lambda: self.now,
        )
        self.keeper = LadderKeeper(
            "tiny",
            LadderRules(**rules),
            plan=plan,
            pool=self.pool,
            judge=self.judge,
            metrics=metrics,
            publish=lambda kind, fields: self.events.append({"kind": kind, **fields}),
            clock=lambda: self.now,
        )
        self.operator = self.keeper.operator
        self.score("int4", 0.3, num_scored)

    def score(self, variant: str, kl: float, count: int) -> None:
        """Let so many requests of a variant be scored."""
        for _ in range(count):
            self.judge.take(replace(record(kl, variant=variant), time=self.now))
        self.judge.look()

    async def look(self) -> Act:
        """Let the keeper look, a second later."""
        self.now += 1
        return (await self.keeper.look()).act

    def first_choices(self, *slices: str) -> dict[str, int]:
        """Return who would be asked first by a hundred requests in these slices."""
        found = [self.pool.targets("tiny", f"id-{number}", slices)[0] for number in range(100)]
        return dict(Counter(each.spec.variant for each in found))


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
        assert 50 < bench.keeper.status()["cool_down_left_s"] <= 60
        bench.now += 60
        assert bench.keeper.status()["cool_down_left_s"] == 0
        await bench.keeper.look()
        assert [each["result"] for each in bench.events] == ["failed", "failed"]

    asyncio.run(use())


def test_a_rung_that_cannot_be_loaded_blocks_no_safer_one() -> None:
    """The next look steps to the rung above it."""

    async def use() -> None:
        bench = Bench([*REFUSED, "full"], cool_down_s=60)
        assert await bench.look() is Act.STEP_UP
        assert await bench.look() is Act.STEP_UP
        told = [(each["to"], each["result"]) for each in bench.events]
        assert told == [("int8", "failed"), ("full", "done")]
        assert bench.first_choices() == {"full": 100}
        await bench.pool.close(0)

    asyncio.run(use())


def test_rungs_that_all_fail_are_tried_once_a_cool_down() -> None:
    """Each is tried again after its pause, from the next one up."""

    async def use() -> None:
        full = {"recipe": "full", "model": "refuse"}
        bench = Bench([*REFUSED, full], cool_down_s=60)
        for _ in range(70):
            await bench.look()
        assert [each["to"] for each in bench.events] == ["int8", "full"] * 2
        assert {each["result"] for each in bench.events} == {"failed"}
        assert bench.pool.shape("tiny").active == "int4"

    asyncio.run(use())


def test_a_step_is_told_while_the_old_rung_ends_its_requests() -> None:
    """An open stream holds neither the event nor the next step, and gets its end."""

    async def use() -> None:
        bench = Bench(["int4", "int8", "full"], cool_down_s=60)
        await bench.pool.control.activate("tiny@int4")
        async with bench.pool.lease("tiny"), asyncio.timeout(20):
            await bench.look()
            assert [each["result"] for each in bench.events] == ["done"]
            assert bench.first_choices() == {"int8": 100}
            bench.score("int8", 0.3, 50)
            bench.now += 60
            await bench.look()
            assert bench.first_choices() == {"full": 100}
            assert bench.pool.find("tiny@int4").state is PoolState.STOPPING
        await bench.pool.close(0)

    asyncio.run(use())


def test_a_rung_that_is_repaired_has_failed_no_longer() -> None:
    """Once an operator has loaded it, it is stepped to at the next look."""

    async def use() -> None:
        bench = Bench(["int4", "int8"], cool_down_s=60)
        await bench.pool.control.activate("tiny@int4")
        bench.launch.nll["int8"] = 9.0
        await bench.look()
        assert bench.events[-1]["result"] == "failed"
        bench.launch.nll["int8"] = 0.5
        await bench.look()
        assert len(bench.events) == 1
        await bench.pool.control.load("tiny@int8")
        await bench.look()
        assert bench.events[-1]["result"] == "done"
        assert bench.first_choices() == {"int8": 100}
        await bench.pool.close(0)

    asyncio.run(use())


def test_a_rung_without_room_is_not_tried() -> None:
    """What the memory budget cannot hold beside the active one is said once, and not attempted."""

    async def use() -> None:
        bench = Bench(budget=500)
        decision = await bench.keeper.look()
        assert decision.act is Act.STAY
        assert decision.reason.endswith("int8 needs 600 bytes of memory, and 500 are free")
        await bench.look()
        (event,) = bench.events
        assert (event["act"], event["to"], event["result"]) == ("step_up", "int8", "refused")
        assert event["reason"] == decision.reason
        assert bench.keeper.status()["reason"] == decision.reason
        assert bench.pool.snapshots()[1].state == "stopped"

    asyncio.run(use())


def test_a_dry_run_tells_once() -> None:
    """The same decision with other numbers is no news."""

    async def use() -> None:
        bench = Bench(dry_run=True)
        for _ in range(3):
            decision = await bench.keeper.look()
            bench.score("int4", 0.3, 1)
        assert decision.name == "would_step_up"
        assert [each["act"] for each in bench.events] == ["would_step_up"]

    asyncio.run(use())


def test_away_and_back_again() -> None:
    """A repaired rung takes its share as a canary, and serves again once it is proven."""

    async def use() -> None:
        rules: dict[str, Any] = {
            "return_after_requests": 10,
            "canary_share": 0.3,
            "canary_requests": 50,
        }
        bench = Bench(["int4", "int8"], return_after_s=600, cool_down_s=5, **rules)
        assert await bench.look() is Act.STEP_UP
        assert bench.first_choices() == {"int8": 100}
        assert await bench.look() is Act.STAY
        bench.score("int8", 0.001, 200)
        bench.now += 600
        assert await bench.look() is Act.START_CANARY
        shares = bench.first_choices()
        assert 15 <= shares["int4"] <= 45
        assert shares == bench.first_choices()
        assert await bench.look() is Act.STAY
        # What comes before the active rung's turn is not lost: the other one is the second choice.
        ids = [f"id-{number}" for number in range(100)]
        targets = [bench.pool.targets("tiny", each) for each in ids]
        assert {len(each) for each in targets if each[0].spec.variant == "int4"} == {2}
        assert [each.spec.variant for each in bench.pool.targets("tiny@int8", ids[0])] == ["int8"]
        bench.score("int4", 0.001, 200)
        assert await bench.look() is Act.PROMOTE
        assert bench.first_choices() == {"int4": 100}
        assert [each["act"] for each in bench.events] == ["step_up", "start_canary", "promote"]
        assert bench.keeper.status()["canary"] is None
        await bench.pool.close(0)

    asyncio.run(use())


def test_what_an_operator_activates_is_the_new_home() -> None:
    """Nothing smaller than the rung that was chosen by hand is ever tried."""

    async def use() -> None:
        bench = Bench(["int4", "int8"], return_after_s=1, return_after_requests=0)
        await bench.pool.control.activate("tiny@int8")
        bench.score("int8", 0.001, 200)
        bench.now += 100
        assert await bench.look() is Act.STAY
        assert bench.keeper.status()["home"] == "int8"
        await bench.pool.close(0)

    asyncio.run(use())


@pytest.mark.parametrize("act", [Act.STEP_UP, Act.PROMOTE])
def test_an_operators_choice_is_not_undone(act: Act) -> None:
    """A step that waits behind a swap by hand is dropped, and told as superseded."""

    async def use() -> None:
        rules: dict[str, Any] = {"return_after_requests": 10, "canary_requests": 50}
        bench = Bench(["int4", "int8", "full"], return_after_s=600, cool_down_s=5, **rules)
        pool, keeper = bench.pool, bench.keeper
        if act is Act.PROMOTE:
            await bench.look()
            bench.score("int8", 0.001, 200)
            bench.now += 600
            assert await bench.look() is Act.START_CANARY
            bench.score("int4", 0.001, 200)
        began = asyncio.create_task(pool.control.activate("tiny@full"))
        await asyncio.sleep(0)
        assert pool.shape("tiny").active != "full"
        assert await bench.look() is act
        await began
        assert pool.shape("tiny").active == "full"
        last = bench.events[-1]
        assert (last["act"], last["result"]) == (act, "superseded")
        after = Act.STAY if act is Act.STEP_UP else Act.ROLL_BACK  # the canary is not tried either
        assert await bench.look() is after
        assert (keeper.status()["home"], keeper.status()["cool_down_left_s"]) == ("full", 0)
        assert pool.shape("tiny").active == "full"
        await pool.close(0)

    asyncio.run(use())
