"""The demo model on two real vLLM behind the gateway: what is applied, and what it survives."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import psutil
import pytest

from benchmarks.gateway.load import Outcome, ask
from gateway.backends.vllm_facts import VllmFacts
from tests.gateway.harness import eventually, until
from tests.vllm.served import QUESTION, Served, is_gone, model, served

pytestmark = [pytest.mark.real_model, pytest.mark.vllm]

WHOLE = {"ignore_eos": True, "temperature": 0}
"""Every answer has its full length."""


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the int8 artifact by two engines, watched closely, their replies scored."""
    # A tolerance by hand, or the artifact's fidelity would be measured first.
    verdict = {"tolerance": {"all": 0.05}}
    shadow = {"rate": 1, "free_run": 1, "verdict": verdict, "ledger": {"path": False}}
    shadow |= {"score_timeout_s": 240}  # a reference yields to all that starts beside it
    twice = model("int8-fast", replicas=2, extra_parameters=["ignore_eos"])
    settings = {"models": {"m": twice}, "stall_timeout_s": 12, "shadow": shadow}
    with served(tmp_path_factory.mktemp("int8"), settings) as gateway:
        yield gateway


def test_int8_answers_and_says_what_runs(int8: Served, facts: VllmFacts) -> None:
    """Layers, kernel and numerics are read from the live model, and the answer is right."""
    card = int8.card("m")
    assert card["schemes"] == {"int8-rows": 210}
    assert card["numerics"] == {"int8-rows": "W8A16"}
    assert card["kernels"] == {"int8-rows": "WeightOnlyInt8Kernel"}
    assert (card["engine"], card["engine_version"]) == ("vllm", facts.version)
    assert (card["recipe"], card["kv_dtype"]) == ("int8-fast", "bfloat16")
    assert card["weights_bytes"] < 0.62 * card["weights_uncompressed_bytes"]
    assert 8 < card["weight_bits"] < 11  # its embeddings stay in 16 bits
    client = openai.OpenAI(base_url=f"{int8.url}/v1", api_key="unused")
    reply = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": QUESTION}], temperature=0
    )
    assert "Paris" in (reply.choices[0].message.content or "")


def test_its_series_come_through_the_gateway(int8: Served) -> None:
    """What vLLM counts is on the gateway's page in our words, and in its own on the view."""
    name = "narrowgate_engine_generated_tokens_total"
    before = _settled(int8, name)
    tokens = int8.chat(QUESTION).json()["usage"]["completion_tokens"]
    eventually(lambda: int8.series(name) >= before + tokens)
    # Their pulses ask for a token now and then; nothing is counted twice.
    assert int8.series(name) < before + 2 * tokens
    assert int8.series("narrowgate_engine_kv_cache_usage_ratio") >= 0
    assert int8.series("narrowgate_engine_step_tokens_count") > 0
    view = httpx.get(f"{int8.url}/metrics/vllm").text
    assert 'vllm:generation_tokens_total{engine="0",model_name="m@int8-fast"}' in view


def _settled(served: Served, name: str) -> float:
    """Return a counter once it has stood still for a while: the replies before are in it."""
    value = served.series(name)
    for _ in range(10):
        time.sleep(3)
        before, value = value, served.series(name)
        if value == before:
            break
    return value


def test_its_replies_are_scored(int8: Served) -> None:
    """The shadow reads a reply of vLLM under the full model, and lets that answer itself.

    The client sees nothing of either.
    """
    reply = int8.chat(QUESTION)
    assert "token_id:" not in reply.text
    choice = reply.json()["choices"][0]
    assert (choice["logprobs"], choice["token_ids"]) == (None, None)

    def is_compared() -> bool:
        status = httpx.get(f"{int8.url}/admin/shadow").json()["models"]["m"]
        assert set(status["dropped"]) <= {"busy"}, status
        fidelity = httpx.get(f"{int8.url}/admin/fidelity").json()
        return bool(status["scored"] >= 1 and _compared(fidelity) >= 1)

    eventually(is_compared, 240)
    metrics = httpx.get(f"{int8.url}/metrics").text
    (mean,) = re.findall(r"^narrowgate_fidelity_kl_nats_total\{.*\} (\S+)$", metrics, re.M)[:1]
    assert 0 <= float(mean) < 0.5


def test_each_replica_is_held_to_its_part(int8: Served) -> None:
    """Server, core and worker of one engine run where none of the other engine does."""
    _require_held(int8)


def test_a_killed_replica_loses_no_request_that_has_not_begun(int8: Served) -> None:
    """Killed under load, it leaves no process; the other serves on, and it comes back by itself."""
    victim, other = int8.replicas()
    family = int8.engine_at(victim["url"])

    async def load() -> list[Outcome]:
        outcomes: list[Outcome] = []

        async def client() -> None:
            for _ in range(3):
                answered = await ask(int8.url, "m", max_tokens=48, more=WHOLE)
                outcomes.append(answered)

        started = time.monotonic()
        clients = asyncio.gather(*(client() for _ in range(8)))
        await until(lambda: bool(outcomes) or clients.done())
        # All answers are as long, so the next ones are half written now.
        await asyncio.sleep((time.monotonic() - started) / 2)
        family[0].kill()
        await clients
        return outcomes

    outcomes = asyncio.run(load())
    cut = [each for each in outcomes if not each.is_whole]
    assert [each for each in cut if each.first_s is None] == []
    assert cut, "the victim served nobody when it was killed"
    assert all(each.is_told for each in cut)
    eventually(lambda: all(map(is_gone, family)))
    (there,) = (each for each in int8.replicas() if each["index"] == other["index"])
    assert (there["state"], there["restarts"]) == ("ready", 0)
    assert "Paris" in int8.ask(QUESTION)
    eventually(lambda: [each["state"] for each in int8.replicas()] == ["ready"] * 2, 240)
    assert sorted(each["restarts"] for each in int8.replicas()) == [0, 1]
    _require_held(int8)


def test_a_hung_core_is_seen_and_ended(int8: Served) -> None:
    """vLLM's own health stays green while its core is stopped; the gateway sees it and goes on."""
    hung, _ = int8.replicas()
    (core,) = (each for each in int8.engine_at(hung["url"]) if "EngineCore" in _words(each))
    core.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(int8.ask, QUESTION) for _ in range(2)]
    # Who was with the hung one was asked again of the other: not a byte had been sent.
    assert ["Paris" in each.result() for each in asked] == [True, True]
    eventually(lambda: "was lost (stall)" in int8.log)
    eventually(lambda: is_gone(core))


def _compared(fidelity: dict[str, Any]) -> int:
    """Return how many answers of the one variant were held against the full model's own."""
    (variant,) = fidelity["data"]
    free_runs = variant["free_runs"] or {"results": {}}
    found: int = free_runs["results"].get("compared", 0)
    return found


def _require_held(gateway: Served) -> None:
    """Check that every process and thread of both engines runs on its engine's part alone."""
    ours = sorted(os.sched_getaffinity(gateway.process.pid))
    share = max(1, len(ours) // 2)
    for replica in gateway.replicas():
        part = set(ours[replica["index"] * share % len(ours) :][:share])
        server, *below = gateway.engine_at(replica["url"])
        assert len(below) >= 2  # its core and its worker, at least
        for process in (server, *below):
            assert os.sched_getaffinity(process.pid) == part, _words(process)
            # OpenMP gives each thread of a worker a processor of the part.
            for thread in process.threads():
                assert os.sched_getaffinity(thread.id) <= part, _words(process)


def _words(process: psutil.Process) -> str:
    return " ".join(process.cmdline())
