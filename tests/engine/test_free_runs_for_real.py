"""A free run on the real full model: what it writes is what it writes for anybody."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.launch import Launcher
from gateway.model_settings import ModelSettings
from gateway.registry import Metrics
from gateway.settings import load_settings
from gateway.shadow.answer import answer_of
from gateway.shadow.free_run import FreeRun, Result, ask_again, judge
from gateway.shadow.free_runner import FreeRunner
from gateway.shadow.free_runs import FreeRuns
from gateway.shadow.references import References
from gateway.shadow.yielding import Yielding
from gateway.shadow_settings import ShadowSettings
from tests.engine.fakes import MODEL, running_engine

pytestmark = pytest.mark.real_model

QUESTIONS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
    {
        "messages": [{"role": "user", "content": "Name a color and a number as JSON."}],
        "response_format": {"type": "json_object"},
        "max_tokens": 40,
    },
    {"prompt": "One, two, three,", "max_tokens": 12, "temperature": 0.9, "seed": 7},
]


def test_the_full_model_agrees_with_itself(demo_model_dir: Path) -> None:
    """Greedy, seeded and held to JSON: served by the full model, no pair of answers differs."""
    from gateway.engine.runner import load_runner
    from gateway.engine.tokenizer import load_tokenizer

    runner = load_runner(demo_model_dir, threads=1, max_model_len=512)
    with running_engine(runner, load_tokenizer(demo_model_dir)) as engine:
        told, ends = asyncio.run(compare(engine.url))
    assert ends == ["compared"] * len(QUESTIONS)
    assert told["pairs"] == len(QUESTIONS)
    assert told["length"]["ratio"] == 1
    assert {"finish", "refusal", "json", "repetition"} <= told["checks"].keys()
    for check in told["checks"].values():
        assert check["only_variant_failed"] == check["only_full_failed"] == 0
    assert told["checks"]["json"]["variant_rate"] == 0


async def compare(url: str) -> tuple[dict[str, Any], list[Result]]:
    """Serve each question by the engine, and let it answer again as a reference."""
    settings = ShadowSettings.model_validate({"free_run": 1, "reference": {"urls": {"m": url}}})
    metrics, ends = Metrics(), list[Result]()
    launch = Launcher(load_settings(None, {"models": {"m": {"model": "x"}}}, {}))
    references = References(
        {"m": ModelSettings(model="x")},
        settings.reference,
        launch,
        metrics=metrics,
        is_wanted=lambda alias: True,
    )
    free_runs = FreeRuns(1, metrics)
    yielding = Yielding(references, lambda: 0, max_running=0)
    runner = FreeRunner(free_runs, yielding, settings, metrics=metrics, meanwhile=lambda: None)

    def note(run: FreeRun, result: Result) -> None:
        ends.append(result)
        free_runs._count((run.model, run.variant), result)

    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        for question in QUESTIONS:
            path = "/v1/completions" if "prompt" in question else "/v1/chat/completions"
            asked = {"temperature": 0, "max_tokens": 16} | question
            reply = (await http.post(path, json={"model": MODEL, **asked})).json()
            num_tokens = reply["usage"]["completion_tokens"]
            again = ask_again(asked, num_tokens)
            assert again is not None
            served = judge(answer_of([reply]), asked, num_tokens=num_tokens, limit=again.limit)
            run = FreeRun("m", "int8", again, served, recipe_digest="d", on_end=note)
            await runner.run(run, references.of("m"))
    await references.stop()
    told = free_runs.status("m", "int8")
    assert told is not None
    return told, ends
