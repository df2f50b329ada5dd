"""The pure decisions: who makes room, which replica, and when one is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demand import PREFIX_BYTES, Demand, demand_of
from gateway.pool.policy import Resident, evictions, idle_too_long
from gateway.pool.routing import AFFINITY_SLACK_TOKENS, ReplicaLoad, choose, work_of


def resident(
    name: str,
    num_bytes: int,
    *,
    used: float = 0.0,
    busy: bool = False,
    pinned: bool = False,
    keep_alive_s: float | None = None,
) -> Resident:
    """Return a resident of few words."""
    return Resident(name, num_bytes, busy, pinned, used, keep_alive_s)


def test_nothing_is_evicted_without_need() -> None:
    """What fits costs nobody anything."""
    assert evictions([resident("a", 60)], need=40, budget=100) == []


def test_the_longest_unused_goes_first() -> None:
    """As many go as are needed, oldest first."""
    all_of_them = [resident("new", 40, used=9), resident("old", 40, used=1)]
    assert evictions(all_of_them, need=50, budget=100) == ["old"]
    assert evictions(all_of_them, need=90, budget=100) == ["old", "new"]


def test_nobody_goes_for_nothing() -> None:
    """One whose room turns out not to be needed, because a later one is large, stays."""
    all_of_them = [resident("old small", 10, used=1), resident("large", 80, used=2)]
    assert evictions(all_of_them, need=70, budget=100) == ["large"]


def test_use_and_pins_protect() -> None:
    """Who is in use or pinned is never named, whatever is asked for."""
    all_of_them = [resident("busy", 50, busy=True), resident("pinned", 50, pinned=True)]
    assert evictions(all_of_them, need=1, budget=100) is None
    assert evictions([*all_of_them, resident("idle", 1)], need=1, budget=101) == ["idle"]


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.floats(0, 9), st.booleans(), st.booleans()), max_size=6
    ),
    st.integers(0, 120),
)
def test_evictions_hold_the_budget(drawn: list[tuple[int, float, bool, bool]], need: int) -> None:
    """Any answer makes room, names only who may go, and none of them in vain."""
    all_of_them = [
        resident(str(index), size, used=used, busy=busy, pinned=pinned)
        for index, (size, used, busy, pinned) in enumerate(drawn)
    ]
    sizes = {each.name: each.num_bytes for each in all_of_them}
    free = {each.name for each in all_of_them if not (each.is_in_use or each.is_pinned)}
    named = evictions(all_of_them, need=need, budget=100)
    if named is None:
        kept = sum(size for name, size in sizes.items() if name not in free)
        assert kept + need > 100
        return
    left = sum(size for name, size in sizes.items() if name not in named)
    assert set(named) <= free
    assert left + need <= 100
    assert all(left + sizes[name] + need > 100 for name in named)


def test_keep_alive() -> None:
    """Only who is idle for longer than its own time, and may go, is named."""
    all_of_them = [
        resident("over", 1, used=0, keep_alive_s=10),
        resident("not yet", 1, used=5, keep_alive_s=10),
        resident("no time", 1, used=0),
        resident("busy", 1, used=0, busy=True, keep_alive_s=1),
        resident("pinned", 1, used=0, pinned=True, keep_alive_s=1),
    ]
    assert idle_too_long(all_of_them, now=10.0) == ["over"]


def test_least_outstanding_tokens() -> None:
    """Without a known beginning the replica with the least to do is chosen."""
    loads = [ReplicaLoad(0, 300), ReplicaLoad(1, 20), ReplicaLoad(2, 20)]
    assert choose(loads, Demand(10)) == 1


def test_prefix_affinity() -> None:
    """Equal beginnings meet on one replica, different ones spread, and a busy one is passed by."""
    idle = [ReplicaLoad(index, 0) for index in range(4)]
    prefixes = [f"system prompt {number}".encode() for number in range(400)]
    chosen = {prefix: choose(idle, Demand(prefix=prefix)) for prefix in prefixes}
    assert all(choose(idle, Demand(9, prefix=prefix)) == chosen[prefix] for prefix in prefixes)
    shares = [list(chosen.values()).count(index) for index in range(4)]
    assert min(shares) > 60
    prefix = prefixes[0]
    busy = [
        ReplicaLoad(index, AFFINITY_SLACK_TOKENS + 1 if index == chosen[prefix] else 0)
        for index in range(4)
    ]
    assert choose(busy, Demand(10**6, prefix=prefix)) != chosen[prefix]


def test_a_prefix_is_worth_no_more_than_the_prompt() -> None:
    """Who knows the beginning is preferred while that spares more than it costs."""
    prefix = b"a short question"
    preferred = choose([ReplicaLoad(0, 0), ReplicaLoad(1, 0)], Demand(40, prefix=prefix))
    for excess, is_kept in ((40, True), (41, False)):
        loads = [ReplicaLoad(index, excess * (index == preferred)) for index in range(2)]
        assert (choose(loads, Demand(40, prefix=prefix)) == preferred) is is_kept


def test_streams_are_shared_out_evenly() -> None:
    """Short questions that have nothing in common do not fall as their hashes fall."""
    work = [0, 0]
    for number in range(32):
        demand = Demand(10, answer_tokens=64, prefix=f"question {number}".encode())
        work[choose([ReplicaLoad(index, work[index]) for index in range(2)], demand)] += 74
    assert work == [16 * 74, 16 * 74]


def test_a_lost_replica_moves_only_its_own_prefixes() -> None:
    """Who was on another replica stays there."""
    all_of_them = [ReplicaLoad(index, 0) for index in range(4)]
    for number in range(100):
        demand = Demand(prefix=str(number).encode())
        before = choose(all_of_them, demand)
        after = choose([each for each in all_of_them if each.index != 2], demand)
        assert before in (2, after)


_PARTS = [{"type": "text", "text": "äöü"}, {"type": "image_url", "image_url": {"url": "x" * 999}}]


@pytest.mark.parametrize(
    ("fields", "prompt", "answer"),
    [
        ({"prompt": "x" * 400, "max_tokens": 10}, 100, 10),
        ({"prompt": "", "max_tokens": 10, "n": 3}, 0, 30),
        ({"prompt": [1, 2, 3]}, 3, 0),
        ({"prompt": ["abcd", "abcde"], "max_tokens": 5}, 3, 10),
        ({"prompt": [[1, 2], [3]], "max_tokens": 5}, 3, 10),
        ({"messages": [], "max_completion_tokens": 7, "max_tokens": 99}, 0, 7),
        ({"messages": [{"role": "user", "content": "12345678"}]}, 2, 0),
        ({"messages": [{"role": "user", "content": _PARTS}]}, 2, 0),
        ({"input": "12345678"}, 2, 0),
        ({"input": ["abcd", 7, 8, None, ["efgh", [9]], {"text": "ijkl"}]}, 6, 0),
        ({"prompt": "", "max_tokens": "many", "n": None, "messages": 3.5}, 0, 0),
        ({"prompt": "", "max_tokens": True}, 0, 0),
    ],
)
def test_demand(fields: dict[str, object], prompt: int, answer: int) -> None:
    """A quarter of the prompt's bytes, exact token ids, the limits of all answers."""
    demand = demand_of(fields)
    assert (demand.prompt_tokens, demand.answer_tokens) == (prompt, answer)
    assert work_of(demand) == prompt + (answer or 256)


def test_beginnings() -> None:
    """Requests whose first bytes are alike begin alike, and others do not."""
    system = {"role": "system", "content": "y" * PREFIX_BYTES}
    alike = [demand_of({"messages": [system, {"role": "user", "content": c}]}) for c in "ab"]
    assert alike[0].prefix == alike[1].prefix != b""
    assert demand_of({"prompt": "a"}).prefix != demand_of({"prompt": "b"}).prefix
    assert demand_of({"prompt": [1, 23]}).prefix != demand_of({"prompt": [12, 3]}).prefix
