"""Who takes part: our engine and its peers, each in a precision, and how each is started."""

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.engines import conversions
from benchmarks.engines.checkpoints import (
    HOME,
    LLAMA_1B,
    MODELS,
    SMOLLM2,
    ensure_artifact,
    ensure_checkpoint,
)
from benchmarks.engines.children import THREADS, EngineFailed
from benchmarks.engines.in_process import script
from benchmarks.engines.over_http import NAME, Server, server
from benchmarks.engines.replies import Replies
from gateway.backends.embedded import free_port
from gateway.backends.vllm_facts import VllmFacts, find_python, probe
from gateway.backends.vllm_weights import own_kernels
from gateway.errors import LoadRefused

OURS = "narrowgate"
STREAMS = 16
CONTEXT = 2304
_KV_BYTES = 512 * 1024**2


class Engine(Protocol):
    """A running engine."""

    @property
    def where(self) -> str:
        """Say how it is asked."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int, /) -> Replies:
        """Return when the tokens of greedy answers came, each of exactly so many tokens."""
        ...

    def memory_mb(self) -> float:
        """Return what its processes hold."""
        ...


@dataclass(frozen=True, slots=True)
class Contestant:
    """An engine in a precision."""

    family: str
    title: str
    precision: str
    models: tuple[str, ...] = MODELS

    @property
    def name(self) -> str:
        """Return what it is called in options and results."""
        return f"{self.family}-{self.precision.lower()}"

    def start(self, model: str) -> AbstractContextManager[Engine]:
        """Run it with a model; what must be installed or converted before is.

        Raises:
            EngineFailed: says what was seen.
        """
        return _STARTS[self.family](self, model)

    @property
    def log(self) -> Path:
        """Return the file that its words go to."""
        HOME.mkdir(parents=True, exist_ok=True)
        return HOME / f"{self.name}.log"


_SMALL = (SMOLLM2,)
ALL = (
    Contestant(OURS, "Narrowgate", "int4"),
    Contestant(OURS, "Narrowgate", "w4-kv8", _SMALL),
    Contestant(OURS, "Narrowgate", "int8", _SMALL),
    Contestant(OURS, "Narrowgate", "w8a8", _SMALL),
    Contestant(OURS, "Narrowgate", "bf16", _SMALL),
    Contestant("llamacpp", "llama.cpp server", "Q4_0"),
    Contestant("llamacpp", "llama.cpp server", "Q8_0"),
    Contestant("openvino", "OpenVINO GenAI", "int4"),
    Contestant("openvino", "OpenVINO GenAI", "int8"),
    Contestant("openvino", "OpenVINO GenAI", "fp16", _SMALL),
    Contestant("onnxruntime", "ONNX Runtime GenAI", "int4"),
    Contestant("ctranslate2", "CTranslate2", "int8"),
    Contestant("vllm", "vLLM-CPU", "int4"),
    Contestant("vllm", "vLLM-CPU", "w8a8", _SMALL),
    # With it, what the 1B shape's engines hold together is more than 24 GiB.
    Contestant("vllm", "vLLM-CPU", "bf16", _SMALL),
    Contestant("transformers", "transformers", "bf16", _SMALL),
    Contestant("transformers", "transformers, bitsandbytes", "nf4"),
    Contestant("transformers", "transformers, bitsandbytes", "int8", _SMALL),
)
_FULL = "bf16"
_SCHEMES = {"int4": "int4", "w8a8": "int8"}
"""What vLLM's kernels of a precision are checked as."""
_FAST = {("int4", LLAMA_1B): "int4-fast"}
"""The same layout; calibration has nothing to see in random weights."""


def served_directory(precision: str, model: str) -> Path:
    """Return what our engine, and vLLM, serve in a precision."""
    if precision == _FULL:
        return ensure_checkpoint(model)
    return ensure_artifact(model, _FAST.get((precision, model), precision))


def versions() -> dict[str, str]:
    """Return the versions of the peers, as they are pinned or installed."""
    pins = [
        pin.partition("==")
        for file in sorted(Path(__file__).parent.glob("requirements-*.txt"))
        for pin in file.read_text(encoding="utf-8").split()
    ]
    left_out = {"torch", "transformers"}  # those of our environment, which is described too
    found = {name: number for name, _, number in pins if name not in left_out}
    built = conversions.LLAMACPP / "VERSION"
    if built.is_file():
        found["llama.cpp"] = built.read_text(encoding="utf-8").strip().removeprefix("llama.cpp ")
    return found | _vllm_version()


def _vllm_version() -> dict[str, str]:
    try:
        return {"vllm": _vllm_facts()[1].version}
    except EngineFailed:
        return {}


@contextmanager
def start_ours(
    directory: Path, log: Path, *, kv_bytes: int = _KV_BYTES, streams: int = STREAMS
) -> Iterator[Server]:
    """Run our engine on what it can serve."""
    port = free_port()
    words = [sys.executable, "-m", "gateway.engine", f"--model={directory}", f"--port={port}"]
    words += [f"--served-model-name={NAME}", f"--max-num-seqs={streams}"]
    words += [f"--kv-cache-memory-bytes={kv_bytes}", f"--max-model-len={CONTEXT}"]
    with server(words, port, log) as running:
        yield running


@contextmanager
def _ours(contestant: Contestant, model: str) -> Iterator[Engine]:
    with start_ours(served_directory(contestant.precision, model), contestant.log) as running:
        yield running


@contextmanager
def _llamacpp(contestant: Contestant, model: str) -> Iterator[Engine]:
    file = conversions.llamacpp(model, contestant.precision)
    port = free_port()
    words = [str(conversions.LLAMACPP / "llama-server"), "--model", str(file), "--port", str(port)]
    words += ["--parallel", str(STREAMS), "--kv-unified", "--ctx-size", str(2 * CONTEXT)]
    words += ["--threads", str(THREADS), "--threads-batch", str(THREADS), "--threads-http", "16"]
    with server(words, port, contestant.log, more={"cache_prompt": False}) as running:
        yield running


@contextmanager
def _vllm(contestant: Contestant, model: str) -> Iterator[Engine]:
    python, facts = _vllm_facts()
    for kernel in own_kernels(facts):
        # Ours would stand in for it behind the gateway; here vLLM is measured as it is.
        if kernel.scheme == _SCHEMES.get(contestant.precision):
            raise EngineFailed(kernel.reason.partition(":")[0])
    directory = served_directory(contestant.precision, model)
    port = free_port()
    words = [str(python), "-m"]
    if facts.has_command:
        words += ["vllm.entrypoints.cli.main", "serve", str(directory)]
    else:
        words += ["vllm.entrypoints.openai.api_server", f"--model={directory}"]
    words += [f"--served-model-name={NAME}", "--host=127.0.0.1", f"--port={port}"]
    words += [f"--max-model-len={CONTEXT}", f"--max-num-seqs={STREAMS}", "--enforce-eager"]
    words += ["--uvicorn-log-level=warning"]
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with server(words, port, contestant.log, environment=variables) as running:
        yield running


def _vllm_facts() -> tuple[Path, VllmFacts]:
    try:
        python = find_python(None)
        return python, asyncio.run(probe(python))
    except LoadRefused as error:
        raise EngineFailed(str(error)) from error


@contextmanager
def _openvino(contestant: Contestant, model: str) -> Iterator[Engine]:
    directory = conversions.openvino(model, contestant.precision)
    with _scripted("openvino", contestant, str(directory)) as running:
        yield running


@contextmanager
def _onnxruntime(contestant: Contestant, model: str) -> Iterator[Engine]:
    directory = conversions.onnxruntime(model, contestant.precision)
    with _scripted("onnxruntime", contestant, str(directory)) as running:
        yield running


@contextmanager
def _ctranslate2(contestant: Contestant, model: str) -> Iterator[Engine]:
    directory = conversions.ctranslate2(model, contestant.precision)
    with _scripted("ctranslate2", contestant, str(directory)) as running:
        yield running


@contextmanager
def _transformers(contestant: Contestant, model: str) -> Iterator[Engine]:
    words = (str(ensure_checkpoint(model)), contestant.precision)
    if contestant.precision == _FULL:
        with script(Path(sys.executable), "transformers", *words, log=contestant.log) as running:
            yield running
    else:
        python = conversions.environment("bitsandbytes").python
        with script(python, "transformers", *words, log=contestant.log) as running:
            yield running


@contextmanager
def _scripted(name: str, contestant: Contestant, *words: str) -> Iterator[Engine]:
    python = conversions.environment(name).python
    with script(python, name, *words, log=contestant.log) as running:
        yield running


_Start = Callable[[Contestant, str], AbstractContextManager[Engine]]
_STARTS: Mapping[str, _Start] = {
    OURS: _ours,
    "llamacpp": _llamacpp,
    "vllm": _vllm,
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
    "ctranslate2": _ctranslate2,
    "transformers": _transformers,
}
