"""The slim gateway in front of embedded engines that run by themselves, as under compose."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.errors import SettingsError
from gateway.settings import load_settings
from tests.deploy.conftest import answers
from tests.deploy.image import ROOT
from tests.deploy.slim import ABSENT
from tests.gateway.harness import eventually
from tests.ports import free_port

RECIPE = "int8"
START_LIMIT_S = 120
SHADOW = {
    "rate": 1,
    "floor_every": 0,
    "probe_every_s": 0,
    "ledger": {"path": "off"},
    "verdict": {"tolerance": {"all": 0.3}},
}


@contextmanager
def running(words: list[str], home: Path, log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a program with a cache of its own; its end by SIGTERM is in order."""
    environment = os.environ | {"NARROWGATE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            env=environment,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        yield process
        process.terminate()
        assert process.wait(timeout=60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def is_well(url: str) -> bool:
    """Return whether the server there says so."""
    return answers(f"{url}/health") == 200


@dataclass(frozen=True)
class Engines:
    """Two engines: the compressed model and the full one that it is held against."""

    url: str
    reference: str
    directory: Path


@pytest.fixture(scope="module")
def engines(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Run both through the command of the compose file; they get on without a parent's care."""
    home = tmp_path_factory.mktemp("engines")
    urls: list[str] = []
    with ExitStack() as stack:
        for recipe in (RECIPE, "full"):
            port = free_port()
            words = ["-m", "gateway", "engine", f"--model={tiny_llama_dir}", f"--recipe={recipe}"]
            words += ["--name=tiny", "--host=127.0.0.1", f"--port={port}", "--threads=1"]
            stack.enter_context(running(words, home, home / f"{recipe}.log"))
            urls.append(f"http://127.0.0.1:{port}")
        for url in urls:
            eventually(partial(is_well, url), START_LIMIT_S)
        yield Engines(urls[0], urls[1], home)


def settings(engines: Engines, **shadow: Any) -> dict[str, Any]:
    """Return the settings of a gateway in front of them."""
    model = {"model": "tiny", "recipe": RECIPE, "urls": [engines.url]}
    return {"models": {"small": model}, "shadow": SHADOW | shadow, "port": free_port()}


def write(directory: Path, found: dict[str, Any]) -> list[str]:
    """Return the command line of the slim image for these settings."""
    file = directory / f"settings-{found['port']}.yaml"
    file.write_text(yaml.safe_dump(found))
    return ["-m", "tests.deploy.slim", "serve", "--config", str(file)]


@pytest.fixture(scope="module")
def gateway(engines: Engines) -> Iterator[httpx.Client]:
    """Run the gateway where nothing of the embedded extra can be imported."""
    found = settings(engines, reference={"urls": {"small": engines.reference}})
    home = engines.directory
    words = write(home, found)
    url = f"http://127.0.0.1:{found['port']}"
    with running(words, home, home / "gateway.log") as process:
        eventually(lambda: answers(f"{url}/ready") == 200 or process.poll() is not None)
        assert process.poll() is None, (home / "gateway.log").read_text()
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            yield client


def ask(client: httpx.Client) -> dict[str, Any]:
    """Return the answer to one question."""
    body = {"model": "small", "messages": [{"role": "user", "content": "one two three"}]}
    reply = client.post("/v1/chat/completions", json=body | {"max_tokens": 8, "temperature": 0})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def total(client: httpx.Client, name: str) -> float:
    """Return a family's sum over all labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(
        sample.value for family in families for sample in family.samples if sample.name == name
    )


def test_nothing_of_torch_can_be_imported() -> None:
    """The process that stands for the slim image lacks what its image lacks."""
    assert {"torch", "transformers", "safetensors", "numpy"} <= ABSENT
    code = "from tests.deploy.slim import hide; hide(); import {}"
    found = [
        subprocess.run(
            [sys.executable, "-c", code.format(name)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        ).stderr
        for name in ("gateway.app", "torch")
    ]
    assert found[0] == ""
    assert "No module named 'torch'" in found[1]


def test_it_answers(gateway: httpx.Client) -> None:
    """A question to the gateway's name is answered by the engine under its own name."""
    answer = ask(gateway)
    assert answer["usage"]["completion_tokens"] > 0


def test_models_tell_recipe_and_what_is_applied(gateway: httpx.Client) -> None:
    """The compression is told as the live layers are, with the digests of recipe and source."""
    card = gateway.get("/v1/models/small").json()
    assert (card["recipe"], card["engine"], card["state"]) == (RECIPE, "url", "ready")
    assert any(scheme.startswith("int8") for scheme in card["schemes"])
    assert card["weights_bytes"] < card["weights_uncompressed_bytes"]
    assert card["weight_bits"] < 16
    assert card["recipe_digest"]
    (info,) = [
        sample
        for family in text_string_to_metric_families(gateway.get("/metrics").text)
        for sample in family.samples
        if sample.name == "narrowgate_model_info"
    ]
    assert info.labels["source_digest"]


def test_its_own_metrics_pass_through_the_gateway(gateway: httpx.Client) -> None:
    """Nobody else can reach the engine, so the gateway tells what it says of its steps."""
    ask(gateway)
    assert total(gateway, "narrowgate_engine_generated_tokens_total") > 0


def test_its_requests_are_scored(gateway: httpx.Client) -> None:
    """The shadow takes captures from the one engine and scores from the other."""
    before = total(gateway, "narrowgate_shadow_scored_total")
    ask(gateway)
    eventually(lambda: total(gateway, "narrowgate_shadow_scored_total") > before)
    verdicts = gateway.get("/admin/fidelity").json()
    assert RECIPE in json.dumps(verdicts)


def test_another_recipe_than_said_is_refused(engines: Engines) -> None:
    """An engine that is not what the settings call it takes no request; one line says why."""
    found = settings(engines, rate=0)
    del found["models"]["small"]["recipe"]
    words, log = write(engines.directory, found), engines.directory / "refusing.log"
    with running(words, engines.directory, log):
        eventually(lambda: "another URL" in log.read_text())
        assert answers(f"http://127.0.0.1:{found['port']}/ready") == 503
    assert "runs recipe 'int8', and the settings call it 'full': say 'recipe': int8" in (
        log.read_text()
    )


def test_scoring_without_a_reference_is_refused(engines: Engines) -> None:
    """Nothing here could start a full model, so the one line says how to name one."""
    with pytest.raises(SettingsError, match=r"name one in 'shadow\.reference\.urls'"):
        load_settings(None, settings(engines), {})
