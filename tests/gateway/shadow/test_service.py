"""From the end of a reply to the queue: what is fetched, and what is dropped on the way."""

import asyncio
from typing import Any

import httpx
import orjson
import pytest

from gateway.app import Application, create_service
from gateway.errors import EngineDown
from gateway.model_settings import VariantSettings
from gateway.protocol import EngineInfo
from gateway.registry import Metrics, render
from gateway.settings import load_settings
from gateway.shadow.fixed_texts import FixedTextsCheck
from gateway.shadow.probe import Probe
from gateway.shadow.references import References
from gateway.shadow.shadow import Shadow
from gateway.shadow_settings import ShadowSettings
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient
from tests.gateway.fake_launch import FakeLaunch
from tests.gateway.shadow.test_references import MODEL, Launch
from tests.gateway.vllm_frames import CHAT_PROMPT, chat_stream

Told = tuple[str, str, set[str]]

INFO = EngineInfo(served_model_name="x", max_capture=8)


def columns(num_prompt: int = 2, num_answer: int = 2) -> bytes:
    """Return a capture."""
    fields = {
        "prompt_token_ids": [1] * num_prompt,
        "token_ids": [2] * num_answer,
        "logprobs": [-1.0] * num_answer,
        "top_token_ids": [[2]] * num_answer,
        "top_logprobs": [[-1.0]] * num_answer,
    }
    return orjson.dumps(fields)


class Engine(EngineClient):
    """Tells what it is told to, or fails."""

    def __init__(self, told: bytes | Exception | None) -> None:
        super().__init__("http://127.0.0.1:1", served_name="x", read_timeout_s=1)
        self.told = told

    async def take_capture(self, capture_id: str) -> bytes | None:
        """Return the capture."""
        if isinstance(self.told, Exception):
            raise self.told
        return self.told


def make_shadow(told: list[Told] | None = None, **settings: Any) -> Shadow:
    """Return a shadow of one model, whose worker is not started; it tells slices to ``told``."""
    metrics, found = Metrics(), ShadowSettings.model_validate(settings)
    references = References(
        {"tiny": MODEL},
        found.reference,
        Launch(),
        metrics=metrics,
        is_wanted=lambda alias: True,
    )
    return Shadow(
        found,
        {"tiny": 1.0},
        metrics=metrics,
        references=references,
        probe=Probe(metrics, list),
        fixed_texts=FixedTextsCheck(
            metrics,
            list,
            lambda alias, variant: None,
            publish=lambda kind, fields: None,
            tell=lambda alias, variant, found: None,
            every_s=0,
        ),
        num_busy=lambda: 0,
        note_slices=lambda model, variant, names: (
            None if told is None else told.append((model, variant, set(names)))
        ),
    )


async def answer(
    shadow: Shadow, told: bytes | Exception | None, *, alias: str = "tiny", info: Any = INFO
) -> None:
    """Let one drawn request pass through."""
    candidate = shadow.draw("id", "tiny", {"messages": []}, {})
    assert candidate is not None
    spec = VariantSpec(alias, "int4", VariantSettings(model="fake"))
    candidate.ask({}, spec, Engine(told), info)
    candidate.see(b'{"choices": [{"message": {"content": "secret"}}]}')
    candidate.finish(is_complete=True)
    await shadow.settle()


def dropped(shadow: Shadow) -> dict[str, int]:
    """Return the drops of the model."""
    found: dict[str, int] = shadow.status()["models"]["tiny"]["dropped"]
    return found


@pytest.mark.parametrize(
    ("told", "options", "reason"),
    [
        (None, {}, "no_capture"),
        (columns(), {"info": None}, "no_capture"),
        (columns(), {"info": EngineInfo(served_model_name="x")}, "no_capture"),
        (columns(), {"alias": "other"}, "unsupported"),
        (b"{}", {}, "error"),
        (EngineDown("gone"), {}, "error"),
        (ZeroDivisionError("defect"), {}, "error"),
        (columns(num_answer=0), {}, "empty"),
        (columns(num_prompt=0), {}, "empty"),
        (columns(num_prompt=99), {}, "too_long"),
    ],
)
def test_what_is_not_queued(
    told: bytes | Exception | None, options: dict[str, Any], reason: str
) -> None:
    """Each has its reason, and nothing is left under way."""

    async def use() -> None:
        shadow = make_shadow(max_tokens=100)
        await answer(shadow, told, **options)
        assert dropped(shadow) == {reason: 1}
        assert shadow.status()["models"]["tiny"]["in_flight"] == 0

    asyncio.run(use())


@pytest.mark.parametrize(
    ("captured", "options", "slices"),
    [
        (columns(), {}, {"length:0-127", "position:0-63", "sampling:sampled"}),
        (columns(num_prompt=128), {}, {"length:128-511", "position:0-63", "sampling:sampled"}),
        (columns(num_answer=0), {}, {"length:0-127", "sampling:sampled"}),
        (None, {}, {"sampling:sampled"}),
        (columns(), {"info": None}, {"sampling:sampled"}),
        (EngineDown("gone"), {}, {"sampling:sampled"}),
    ],
)
def test_slices_are_told_of_scored_and_dropped(
    captured: bytes | Exception | None, options: dict[str, Any], slices: set[str]
) -> None:
    """Once for each drawn request that was answered, as far as they are known; queued or not."""

    async def use() -> None:
        told: list[Told] = []
        shadow = make_shadow(told, max_tokens=100)
        await answer(shadow, captured, **options)
        await shadow.close()
        ((model, variant, names),) = told
        assert (model, variant) == ("tiny", "int4")
        kinds = ("length", "position", "sampling")
        assert {each for each in names if each.startswith(kinds)} == slices

    asyncio.run(use())


def test_a_reply_of_vllm_without_end_is_too_long() -> None:
    """It is let go while it is answered, dropped for that reason, and counts in its slices."""

    async def use() -> None:
        told: list[Told] = []
        shadow = make_shadow(told, max_tokens=len(CHAT_PROMPT) + 1)
        fields = {"messages": [{"role": "user", "content": "hi"}]}
        candidate = shadow.draw("id", "tiny", fields, {})
        assert candidate is not None
        spec = VariantSpec("tiny", "int4", VariantSettings(model="fake", engine="vllm"))
        candidate.ask(fields, spec, Engine(None), None)
        for event in chat_stream(captured=True):
            candidate.see(event)
        candidate.finish(is_complete=True)
        await shadow.settle()
        assert dropped(shadow) == {"too_long": 1}
        ((*_, names),) = told
        assert "length:0-127" in names

    asyncio.run(use())


def test_nobody_looks_at_private_requests() -> None:
    """Not even at their slices; nor does one count that no engine was asked for."""

    async def use() -> None:
        told: list[Told] = []
        shadow = make_shadow(told)
        assert shadow.draw("id", "tiny", {"messages": [], "store": False}, {}) is None
        assert shadow.draw("id", "tiny", {"prompt": "a", "echo": True}, {}) is None
        await shadow.close()
        assert told == []

    asyncio.run(use())


def test_budget_queue_and_end() -> None:
    """A minute's tokens, the queue's places, and what waits at the end."""

    async def use() -> None:
        small = make_shadow(max_tokens=10, tokens_per_second=0.2, queue_size=2)
        shadow = make_shadow(max_tokens=10, tokens_per_second=0.2, queue_size=4)
        for _ in range(4):
            await answer(small, columns())
            await answer(shadow, columns())
        assert dropped(small) == {"queue_full": 2}
        assert dropped(shadow) == {"budget": 1}
        assert shadow.status()["queue_length"] == 3
        late = shadow.draw("id", "tiny", {}, {})
        assert late is not None
        late.ask({}, VariantSpec("tiny", "int4", MODEL), Engine(columns()), INFO)
        late.finish(is_complete=True)  # its task has not begun when all is given up
        await shadow.close()
        assert shadow.draw("id", "tiny", {}, {}) is None
        assert dropped(shadow) == {"budget": 1, "stopped": 4}
        assert shadow.status()["models"]["tiny"]["in_flight"] == 0

    asyncio.run(use())


def test_no_text_waits_in_the_queue() -> None:
    """What was asked and answered is forgotten once its slices are known."""

    async def use() -> None:
        shadow = make_shadow()
        candidate = shadow.draw(
            "id", "tiny", {"messages": [{"role": "user", "content": "secret"}]}, {}
        )
        assert candidate is not None
        spec = VariantSpec("tiny", "int4", VariantSettings(model="fake"))
        candidate.ask({}, spec, Engine(columns()), INFO)
        candidate.see(b'{"choices": [{"message": {"content": "secret"}}]}')
        candidate.finish(is_complete=True)
        await shadow.settle()
        assert shadow.status()["queue_length"] == 1
        assert (candidate.fields, candidate.reply.read()) == ({}, None)

    asyncio.run(use())


def test_references_take_from_the_memory_budget() -> None:
    """What is set aside for references is not there for engines."""
    fields = {
        "models": {"tiny": {"model": "fake"}},
        "memory_budget": "1000",
        "shadow": {"rate": 1, "reference": {"memory": "300"}, "ledger": {"path": "off"}},
    }
    service = create_service(load_settings(None, fields, {}), launch=FakeLaunch())
    assert b"narrowgate_memory_budget_bytes 700.0" in render(service.metrics.registry, "")[0]


def test_a_model_without_a_reference_cannot_be_scored() -> None:
    """Changing its rate is refused with the setting that is missing; 0 is always possible."""
    fields = {"models": {"far": {"model": "fake", "urls": ["http://127.0.0.1:1"]}}}
    service = create_service(load_settings(None, fields, {}), launch=FakeLaunch())

    async def ask(rate: float) -> httpx.Response:
        transport = httpx.ASGITransport(Application(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/admin/shadow", json={"model": "far", "rate": rate})

    refused = asyncio.run(ask(0.5))
    assert refused.status_code == 400
    assert "'shadow.reference.urls', as {far: http://10.0.0.5:8000}" in refused.text
    assert asyncio.run(ask(0)).status_code == 200
