"""What each peer makes of a checkpoint before it can serve it, made once."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engines.checkpoints import HOME, ensure_checkpoint, made_once
from benchmarks.engines.children import EngineFailed, run
from benchmarks.peers.environments import WORK, Environment

LLAMACPP = WORK / "llama.cpp-server"
_PINS = Path(__file__).parent
_GROUP = 64
"""The largest usual group that divides SmolLM2's 576 inputs."""


def environment(name: str) -> Environment:
    """Return a peer's environment, made the first time.

    Raises:
        EngineFailed: pip failed.
    """
    found = Environment(name, WORK, _PINS)
    try:
        found.ensure()
    except subprocess.CalledProcessError as error:
        words = " ".join((_PINS / f"requirements-{name}.txt").read_text(encoding="utf-8").split())
        raise EngineFailed(f"pip could not install {words}") from error
    return found


def openvino(model: str, precision: str) -> Path:
    """Return OpenVINO's directory of a model in ``fp16``, ``int8`` or ``int4``."""
    words = ["export", "openvino", "--task=text-generation-with-past"]
    words += [f"--weight-format={precision}"]
    if precision == "int4":
        words += [f"--group-size={_GROUP}", "--ratio=1.0"]
    tool = environment("openvino").python.with_name("optimum-cli")
    return _made(model, f"openvino-{precision}", [str(tool), *words, "--model={}", "{into}"])


def onnxruntime(model: str, precision: str) -> Path:
    """Return ONNX Runtime GenAI's directory of a model in ``int4``."""
    python = str(environment("onnxruntime").python)
    words = ["-m", "onnxruntime_genai.models.builder", "-i", "{}", "-o", "{into}"]
    words += ["-p", precision, "-e", "cpu", "-c", str(HOME / "onnxruntime-cache")]
    return _made(model, f"onnxruntime-{precision}", [python, *words])


def ctranslate2(model: str, precision: str) -> Path:
    """Return CTranslate2's directory of a model in ``int8``."""
    tool = environment("ctranslate2").python.with_name("ct2-transformers-converter")
    words = ["--model={}", "--output_dir={into}", f"--quantization={precision}"]
    return _made(
        model, f"ctranslate2-{precision}", [str(tool), *words, "--force", "--low_cpu_mem_usage"]
    )


def llamacpp(model: str, precision: str) -> Path:
    """Return the directory with a model's GGUF file in a type of llama.cpp."""
    build_llamacpp()

    def write(into: Path) -> None:
        full = into / "full.gguf"
        checkpoint = str(ensure_checkpoint(model))
        gguf = "from pathlib import Path; from benchmarks.peers.gguf_file import write_gguf; "
        gguf += f"write_gguf(Path({checkpoint!r}), Path({str(full)!r}))"
        # In a process of its own: it holds the whole model in f32.
        _run([sys.executable, "-c", gguf], into.name)
        _run([str(LLAMACPP / "llama-quantize"), str(full), str(into / _GGUF), precision], into.name)
        full.unlink()

    return made_once(HOME / f"{model}-llamacpp-{precision.lower()}", write) / _GGUF


_GGUF = "model.gguf"


def build_llamacpp() -> None:
    """Compile llama.cpp's server the first time.

    Raises:
        EngineFailed: it cannot be compiled here.
    """
    _run([str(_PINS / "llamacpp_build.sh"), str(LLAMACPP)], LLAMACPP.name)


def _made(model: str, name: str, words: Sequence[str]) -> Path:
    def write(into: Path) -> None:
        source = str(ensure_checkpoint(model))
        filled = [word.replace("{into}", str(into)).replace("{}", source) for word in words]
        _run(filled, f"{model}-{name}")

    return made_once(HOME / f"{model}-{name}", write)


def _run(command: Sequence[str], name: str) -> None:
    HOME.mkdir(parents=True, exist_ok=True)
    run(command, HOME / f"{name.lstrip('.')}.log")
