"""The pulse of a vLLM: steps that move, or a token that comes."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.backends.vllm_pulse import IDLE_PROBE_EVERY_S, VllmPulse
from gateway.errors import EngineDown, EngineRefused
from gateway.upstream import EngineClient

# As vLLM 0.32 writes them, one line an engine of a server.
METRICS = (
    "# TYPE vllm:iteration_tokens_total histogram\n"
    'vllm:iteration_tokens_total_bucket{{engine="0",le="1.0",model_name="x"}} 7.0\n'
    'vllm:iteration_tokens_total_count{{engine="0",model_name="x"}} {0}\n'
    'vllm:iteration_tokens_total_count{{engine="1",model_name="x"}} 1e+06\n'
)


class Core(EngineClient):
    """A server whose core may hang."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1", served_name="x", read_timeout_s=1)
        self.is_up = True
        self.steps = 0
        self.makes_tokens = True
        self.fails = False
        self.refuses = False
        self.num_asked = 0

    async def is_healthy(self, timeout_s: float = 0) -> bool:
        """Return what ``/health`` says, hung or not."""
        return self.is_up

    async def read_metrics(self, timeout_s: float = 0) -> bytes:
        """Return the count of steps among other lines."""
        return METRICS.format(float(self.steps)).encode()

    async def complete(self, fields: Mapping[str, Any], request_id: str) -> Any:
        """Return a reply, for ever late if the core hangs."""
        self.num_asked += 1
        if self.fails:
            raise EngineDown("gone")
        if self.refuses:
            raise EngineRefused("it embeds", status=400, type="x", code="x", param=None)
        if not self.makes_tokens:
            await asyncio.Event().wait()
        return {}


@pytest.fixture
def core() -> Core:
    """Return a core that works."""
    return Core()


def beats(pulse: VllmPulse, *, is_busy: bool) -> bool:
    """Look once."""
    return asyncio.run(pulse.beats(0.05, is_busy=is_busy))


def test_steps_that_move_are_enough(core: Core) -> None:
    """A busy core that gets on is asked for nothing."""
    pulse = VllmPulse(core)
    for steps in (1, 5, 6):
        core.steps = steps
        assert beats(pulse, is_busy=True)
    assert core.num_asked == 0


def test_a_slow_reader_is_no_hang(core: Core) -> None:
    """Where nothing moves because a client does not read, a token still comes."""
    pulse = VllmPulse(core)
    assert beats(pulse, is_busy=True)
    assert beats(pulse, is_busy=True)
    assert core.num_asked == 1


@pytest.mark.parametrize("way", ["hangs", "fails"])
def test_a_core_without_steps_and_tokens_is_dead(core: Core, way: str) -> None:
    """Green health does not help it; when it moves again it lives."""
    pulse = VllmPulse(core)
    assert beats(pulse, is_busy=True)
    core.makes_tokens, core.fails = way != "hangs", way == "fails"
    assert not beats(pulse, is_busy=True)
    core.steps += 1
    assert beats(pulse, is_busy=True)


def test_an_idle_core_is_asked_now_and_then(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without work there is no step to see, so it makes a token every half minute."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pulse = VllmPulse(core)
    assert beats(pulse, is_busy=False)
    assert core.num_asked == 0
    now += IDLE_PROBE_EVERY_S
    assert beats(pulse, is_busy=False)
    assert core.num_asked == 1
    assert beats(pulse, is_busy=False)
    assert core.num_asked == 1
    now += IDLE_PROBE_EVERY_S
    core.fails = True
    assert not beats(pulse, is_busy=False)


def test_a_server_that_is_down_is_asked_no_more(core: Core) -> None:
    """Its health is looked at first."""
    core.is_up = False
    assert not beats(VllmPulse(core), is_busy=True)
    assert core.num_asked == 0


def test_a_refusal_is_no_death(core: Core) -> None:
    """An engine that makes no tokens for us is asked once, and trusted by its health."""
    core.refuses = True
    pulse = VllmPulse(core)
    for _ in range(3):
        assert beats(pulse, is_busy=True)
    assert core.num_asked == 1
    core.is_up = False
    assert not beats(pulse, is_busy=True)


def test_metrics_that_are_not_vllms(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a count of steps only tokens count."""
    monkeypatch.setattr(Core, "read_metrics", lambda self, timeout_s: asyncio.sleep(0, b""))
    pulse = VllmPulse(core)
    assert beats(pulse, is_busy=True)
    assert core.num_asked == 1
