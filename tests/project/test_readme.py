"""The README, executed: `make demo` serves, and the examples that ask it something run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import yaml

from compression.presets import parse_recipe
from gateway.api_key import KeyList
from gateway.settings import Settings
from gateway.specs import make_specs
from tests.ports import free_port
from tests.project.readme import ADDRESS, ROOT, blocks, run, shell_examples

QUESTION = "What is the capital of France?"
READY_LIMIT_S = 480

pytestmark = pytest.mark.real_model


@dataclass(frozen=True)
class Demo:
    """A running `make demo`."""

    port: int
    process: subprocess.Popen[str]
    printed: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Run `make demo` on a free port, and end it by Ctrl-C as a person would."""
    port = free_port()
    printed = tmp_path_factory.mktemp("demo") / "printed"
    with printed.open("w") as output:
        process = subprocess.Popen(
            ["make", "demo", f"PORT={port}", f"VENV={sys.prefix}"],  # noqa: S607
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    running = Demo(port, process, printed)
    try:
        wait_until_ready(running)
        yield running
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=120)
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, f"left behind by Ctrl-C: {alive}"


def wait_until_ready(running: Demo) -> None:
    """Wait for /ready, failing with what was printed if the demo ends first."""
    deadline = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < deadline:
        if running.process.poll() is not None:
            pytest.fail(running.printed.read_text())
        try:
            if httpx.get(f"{running.url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    pytest.fail(f"not ready in {READY_LIMIT_S} s:\n{running.printed.read_text()}")


def test_demo_prints_a_curl_line_that_works(demo: Demo, tmp_path: Path) -> None:
    """The line to paste gives a sensible answer and its usage."""
    deadline = time.monotonic() + 60
    while "curl " not in demo.printed.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    line = next(line for line in demo.printed.read_text().splitlines() if "curl " in line)
    answer = json.loads(run(line.strip(), tmp_path))
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 0


def test_official_client_plain_and_streamed(demo: Demo) -> None:
    """The openai client gets the same sentence both ways, with usage."""
    client = openai.OpenAI(base_url=f"{demo.url}/v1", api_key="unused")
    plain = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": QUESTION}], temperature=0
    )
    assert "Paris" in (plain.choices[0].message.content or "")
    assert plain.usage is not None
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    chunks = list(
        client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage == plain.usage


def test_models_say_how_small_they_are(demo: Demo) -> None:
    """int4 weights take at most 0.36 of bf16's bytes, as read from the live engine."""
    card = httpx.get(f"{demo.url}/v1/models/smollm2").json()
    assert card["variant"] == "int4"
    assert card["weights_bytes"] <= 0.36 * card["weights_uncompressed_bytes"]


def test_metrics_pass_promtool(demo: Demo) -> None:
    """Prometheus' own linter accepts the exposition of a server that has answered."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    text = httpx.get(f"{demo.url}/metrics").text
    assert "narrowgate_requests_total" in text
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_gateway_process_stays_small(demo: Demo) -> None:
    """The gateway itself holds less than 150 MB."""
    family = psutil.Process(demo.process.pid).children(recursive=True)
    gateway = next(process for process in family if "serve" in process.cmdline())
    assert gateway.memory_info().rss < 150e6


def test_shell_examples_run(demo: Demo, tmp_path: Path) -> None:
    """Every example that asks the demo something runs as written."""
    examples = [each for each in shell_examples() if ADDRESS in each]
    assert len(examples) == 11
    for example in examples:
        run(example.replace(ADDRESS, f"127.0.0.1:{demo.port}"), tmp_path)


def test_python_examples_run(demo: Demo, tmp_path: Path) -> None:
    """The client example prints the answer."""
    for index, example in enumerate(blocks("python")):
        script = tmp_path / f"example{index}.py"
        script.write_text(example.replace(ADDRESS, f"127.0.0.1:{demo.port}"))
        assert "Paris" in run(f"python {script}", tmp_path)


def test_yaml_examples_are_valid() -> None:
    """The settings files, the keys and the recipe of the README pass validation."""
    settings, ladder, on_vllm, keys, recipe, scored = map(yaml.safe_load, blocks("yaml"))
    assert Settings.model_validate(scored).shadow.ladder.mode == "on"
    assert set(Settings.model_validate(settings).models) == {"small", "safe"}
    (assistant,) = make_specs(Settings.model_validate(on_vllm))
    assert assistant.variants[0].settings.engine == "vllm"
    specs = make_specs(Settings.model_validate(ladder))
    assert [len(spec.variants) for spec in specs] == [3, 1]
    assert [key.name for key in KeyList.model_validate(keys).keys] == ["team-a", "operator"]
    assert parse_recipe(recipe, where="README", default_name="mine").weights.scheme == "int4"
