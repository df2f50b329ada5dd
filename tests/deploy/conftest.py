"""An engine elsewhere, and the settings of a gateway in front of it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.gateway.harness import eventually
from tests.ports import free_port


def answers(url: str) -> int:
    """Return the status of a GET, 0 where nobody listens."""
    try:
        return httpx.get(url, trust_env=False).status_code
    except httpx.TransportError:
        return 0


@pytest.fixture(scope="module")
def settings_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield settings for the model ``far``, whose engine others run: here a fake one."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tests.gateway.fake_engine"]
    with subprocess.Popen([*command, "--served-model-name", "far", "--port", str(port)]) as engine:
        try:
            eventually(lambda: answers(f"{url}/health") == 200)
            file = tmp_path_factory.mktemp("settings") / "settings.yaml"
            file.write_text(yaml.safe_dump({"models": {"far": {"model": "far", "urls": [url]}}}))
            yield file
        finally:
            engine.kill()
