"""Tests of the engine as a process of its own, on a tiny random Llama."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics.engine import ENDED, ENGINE_PREFIX, RUNNING, WAITING
from gateway.protocol import EngineInfo
from tests.engine.fakes import wait_until
from tests.engine.processes import MODEL, START_LIMIT_S, EngineProcess, started

COUNTS = {ENGINE_PREFIX + each.name for each in (RUNNING, WAITING, ENDED)}
MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def engine(tiny_llama_dir: Path) -> Iterator[EngineProcess]:
    """Return one engine for the tests that leave it alive."""
    with started(tiny_llama_dir) as engine:
        yield engine


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    """Send one chat request."""
    return client.chat.completions.create(model=MODEL, messages=MESSAGES, **fields)


def test_the_real_decoder_answers(engine: EngineProcess) -> None:
    """Greedy answers repeat, streamed or not, and log-probabilities agree with greedy."""
    with engine.client() as client:
        plain = ask(client, temperature=0, max_tokens=20, logprobs=True, top_logprobs=2)
        chunks = list(ask(client, temperature=0, max_tokens=20, stream=True))
    choice = plain.choices[0]

    assert plain.usage.completion_tokens <= 20
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == (
        choice.message.content
    )
    for entry in choice.logprobs.content:
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob


def test_a_seed_repeats_on_the_real_decoder(engine: EngineProcess) -> None:
    """Sampling with one seed gives one answer."""
    with engine.client() as client:
        answers = {
            ask(client, temperature=1, top_p=0.9, seed=5, max_tokens=20).choices[0].message.content
            for _ in range(3)
        }

    assert len(answers) == 1


def test_the_context_bounds_prompt_and_answer(engine: EngineProcess) -> None:
    """max_tokens beyond the room is capped; a prompt as long as the context is refused."""
    with engine.client() as client:
        reply = ask(client, temperature=1, seed=0, max_tokens=512)
        assert reply.usage.total_tokens <= 512
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "hello " * 600}]
            )
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


def test_it_describes_itself_from_the_live_tensors(
    engine: EngineProcess, tiny_llama_dir: Path
) -> None:
    """Info has every key of the contract, with this process's own values."""
    info = httpx.get(f"{engine.url}/engine/info").json()

    assert info["pid"] == engine.process.pid
    assert (info["recipe"], info["recipe_digest"], info["threads"]) == ("full", None, 1)
    assert info["architecture"] == "LlamaForCausalLM"
    assert (info["max_model_len"], info["served_model_name"]) == (512, MODEL)
    config = json.loads((tiny_llama_dir / "config.json").read_bytes())
    assert EngineInfo.model_validate(info).vocab_size == config["vocab_size"]
    assert info["weights_bytes"] == info["weights_bytes_before"] > 0
    assert sum(info["schemes"].values()) > 0
    assert info["kv_scheme"]["key"]["applied"] == {"none": 2}
    assert info["kv_bytes_per_token"] == 2 * 2 * 2 * 2 * 16


def test_sigterm_lets_running_requests_finish(tiny_llama_dir: Path) -> None:
    """Requests under way and in the queue get whole answers, new ones 503; then exit code 0."""
    replies: list[Any] = []
    with started(tiny_llama_dir) as engine, engine.client() as client:
        threads = [
            threading.Thread(
                target=lambda seed=seed: replies.append(
                    ask(client, temperature=2, seed=seed, max_tokens=512)
                )
            )
            for seed in range(8)
        ]
        stream = ask(client, temperature=2, seed=9, max_tokens=512, stream=True)
        next(iter(stream))
        for thread in threads:
            thread.start()
        wait_until(lambda: num_begun(engine) == 9)
        engine.process.send_signal(signal.SIGTERM)
        rest = list(stream)
        for thread in threads:
            thread.join()
        assert engine.process.wait(60) == 0

    assert rest[-1].choices[0].finish_reason in {"stop", "length"}
    assert len(replies) == 8
    assert {reply.choices[0].finish_reason for reply in replies} <= {"stop", "length"}


def test_a_second_sigterm_ends_at_once(tiny_llama_dir: Path) -> None:
    """While the first one drains a long queue, new requests get 503; the second one ends it."""
    with started(tiny_llama_dir) as engine, ExitStack() as stack:
        for seed in range(40):
            stack.enter_context(start_and_forget(engine, seed))
        wait_until(lambda: num_begun(engine) > 20)
        engine.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{engine.url}/health").json() != {"status": "draining"}:
            time.sleep(0.01)
        with engine.client() as client, pytest.raises(openai.InternalServerError) as caught:
            ask(client)
        assert (caught.value.status_code, caught.value.code) == (503, "draining")
        engine.process.send_signal(signal.SIGTERM)

        assert engine.process.wait(30) == 128 + signal.SIGTERM


def num_begun(engine: EngineProcess) -> float:
    """Return how many requests an engine has taken so far, whatever became of them."""
    families = text_string_to_metric_families(httpx.get(f"{engine.url}/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name in COUNTS)


def start_and_forget(engine: EngineProcess, seed: int) -> socket.socket:
    """Send a long request whose end will not come."""
    address = urlsplit(engine.url)
    fields = {"model": MODEL, "messages": MESSAGES, "temperature": 2, "seed": seed}
    body = json.dumps(fields).encode()
    connection = socket.create_connection((address.hostname, address.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def refusal(*arguments: str) -> str:
    """Run an engine that must refuse; return the last line it writes."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway.engine", "--served-model-name", "m", *arguments],
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_port_in_use_is_refused_before_anything_long(tiny_llama_dir: Path) -> None:
    """One line names the port and the remedy, within the time Python needs to start."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        line = refusal("--model", str(tiny_llama_dir), "--port", str(port))

    assert line.startswith("narrowgate engine: error: ")
    assert str(port) in line
    assert "--port" in line


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """One line names the directory."""
    line = refusal("--model", str(tmp_path), "--port", "0")

    assert line.startswith("narrowgate engine: error: ")
    assert tmp_path.name in line


def test_an_engine_ends_with_its_parent() -> None:
    """Killing the parent outright leaves no orphan."""
    child = "import time; from gateway.engine.lifeline import *; end_with_parent(); "
    child += "print('up', flush=True); time.sleep(60)"
    parent = (
        "import subprocess, sys, time; "
        f"c = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE); "
        "c.stdout.readline(); print(c.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    end = time.monotonic() + 30
    while is_alive(pid):
        assert time.monotonic() < end, "the child outlived its parent"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        os.kill(pid, 0)
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()[:100]
    except (ProcessLookupError, FileNotFoundError):
        return False
