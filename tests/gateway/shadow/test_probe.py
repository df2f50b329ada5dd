"""The probe of an engine by its first tokens."""

import asyncio
import math
from typing import Any

import pytest

from gateway.errors import EngineDown
from gateway.model_settings import VariantSettings
from gateway.pool.lease import ReadyEngine
from gateway.registry import Metrics
from gateway.shadow.probe import Probe, largest_change
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient

SPEC = VariantSpec("tiny", "int4", VariantSettings(model="fake"))


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"a": -1.0, "b": -2.0}, {"a": -1.0, "b": -2.0}, 0.0),
        ({"a": -1.0, "b": -2.0}, {"b": -2.5, "a": -1.1}, 0.5),
        ({"a": -1.0, "b": -2.0}, {"a": -1.0, "c": -1.5}, 0.5),  # b left, c came
        ({"a": -1.0}, {"c": -4.0}, 3.0),
        ({"a": -1.0}, {}, math.inf),
        ({"a": -1.0}, {"a": math.nan}, math.inf),
    ],
)
def test_the_largest_change(
    before: dict[str, float], now: dict[str, float], expected: float
) -> None:
    """Tokens that left or came count with what they changed at least."""
    assert largest_change(before, now) == pytest.approx(expected)


class Engine(EngineClient):
    """Says the same until it is told something else."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1", served_name="x", read_timeout_s=1)
        self.logprob: float | None = -1.0

    async def complete(self, fields: Any, request_id: str) -> Any:
        """Return one likely token."""
        if self.logprob is None:
            raise EngineDown("gone")
        return {"choices": [{"logprobs": {"top_logprobs": [{"a": self.logprob}]}}]}


def sample(metrics: Metrics, name: str) -> float:
    """Return the sum of a metric's samples."""
    families = metrics.registry.collect()
    found = [each for family in families for each in family.samples if each.name == name]
    return sum(each.value for each in found)


def test_an_engine_is_held_to_what_it_said_at_first() -> None:
    """Changes show and go on showing; a restarted engine begins anew; failures change nothing."""
    metrics, engines = Metrics(), [ReadyEngine(SPEC, "tiny@int4", Engine())]
    probe = Probe(metrics, lambda: engines)
    change = "narrowgate_probe_change_nats"

    async def use() -> None:
        engine = engines[0].client
        assert isinstance(engine, Engine)
        await probe.meet()
        engine.logprob = -1.5  # the first words count, and not those of the first round
        await probe.meet()
        for _ in range(2):
            await probe.run()
            assert sample(metrics, change) == 0.5
        engine.logprob = None
        await probe.run()
        assert sample(metrics, change) == 0.5
        silent = engines[0] = ReadyEngine(SPEC, "tiny@int4", Engine())
        assert isinstance(silent.client, Engine)
        silent.client.logprob = None
        for _ in range(3):  # what cannot tell is not asked all the time
            await probe.meet()
        engines[0] = ReadyEngine(SPEC, "tiny@int4", Engine())
        await probe.run()
        assert sample(metrics, change) == 0

    asyncio.run(use())
    assert sample(metrics, "narrowgate_probes_total") == 6
