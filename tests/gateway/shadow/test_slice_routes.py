"""Routed slices over a real pool: who goes, who stays, and how a route ends."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pool.routes import Routes
from gateway.pool.state import State
from gateway.shadow.ladder_rules import Act
from gateway.shadow.slices import slices_of
from tests.gateway.harness import until
from tests.gateway.shadow.test_ladder_keeper import Bench

CODE, CHAT = "domain:code", "domain:prose"
ONLY_CODE = {"all": 1.0, CODE: 0.02}
"""Of what the bench scores at 0.3 nats, the code alone is too far off."""
LADDER = ["int4", "int8", "full"]


class Rung:
    """A variant as routes see it."""

    state = State.READY


def rungs(count: int) -> Any:
    """Return variants of a ladder, all ready."""
    return [Rung() for _ in range(count)]


def test_most_requests_of_a_slice_go_and_the_same_stay_for_all() -> None:
    """A share of the slice's requests goes, no other does, and who stays stays for two slices."""
    ladder = rungs(2)
    routes, safe = Routes(ladder), ladder[1]
    routes.lead(["a", "b"], safe, 0.8)
    ids = [f"id-{number}" for number in range(1000)]
    gone = [each for each in ids if routes.takes(each, ["x", "a"]) is safe]
    assert 740 <= len(gone) <= 860
    assert gone == [each for each in ids if routes.takes(each, ["b", "a"])]
    assert not any(routes.takes(each, ["x"]) or routes.takes(each, ()) for each in ids)


def test_the_safest_of_several_rungs_answers() -> None:
    """A request in two routed slices goes to the safer rung, whichever slice comes first."""
    _, middle, safe = ladder = rungs(3)
    routes = Routes(ladder)
    routes.lead(["a"], safe, 1.0)
    routes.lead(["b"], middle, 1.0)
    for slices in (["a", "b"], ["b", "a"]):
        assert routes.takes("id", slices) is safe
    safe.state = State.RESTARTING
    assert routes.takes("id", ["a", "b"]) is middle
    routes.end(["b"])
    assert routes.takes("id", ["a", "b"]) is None


def run(use: Callable[[Bench], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Let a bench be used whose int4 drifts on code alone."""

    async def work() -> None:
        rules: dict[str, Any] = {
            "cool_down_s": 60,
            "canary_share": 0.3,
            "pinned": frozenset({CODE}),
        }
        given_rules = rules | {"route_slices": True, "tolerance": ONLY_CODE} | options
        bench = Bench(given_rules.pop("ladder", LADDER), **given_rules)
        try:
            await use(bench)
        finally:
            await bench.pool.close(0)

    asyncio.run(work())


def test_a_slice_goes_and_comes_back() -> None:
    """Code goes to int8 but for a share, all else stays; it returns when the share is ok again."""

    async def use(bench: Bench) -> None:
        assert await bench.look() is Act.ROUTE_SLICES
        assert 50 <= bench.first_choices("all", CODE)["int8"] <= 90
        assert bench.first_choices("all", CHAT) == {"int4": 100}
        assert bench.keeper.status()["routes"] == {CODE: "int8"}
        for name, choices in (("tiny", {("int8", "int4"), ("int4",)}), ("tiny@int4", {("int4",)})):
            found = [bench.pool.targets(name, f"id-{number}", [CODE]) for number in range(100)]
            assert {tuple(each.spec.variant for each in order) for order in found} == choices
        bench.score("int4", 0.001, 400)
        assert await bench.look() is Act.STAY  # not before the cool-down
        bench.now += 60
        assert await bench.look() is Act.GIVE_BACK_SLICES
        assert bench.first_choices(CODE) == {"int4": 100}
        await until(lambda: bench.pool.find("tiny@int8").state is State.STOPPED)
        told = [(each["act"], each["from"], each["to"], each["slices"]) for each in bench.events]
        assert told == [
            ("route_slices", "int4", "int8", [CODE]),
            ("give_back_slices", "int8", "int4", [CODE]),
        ]
        evidence = [[each["slice"] for each in event["evidence"]] for event in bench.events]
        assert evidence == [[CODE], [CODE]]

    run(use)


def test_a_refuge_that_drifts_too_is_left_for_the_next() -> None:
    """The slice moves on to the full model, and the rung that it left is stopped."""

    async def use(bench: Bench) -> None:
        assert await bench.look() is Act.ROUTE_SLICES
        bench.score("int8", 0.3, 50)
        assert await bench.look() is Act.ROUTE_SLICES
        assert set(bench.first_choices(CODE)) == {"int4", "full"}
        assert (bench.events[1]["from"], bench.events[1]["to"]) == ("int8", "full")
        await until(lambda: bench.pool.find("tiny@int8").state is State.STOPPED)

    run(use)


def test_a_route_keeps_its_rung_in_memory() -> None:
    """Whoever wants the memory of a routed rung does not get it; afterwards anybody does."""

    async def use(bench: Bench) -> None:
        await bench.pool.control.load("tiny@int4")
        await bench.look()
        assert bench.pool.headroom("tiny").free == 50
        await bench.pool.control.end_routes("tiny", [CODE])
        await until(lambda: bench.pool.headroom("tiny").free == 150)

    run(use, budget=250)


def test_a_route_without_room_is_refused() -> None:
    """The event says what is missing, once; nothing is loaded, and all stays where it was."""

    async def use(bench: Bench) -> None:
        for _ in range(3):
            assert await bench.look() is Act.STAY
        (event,) = bench.events
        assert (event["act"], event["result"], event["to"]) == ("route_slices", "refused", "int8")
        assert event["reason"].endswith("int8 needs 600 bytes of memory, and 500 are free")
        assert bench.first_choices(CODE) == {"int4": 100}

    rung = {"recipe": "int8", "memory": "600"}
    run(use, ladder=["int4", rung], budget=500)


def test_a_rung_that_is_lost_is_fetched_again() -> None:
    """Stopped by hand, the slice stays with the active rung for a cool-down, then goes again."""

    async def use(bench: Bench) -> None:
        await bench.look()
        await bench.pool.control.unload("tiny@int8")
        assert bench.first_choices(CODE) == {"int4": 100}
        await bench.look()
        assert [each["result"] for each in bench.events] == ["done", "lost"]
        await bench.pool.control.load("tiny@int8")  # by somebody else: no old route may wake up
        assert bench.first_choices(CODE) == {"int4": 100}
        bench.now += 60
        await bench.look()
        assert set(bench.first_choices(CODE)) == {"int4", "int8"}

    run(use)


def test_a_swap_by_hand_ends_routes() -> None:
    """The rung that an operator activates gets everything, and metrics say so."""

    def routed(bench: Bench) -> list[dict[str, str]]:
        (family,) = bench.metrics.gauges["slice_routed"].collect()
        return [sample.labels for sample in family.samples]

    async def use(bench: Bench) -> None:
        assert routed(bench) == []
        await bench.look()
        assert routed(bench) == [{"model": "tiny", "variant": "int8", "slice": CODE}]
        await bench.pool.control.activate("tiny@full")
        assert routed(bench) == []
        assert bench.first_choices(CODE) == {"full": 100}
        assert bench.pool.find("tiny@int8").state is State.STOPPED
        await bench.look()
        status = bench.keeper.status()
        assert (status["home"], status["routes"]) == ("full", {})

    run(use)


def test_a_route_that_comes_too_late_is_none() -> None:
    """While its rung was loaded, an operator activated a safer one: nothing leads back down."""

    async def use(bench: Bench) -> None:
        await bench.pool.control.activate("tiny@full")
        await bench.pool.control.route("tiny@int8", [CODE], 1.0)
        assert bench.first_choices(CODE) == {"full": 100}
        assert not bench.pool.has_routes("tiny")

    run(use)


def test_a_dry_run_routes_nothing() -> None:
    """What would be routed is told once."""

    async def use(bench: Bench) -> None:
        for _ in range(2):
            await bench.look()
        assert [each["act"] for each in bench.events] == ["would_route_slices"]
        assert bench.first_choices(CODE) == {"int4": 100}

    run(use, dry_run=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(JSON, JSON, st.booleans())
def test_no_body_is_too_odd_to_tell_its_slices(
    messages: object, content: object, is_completion: bool
) -> None:
    """Keys that a route does not check never fail a request."""
    turns = [{"role": "user", "content": content}, {"role": "user"}, messages]
    fields = {"messages": messages if is_completion else turns, "metadata": content}
    fields |= {"prompt": "x"} if is_completion else {}
    names = slices_of(json.loads(json.dumps(fields)), num_prompt_tokens=1)
    assert names[:2] == ("all", "length:0-127")


@pytest.mark.parametrize(("given_name", "is_so"), [("tiny", True), ("tiny@int4", False)])
def test_only_plain_names_are_routed(given_name: str, is_so: bool) -> None:
    """A pinned name has no routes, so nothing is classified for it."""

    async def use(bench: Bench) -> None:
        assert not bench.pool.has_routes(given_name)
        await bench.look()
        assert bench.pool.has_routes(given_name) is is_so

    run(use)
