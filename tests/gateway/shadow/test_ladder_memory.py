"""What a ladder remembers: in the ledger before it is done, and taken up after a restart."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import StartupError
from gateway.pool.state import State
from gateway.settings import load_settings
from gateway.shadow.ladder_rules import Act, Canary, Decision, LadderRules, Step
from gateway.shadow.ladder_standing import MAX_STEPS, Standing
from gateway.shadow.ladder_state import from_state, plan_of, to_state
from gateway.shadow.ledger import Ledger
from gateway.shadow.ledger_file import LedgerFile
from gateway.specs import make_specs
from tests.gateway.shadow.test_ladder_keeper import EVERYWHERE, Bench
from tests.gateway.shadow.test_slice_routes import CODE, ONLY_CODE

LADDER = ("int4", "int8", "full")
STEPS = (Step(5.0, Act.STEP_UP, "int4", "int8", (), "int4: all drifts"),)
STANDING = Standing("int4", "int8", STEPS, Canary("int4", 9.0, 7), {CODE: "full"})


def kept(state: Any, **other: Any) -> Standing | None:
    """Return what is made of a state, at 100 s."""
    known: dict[str, Any] = {"plan": "p", "ladder": LADDER, "home": "int4", "now": 100.0}
    return from_state(json.loads(json.dumps(state)), **known | other)


def test_a_standing_survives_as_json() -> None:
    """Steps with their reasons, canary with its count, routes: all is as it was."""
    assert kept(to_state(STANDING, "p")) == STANDING


@pytest.mark.parametrize(
    "other", [{"plan": "q"}, {"home": "int8"}, {"ladder": ("int4", "int8")}, {"ladder": ()}]
)
def test_what_is_about_something_else_is_worth_nothing(other: dict[str, Any]) -> None:
    """Another plan, another rung in the settings, or a rung that is gone: it begins anew."""
    assert kept(to_state(STANDING, "p"), **other) is None


@pytest.mark.parametrize("damage", [{"version": 2}, {"active": None}, {"steps": [{}]}, {"x": 1}])
def test_what_cannot_be_read_is_worth_nothing(
    damage: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A state of another form costs a line in the log."""
    assert kept(to_state(STANDING, "p") | damage) is None
    assert "the ladder begins anew: " in caplog.text


def test_a_clock_that_was_set_back_holds_up_nothing() -> None:
    """No moment of what was kept lies in the future."""
    found = kept(to_state(STANDING, "p"), now=4.0)
    assert found is not None
    assert found.canary is not None
    assert (found.steps[0].time, found.canary.since) == (4.0, 4.0)


def plan(*ladder: Any, dry_run: bool = False, **model: Any) -> str:
    """Return the plan of a ladder."""
    fields = {"models": {"tiny": {"model": "fake", "ladder": ladder} | model}}
    (spec,) = make_specs(load_settings(None, fields, {}))
    return plan_of(spec, LadderRules(dry_run=dry_run))


def test_a_plan_is_what_the_rungs_are_made_of() -> None:
    """Order, recipe, model, engine and mode count; how an engine is run does not."""
    same = plan("int4", "int8")
    assert plan("int4", "int8", threads=2, keep_alive_s=5) == same
    others = [
        plan("int8", "int4"),
        plan("int4", {"recipe": "int4", "name": "int8"}),
        plan("int4", "int8", dry_run=True),
        plan("int4", "int8", model="other"),
        plan("int4", "int8", engine="vllm"),
    ]
    assert len({same, *others}) == 6


def test_where_each_decision_leads() -> None:
    """A step ends canary and routes; the rest changes its own part; steps are not endless."""
    up = STANDING.after(Decision(Act.STEP_UP, "why", to="full"), 50.0)
    assert (up.active, up.canary, up.routes, up.home) == ("full", None, {}, "int4")
    assert up.steps[-1] == Step(50.0, Act.STEP_UP, "int8", "full", (), "why")
    down = STANDING.after(Decision(Act.PROMOTE, "why", to="int4"), 50.0)
    assert (down.active, down.canary, down.routes) == ("int4", None, {})
    rolled = STANDING.after(Decision(Act.ROLL_BACK, "why", to="int4"), 50.0)
    assert (rolled.active, rolled.canary, rolled.routes) == ("int8", None, {CODE: "full"})
    back = STANDING.after(Decision(Act.GIVE_BACK_SLICES, "", to="int8", slices=(CODE,)), 50.0)
    assert (back.routes, back.steps[-1].left) == ({}, "full")
    for _ in range(MAX_STEPS):
        back = back.after(Decision(Act.ROLL_BACK, "", to="int4"), 60.0)
    assert (len(back.steps), back.steps[0].time) == (MAX_STEPS, 60.0)
    with pytest.raises(ValueError, match="stay leads nowhere"):
        back.after(Decision(Act.STAY, ""), 60.0)


class Home:
    """Keepers one after the other over the ledger of one place, as over restarts."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ledger.sqlite"

    @asynccontextmanager
    async def process(self, *, is_killed: bool = False, **options: Any) -> AsyncIterator[Bench]:
        """Let a keeper be used that has taken up what was kept; one is killed, one is closed."""
        ledger = Ledger(self.path)
        given: dict[str, Any] = {"cool_down_s": 60.0, "canary_share": 0.3, "num_scored": 0}
        given |= {"tolerance": EVERYWHERE} | options
        bench = Bench(given.pop("ladder", list(LADDER)), ledger=ledger, **given)
        try:
            bench.judge._kept = await ledger.states()
            await bench.keeper.restore()
            yield bench
            if not is_killed:
                await bench.keeper.close()
                await bench.judge.keep()
        finally:
            await bench.pool.close(0)
            await ledger.close()

    def keep(self, standing: Standing) -> None:
        """Let the ledger have this."""
        file = LedgerFile(self.path)
        file.keep_ladder("tiny", to_state(standing, "plan"))
        file.close()

    def standing(self) -> dict[str, Any]:
        """Return what the ledger has."""
        with sqlite3.connect(self.path) as connection:
            ((state,),) = connection.execute("SELECT state FROM ladders").fetchall()
        connection.close()
        found: dict[str, Any] = json.loads(state)
        return found


def test_a_step_survives_a_restart(tmp_path: Path) -> None:
    """The rung that was stepped to serves again and says why; its cool-down goes on."""

    async def use() -> None:
        home = Home(tmp_path)
        async with home.process(is_killed=True) as bench:
            bench.score("int4", 0.3, 50)
            assert await bench.look() is Act.STEP_UP
        async with home.process() as bench:
            assert bench.pool.shape("tiny").active == "int8"
            (event,) = bench.events
            assert (event["act"], event["from"], event["to"]) == ("restore", "int4", "int8")
            assert event["reason"].startswith("int8 served before the restart: int4: all drifts")
            status = bench.keeper.status()
            assert (status["home"], [each["act"] for each in status["steps"]]) == (
                "int4",
                ["step_up"],
            )
            await bench.pool.ensure_ready()
            assert bench.pool.find("tiny@int4").state is State.STOPPED
            bench.score("int8", 0.3, 50)
            assert (await bench.keeper.look()).reason.endswith("left to wait")
            bench.now += 60
            assert await bench.look() is Act.STEP_UP
        async with home.process() as bench:
            assert bench.pool.shape("tiny").active == "full"

    asyncio.run(use())


def test_the_steps_of_another_plan_are_forgotten_for_good(tmp_path: Path) -> None:
    """With another recipe the settings' rung serves, also when the old recipe comes back."""

    async def use() -> None:
        home = Home(tmp_path)
        async with home.process() as bench:
            bench.score("int4", 0.3, 50)
            await bench.look()
        for plan_now in ("another", "plan"):
            async with home.process(is_killed=True, plan=plan_now) as bench:
                assert bench.pool.shape("tiny").active == "int4"
                assert bench.keeper.status()["steps"] == []
                assert bench.events == []

    asyncio.run(use())


def test_an_operators_word_outlives_the_keepers(tmp_path: Path) -> None:
    """Who activates the settings' rung by hand finds it serving after a restart."""

    async def use() -> None:
        home = Home(tmp_path)
        async with home.process(is_killed=True) as bench:
            bench.score("int4", 0.3, 50)
            await bench.look()
            bench.score("int4", 0.001, 400)
            await bench.pool.control.activate("tiny@int4")
            assert await bench.look() is Act.STAY
        async with home.process() as bench:
            assert bench.pool.shape("tiny").active == "int4"
            assert [each["act"] for each in bench.keeper.status()["steps"]] == ["step_up"]

    asyncio.run(use())


def test_a_kill_in_the_middle_of_a_step(tmp_path: Path) -> None:
    """What was about to be done is in the ledger before it is done, and the verdict with it."""

    async def use() -> None:
        home = Home(tmp_path)
        async with home.process(is_killed=True) as bench:
            bench.score("int4", 0.3, 50)
            loading = asyncio.Event()

            async def never(name: str, *, expected: str, waits: bool) -> None:
                loading.set()
                await asyncio.Event().wait()

            bench.pool.control.activate = never  # type: ignore[method-assign, assignment]
            look = asyncio.create_task(bench.look())
            await loading.wait()
            look.cancel()
            await asyncio.wait({look})
            await bench.keeper.close()  # as SIGTERM does; it must not take the plan back
        assert home.standing()["active"] == "int8"
        async with home.process() as bench:
            assert bench.pool.shape("tiny").active == "int8"
            bench.score("int4", 0.001, 1)
            verdict = bench.judge.verdicts("tiny", "int4")["all"]
            assert verdict.state == "drift"

    asyncio.run(use())


def test_a_step_that_fails_is_taken_back(tmp_path: Path) -> None:
    """A rung that could not be loaded does not serve after the restart."""

    async def use() -> None:
        home = Home(tmp_path)
        refused = ["int4", {"recipe": "int8", "model": "refuse"}]
        async with home.process(is_killed=True, ladder=refused) as bench:
            bench.score("int4", 0.3, 50)
            await bench.look()
            assert bench.events[-1]["result"] == "failed"
        assert (home.standing()["active"], home.standing()["steps"]) == ("int4", [])

    asyncio.run(use())


def test_a_restored_rung_that_cannot_be_loaded(tmp_path: Path) -> None:
    """The settings' rung serves instead of nothing; where it is that one, the start fails."""

    async def use() -> None:
        home = Home(tmp_path)
        refused = ["int4", {"recipe": "int8", "model": "refuse"}]
        home.keep(Standing("int4", "int8", STEPS))
        async with home.process(ladder=refused) as bench:
            assert bench.pool.shape("tiny").active == "int8"
            await bench.pool.ensure_ready()
            assert bench.pool.find("tiny").spec.variant == "int4"
            await bench.look()
            assert bench.keeper.status()["home"] == "int4"
        async with home.process(ladder=refused[1:]) as bench:
            with pytest.raises(StartupError):
                await bench.pool.ensure_ready()

    asyncio.run(use())


def test_routes_are_taken_up(tmp_path: Path) -> None:
    """Once the active rung is ready the slice goes where it went, and comes back as before."""

    async def use() -> None:
        home = Home(tmp_path)
        rules: dict[str, Any] = {"route_slices": True, "pinned": frozenset({CODE})}
        rules |= {"tolerance": ONLY_CODE}
        async with home.process(is_killed=True, **rules) as bench:
            bench.score("int4", 0.3, 50)
            assert await bench.look() is Act.ROUTE_SLICES
        for _ in range(2):  # killed before it was done, too
            async with home.process(is_killed=True, **rules) as bench:
                assert "is not ready yet" in (await bench.keeper.look()).reason
                assert bench.first_choices(CODE) == {"int4": 100}
        async with home.process(**rules) as bench:
            await bench.pool.ensure_ready()
            await bench.look()
            assert set(bench.first_choices(CODE)) == {"int4", "int8"}
            assert [(each["act"], each["to"]) for each in bench.events] == [("restore", "int8")]
            bench.score("int4", 0.001, 400)
            bench.now += 60
            assert await bench.look() is Act.GIVE_BACK_SLICES
        async with home.process(**rules) as bench:
            await bench.pool.ensure_ready()
            await bench.look()
            assert bench.events == []

    asyncio.run(use())


def test_a_canary_goes_on(tmp_path: Path) -> None:
    """Its share, its count and the tries so far are there again; only new scores promote it."""

    async def use() -> None:
        home = Home(tmp_path)
        rules: dict[str, Any] = {
            "return_after_s": 5.0,
            "return_after_requests": 10,
            "canary_requests": 100,
        }
        async with home.process(is_killed=True, **rules) as bench:
            bench.score("int4", 0.3, 50)
            await bench.look()
            bench.score("int8", 0.001, 300)
            bench.now += 300
            assert await bench.look() is Act.START_CANARY
            bench.score("int4", 0.001, 70)
            bench.now += 40
            assert await bench.look() is Act.STAY
        async with home.process(**rules) as bench:
            await bench.pool.ensure_ready()
            bench.now += 400
            assert await bench.look() is Act.STAY
            assert 15 <= bench.first_choices()["int4"] <= 45
            canary = bench.keeper.status()["canary"]
            assert canary["num_scored"] == 70
            assert [each["act"] for each in bench.keeper.status()["steps"]] == [
                "step_up",
                "start_canary",
            ]
            bench.score("int4", 0.001, 300)
            bench.score("int8", 0.001, 300)
            assert await bench.look() is Act.PROMOTE

    asyncio.run(use())


def test_what_has_no_room_after_a_restart_is_refused(tmp_path: Path) -> None:
    """A canary that no longer fits is told of and dropped."""

    async def use() -> None:
        home = Home(tmp_path)
        ladder = [{"recipe": "int4", "memory": "600"}, "int8"]
        home.keep(Standing("int4", "int8", STEPS, Canary("int4", 9.0, 3)))
        async with home.process(ladder=ladder, budget=650) as bench:
            await bench.pool.ensure_ready()
            await bench.look()
            assert [each["result"] for each in bench.events] == ["done", "refused"]
            assert "int4 needs 600 bytes of memory, and 550 are free" in bench.events[1]["reason"]
            assert bench.keeper.status()["canary"] is None
        assert home.standing()["canary"] is None

    asyncio.run(use())


def test_ladders_that_nobody_keeps_are_forgotten(tmp_path: Path) -> None:
    """A model whose ladder is switched off does not find old steps when it is on again."""

    async def use() -> None:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        for model in ("a", "b'\"", "c"):
            await ledger.keep_ladder(model, {"version": 1})
        await ledger.forget_ladders(but=["b'\""])
        assert await ledger.ladders() == {"b'\"": {"version": 1}}
        await ledger.close()

    asyncio.run(use())


def test_a_ledger_from_before_ladders_were_kept(tmp_path: Path) -> None:
    """A file without their table gets it, and loses nothing."""
    path = tmp_path / "ledger.sqlite"
    file = LedgerFile(path)
    file.keep_states({"tiny@int4": {"known": 1}})
    file.close()
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE ladders")
    connection.close()
    file = LedgerFile(path)
    file.keep_ladder("tiny", {"known": 2})
    assert (file.states(), file.ladders()) == (
        {"tiny@int4": {"known": 1}},
        {"tiny": {"known": 2}},
    )
    file.close()
