"""The Dockerfiles: linted, in step with the project, their commands run outside a container.

No image is built here, for that takes a container engine.
"""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.conftest import answers
from tests.deploy.image import DOCKERFILES, ROOT, read_image
from tests.gateway.harness import eventually
from tests.ports import free_port

HEALTHCHECK = ROOT / "deploy/docker/healthcheck.py"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

each_image = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)


def check_health(port: int) -> subprocess.CompletedProcess[str]:
    """Run the health check as a container does."""
    return subprocess.run(
        [sys.executable, HEALTHCHECK],
        env=os.environ | {"NARROWGATE_PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_three_images() -> None:
    """The gateway alone, the embedded engine, vLLM."""
    assert [path.stem for path in DOCKERFILES] == ["embedded", "gateway", "vllm"]


@each_image
def test_hadolint_finds_nothing(path: Path) -> None:
    """Hadolint, which knows the shell in RUN too, has nothing to say."""
    linter = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([linter, path], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_hadolint_can_find_something(tmp_path: Path) -> None:
    """The linter does refuse a file: a base image without a tag, a shell form."""
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nCMD narrowgate serve\n")
    linter = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([linter, bad], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "DL3006" in found.stdout


@each_image
def test_it_takes_what_there_is(path: Path) -> None:
    """Each source of a COPY exists, and .dockerignore lets it into the build."""
    sources = read_image(path).copied
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert "*" in rules
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert source in let_in


@each_image
def test_it_installs_what_the_project_has(path: Path) -> None:
    """Each pip install is held by the constraints; its extras and packages are known."""
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = {canonicalize_name(Requirement(line).name) for line in lines}
    installs = read_image(path).pip_installs
    asked = [word for words in installs for word in words if word.startswith(".[")]
    assert len(asked) == 1
    extras = set(asked[0][2:-1].split(","))
    assert extras <= set(PROJECT["optional-dependencies"])
    assert ("embedded" in extras) is (path.stem != "gateway")
    for words in installs:
        assert words[words.index("--constraint") + 1] == "constraints.txt"
    if path.stem != "gateway":
        assert installs[0][-1] == "torch"
        assert "torch" in pinned


@each_image
def test_it_runs_as_nobody_special(path: Path) -> None:
    """A fixed user that is not root, a tagged base, a signal that drains, a volume for caches."""
    image = read_image(path)
    base = image.values("ARG")[0].partition("=")[2]
    tag = base.partition(":")[2]
    assert tag
    assert tag != "latest"
    assert image.values("USER") == ["10001:10001"]
    assert image.values("STOPSIGNAL") == ["SIGTERM"]
    assert image.values("VOLUME") == [image.environment["NARROWGATE_HOME"]]
    assert image.words("ENTRYPOINT")[0].rpartition("/")[2] in PROJECT["scripts"]
    assert HEALTHCHECK.name in image.values("HEALTHCHECK")[0]
    assert image.values("EXPOSE") == [image.environment["NARROWGATE_PORT"]]


@each_image
def test_commands_are_alike(path: Path) -> None:
    """What is run below for one image is what all of them run."""
    image, first = read_image(path), read_image(DOCKERFILES[0])
    assert image.words("ENTRYPOINT") == first.words("ENTRYPOINT")
    assert image.words("CMD") == first.words("CMD")
    health = image.values("HEALTHCHECK")[0].partition("CMD")[2]
    assert health == first.values("HEALTHCHECK")[0].partition("CMD")[2]


def test_command_serves_and_ends(settings_file: Path, tmp_path: Path) -> None:
    """Entry point, arguments and environment serve, pass the health check, and drain."""
    image = read_image(ROOT / "deploy/docker/gateway.Dockerfile")
    port = free_port()
    program = Path(sys.executable).with_name(Path(image.words("ENTRYPOINT")[0]).name)
    words = [
        word.replace("/etc/narrowgate", str(settings_file.parent)) for word in image.words("CMD")
    ]
    moved = {"NARROWGATE_HOST": "127.0.0.1", "NARROWGATE_PORT": str(port)}
    here = {key: str(tmp_path) for key in ("NARROWGATE_HOME", "HF_HOME", "XDG_CACHE_HOME", "HOME")}
    environment = os.environ | image.environment | moved | here
    with subprocess.Popen([program, *words], env=environment, cwd=ROOT) as process:
        try:
            eventually(lambda: answers(f"http://127.0.0.1:{port}/ready") == 200)
            healthy = check_health(port)
            assert (healthy.returncode, healthy.stderr) == (0, "")
            process.terminate()
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    dead = check_health(port)
    assert dead.returncode == 1
    assert f"no answer on port {port}" in dead.stderr


@contextmanager
def answering(status: int) -> Iterator[int]:
    """Run a server that answers everything with that status; yield its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (421, 0), (500, 1), (503, 1)])
def test_health_is_an_answer(status: int, code: int) -> None:
    """A refused name (421) is an answer of a gateway that lives; an error is none."""
    with answering(status) as port:
        assert check_health(port).returncode == code
