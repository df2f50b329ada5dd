"""Other people's clients and tests, fetched once into the user's cache by their own installers."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from compression.paths import cache_home

HERE = Path(__file__).parent
FETCH_LIMIT_S = 240
PYTEST_ASYNCIO = "pytest-asyncio==1.5.0"
"""What the tests of the Python client need and ours do not."""


def python_client_tests(version: str) -> tuple[Path, Path]:
    """Return the unpacked source of the Python client, and a directory with what its tests need.

    Skips the test where no package index can be reached.
    """
    home = cache_home() / "conformance" / f"openai-python-{version}"
    source, site = home / f"openai-{version}", home / "site"
    if source.is_dir() and site.is_dir():
        return source, site
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    with TemporaryDirectory() as directory:
        fetch = [*pip, "download", "--no-deps", "--no-binary", ":all:", f"openai=={version}"]
        _run([*fetch, "--dest", directory], "the source of the openai client")
        with tarfile.open(next(Path(directory).glob("*.tar.gz"))) as archive:
            archive.extractall(home, filter="data")
    _run([*pip, "install", "--no-deps", "--target", str(site), PYTEST_ASYNCIO], PYTEST_ASYNCIO)
    return source, site


def javascript_client() -> Path:
    """Return a directory with our script and the JavaScript client that its lock file names.

    Skips the test where node or npm are missing, or no package index can be reached.
    """
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: nodejs, npm)")
    home = cache_home() / "conformance" / "openai-node"
    is_new = not (home / "node_modules").is_dir()
    for name in ("package.json", "package-lock.json", "client.mjs"):
        wanted, kept = HERE / "node" / name, home / name
        if not kept.is_file() or kept.read_bytes() != wanted.read_bytes():
            home.mkdir(parents=True, exist_ok=True)
            shutil.copy(wanted, kept)
            is_new = is_new or name == "package-lock.json"
    if is_new:
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(home)]
        _run(["npm", "ci", *options], "the JavaScript client")
    return home


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=FETCH_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"cannot fetch {what}: the package index does not answer")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"cannot fetch {what}: {reason}")
