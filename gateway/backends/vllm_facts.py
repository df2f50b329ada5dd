"""What an installed vLLM is and can do, asked of its own interpreter and remembered."""

import asyncio
import glob
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from compression.paths import cache_home
from compression.processor import processor
from gateway.backends.child import ending
from gateway.errors import LoadRefused

logger = logging.getLogger(__name__)

INSIDE = Path(__file__).parent / "inside_vllm"
"""Goes into vLLM's ``PYTHONPATH``: our plugin for it."""

OLDEST = (0, 28)
"""Older ones have other names for what the gateway asks of them."""

PROBE_TIMEOUT_S = 180.0
PYTHON_VARIABLE = "NARROWGATE_VLLM_PYTHON"

_MARK = "narrowgate-vllm-probe:"
_HOW_TO_INSTALL = "install it there (pip install vllm), or name another one in 'vllm_python'"
_DRIVER = Path("/proc/driver/nvidia/version")
_VERSION = re.compile(r"(\d+)\.(\d+)")


class VllmFacts(BaseModel):
    """The answer of the probe (see ``inside_vllm/narrowgate_vllm/probe.py``)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str
    has_command: bool
    """Whether ``vllm serve`` works; the wheels for processors have the module form alone."""
    device: str
    """``cpu``, ``cuda`` and so on, as PyTorch calls it."""
    capability: tuple[int, int] | None
    """CUDA's compute capability."""
    options: Mapping[str, tuple[str, ...] | None]
    """Every option of the server with its choices; None: any value."""
    flags: frozenset[str]
    """Those options that take no value."""
    num_devices: int
    """GPUs that it sees."""
    has_tracing: bool
    """Whether the libraries for traces are beside it."""
    architectures: frozenset[str]
    has_bitsandbytes_plugin: bool
    cpu_features: frozenset[Literal["amx", "avx512", "vnni"]]
    head_sizes: frozenset[int]
    """Of attention on a processor; empty: any."""
    int8_error: float | None
    """How far the int8 product is from the exact one, as a share of its norm; CPU only."""
    fp8_weights: frozenset[str] | None
    """Values of ``quantization`` that round to fp8 and can work; CPU only, None: any may."""
    has_int4_kernel: bool


def find_python(named: Path | None) -> Path:
    """Return the interpreter that runs vLLM.

    It is the one of the settings, of ``NARROWGATE_VLLM_PYTHON``, of ``make vllm-env``, or ours.

    Raises:
        LoadRefused: there is none, or the one that was named is not there.
    """
    origin = "'vllm_python'"
    if named is None and (value := os.environ.get(PYTHON_VARIABLE)):
        named, origin = Path(value), f"the environment variable {PYTHON_VARIABLE}"
    if named is not None:
        path = named.expanduser()
        if not os.access(path, os.X_OK) or path.is_dir():
            raise LoadRefused(f"{origin} is {str(named)!r}, which is no program: correct it")
        return path
    made = default_python()
    if made.exists():
        return made
    if find_spec("vllm") is not None:
        return Path(sys.executable)
    raise LoadRefused(
        "engine 'vllm' needs an interpreter that has vLLM: name it in 'vllm_python', or make one "
        "with `make vllm-env`"
    )


def default_python() -> Path:
    """Return the interpreter that ``make vllm-env`` makes."""
    return cache_home() / "vllm" / "bin" / "python"


def python_path() -> str:
    """Return vLLM's ``PYTHONPATH``: our plugin before what the operator has set."""
    return os.pathsep.join(filter(None, [str(INSIDE), os.environ.get("PYTHONPATH")]))


async def probe(python: Path) -> VllmFacts:
    """Return the facts of the vLLM that an interpreter has; known ones are not asked again.

    Raises:
        LoadRefused: it has no vLLM, one that does not start, or one that is too old.
    """
    memory = _memory_of(python)
    facts = _recall(memory)
    if facts is None:
        logger.info("asking %s what its vLLM can do", python)
        facts = _parse(python, await _ask(python))
        _remember(memory, facts)
    _require_known(python, facts)
    return facts


async def _ask(python: Path) -> tuple[int, str, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            str(python),
            "-m",
            "narrowgate_vllm.probe",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": python_path()},
            start_new_session=True,
        )
    except OSError as error:
        raise LoadRefused(
            f"{str(python)!r} cannot be run ({error.strerror}): name an interpreter that has vLLM"
        ) from None
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            out, err = await process.communicate()
    except TimeoutError:
        raise LoadRefused(
            f"{str(python)!r} did not say within {PROBE_TIMEOUT_S:g} s what its vLLM can do: "
            "try `import vllm` there"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")


def _parse(python: Path, answer: tuple[int, str, str]) -> VllmFacts:
    code, out, err = answer
    words = [line.strip() for line in err.splitlines() if line.strip()] or ["it wrote nothing"]
    lines = [line for line in out.splitlines() if line.startswith(_MARK)]
    if code != 0 or not lines:
        if "No module named 'vllm'" in words[-1] or "No module named 'torch'" in words[-1]:
            raise LoadRefused(f"{str(python)!r} has no vLLM: {_HOW_TO_INSTALL}")
        how = words[-1] if code >= 0 else ending(code)
        raise LoadRefused(f"the vLLM of {str(python)!r} does not start: {how}")
    try:
        return VllmFacts.model_validate(json.loads(lines[-1].removeprefix(_MARK)))
    except (ValueError, ValidationError):
        raise LoadRefused(
            f"the vLLM of {str(python)!r} describes itself in a way this version cannot read"
        ) from None


def _require_known(python: Path, facts: VllmFacts) -> None:
    oldest = ".".join(map(str, OLDEST))
    found = _VERSION.match(facts.version)
    if found is None:
        raise LoadRefused(
            f"the vLLM of {str(python)!r} calls its version {facts.version!r}: "
            f"use a release from {oldest} on"
        )
    if (int(found[1]), int(found[2])) < OLDEST:
        raise LoadRefused(
            f"the vLLM of {str(python)!r} is {facts.version}: at least {oldest} is needed, "
            "upgrade it"
        )


def _memory_of(python: Path) -> Path | None:
    """Return the file that keeps an interpreter's facts; installing anything makes it another."""
    places = glob.glob(str(python.parent.parent / "lib" / "python*" / "site-packages"))
    if not places:
        return None
    stamps = [f"{place}:{os.stat(place).st_mtime_ns}" for place in sorted(places)]
    ours = [f"{file.name}:{file.stat().st_mtime_ns}" for file in sorted(INSIDE.glob("*/*.py"))]
    key = "|".join([str(python.absolute()), processor(), _gpus(), *stamps, *ours])
    return cache_home() / "vllm-facts" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _gpus() -> str:
    """Return what the GPUs that are seen depend on."""
    try:
        driver = _DRIVER.read_text(encoding="utf-8")
    except OSError:
        driver = ""
    return f"{os.environ.get('CUDA_VISIBLE_DEVICES')}:{driver}"


def _recall(memory: Path | None) -> VllmFacts | None:
    if memory is None:
        return None
    try:
        return VllmFacts.model_validate_json(memory.read_bytes())
    except (OSError, ValidationError):
        return None


def _remember(memory: Path | None, facts: VllmFacts) -> None:
    if memory is None:
        return
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        draft = memory.with_suffix(f".{os.getpid()}")
        draft.write_text(facts.model_dump_json(), encoding="utf-8")
        draft.replace(memory)
    except OSError as error:
        logger.warning("cannot remember what vLLM can do: %s", error)
