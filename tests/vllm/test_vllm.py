"""The demo model on the real vLLM behind the gateway: what is applied, and what it survives."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import yaml

from benchmarks.gateway.load import Outcome, ask
from gateway.backends.vllm_facts import VllmFacts
from tests.gateway.harness import eventually
from tests.vllm.served import EAGER, SMALL, Served, facts_here, is_gone, served

pytestmark = pytest.mark.real_model

QUESTION = "What is the capital of France?"
WHOLE = {"ignore_eos": True, "temperature": 0}
"""Every answer has its full length."""


def model(recipe: str, **fields: Any) -> dict[str, Any]:
    """Return the settings of the demo model on vLLM."""
    common = {"model": "smollm2", "engine": "vllm", "vllm_options": EAGER, **SMALL}
    return {**common, "recipe": recipe, **fields}


@pytest.fixture(scope="module")
def facts() -> VllmFacts:
    """Return what the installed vLLM can do here."""
    return facts_here()


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the int8 artifact by two engines, watched closely, their replies scored."""
    # A tolerance by hand, or the artifact's fidelity would be measured first.
    verdict = {"tolerance": {"all": 0.05}}
    shadow = {"rate": 1, "free_run": 1, "verdict": verdict, "ledger": {"path": False}}
    twice = model("int8-fast", replicas=2, extra_parameters=["ignore_eos"])
    settings = {"models": {"m": twice}, "stall_timeout_s": 8, "shadow": shadow}
    with served(tmp_path_factory.mktemp("int8"), settings) as gateway:
        yield gateway


def test_int8_answers_and_says_what_runs(int8: Served, facts: VllmFacts) -> None:
    """Layers, kernel and numerics are read from the live model, and the answer is right."""
    card = int8.card("m")
    assert card["schemes"] == {"int8-rows": 210}
    is_replaced = (facts.int8_error or 0) > 0.01
    assert card["numerics"] == {"int8-rows": "W8A16" if is_replaced else "W8A8"}
    kernel = "WeightOnlyInt8Kernel" if is_replaced else "CPUInt8ScaledMMLinearKernel"
    assert card["kernels"] == {"int8-rows": kernel}
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
    assert int8.series(name) <= before + tokens + 4  # their pulses ask for a token now and then
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

    eventually(is_compared, 90)
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
        while not outcomes:  # noqa: ASYNC110 (a test looks from outside, nobody tells it)
            await asyncio.sleep(0.01)
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
    eventually(lambda: [each["state"] for each in int8.replicas()] == ["ready"] * 2, 180)
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


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a recipe that takes one query head of every group and some neurons out."""
    recipe = {
        "weights": {"scheme": "int8"},
        "prune": {
            "query_heads": 1,
            "neurons": 0.1,
            "score": "magnitude",
            "compensate": False,
        },
    }
    file = tmp_path_factory.mktemp("recipe") / "w8-pruned.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return str(file)


def test_ladder_of_full_and_pruned(tmp_path: Path, pruned: str) -> None:
    """A pruned artifact and the full model are served side by side, each with its shapes."""
    rungs = [{"recipe": pruned, "name": "pruned"}, {"recipe": "full"}]
    ladder = {key: value for key, value in model("full").items() if key != "recipe"}
    settings = {"models": {"m": {**ladder, "ladder": rungs, "preload": True}}}
    with served(tmp_path, settings) as gateway:
        assert gateway.ask(QUESTION, model="m@pruned")
        assert gateway.card("m@pruned")["schemes"] == {"int8-rows": 210}
        activated = httpx.post(f"{gateway.url}/admin/models/m@full/activate", timeout=240)
        assert activated.status_code == 200, activated.text
        # The chat's first token is a tie in bf16 logits (The, L), so this is no chat.
        assert "Paris" in gateway.complete("The capital of France is")
        card = gateway.card("m@full")
        assert (card["schemes"], card["numerics"]) == ({"none": 210}, {"none": "W16A16"})
        assert 2.6e8 < card["weights_bytes"] < 2.8e8
        assert re.fullmatch(r"dense \(\w+\)(, dense \(\w+\))*", card["kernels"]["none"])
        below = gateway.processes()
    assert gateway.process.returncode == 0
    eventually(lambda: all(map(is_gone, below)))


def test_cache_in_fp8(tmp_path: Path, facts: VllmFacts) -> None:
    """Keys and values are kept in fp8 where the processor can, and refused where it cannot."""
    recipe = tmp_path / "w8-kv-fp8.yaml"
    recipe.write_text("weights: {scheme: int8}\nkv_cache: fp8\n")
    settings = {"models": {"m": model(str(recipe))}}
    if facts.cpu_features & {"amx", "avx512"}:
        with served(tmp_path, settings) as gateway:
            assert gateway.card("m")["kv_dtype"] == "fp8"
            assert "Paris" in gateway.ask(QUESTION)
        return
    words = "needs a processor with AVX-512 or AMX"
    with pytest.raises(AssertionError, match=words), served(tmp_path, settings):
        pass


def test_what_ends_a_start_is_told_in_vllms_own_words(tmp_path: Path) -> None:
    """vLLM refuses what it cannot do while it starts; its reason is the gateway's."""
    settings = {"models": {"m": model("full", max_model_len=999_999)}}
    with pytest.raises(AssertionError) as ended, served(tmp_path, settings):
        pass
    (line,) = (each for each in str(ended.value).splitlines() if each.startswith("narrowgate:"))
    assert "the engine of m@full ended with code 1 while it started" in line
    assert "max_model_len" in line
