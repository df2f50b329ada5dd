"""llama.cpp's quantizations, each with the importance matrix of the common calibration text.

``llamacpp_build.sh`` builds the quantizer. Rows whose length is no multiple of 256 cannot hold
k-quants: llama.cpp takes 32-wide blocks of more bits for them (576 inputs in the demo model); the
types are told and the sizes counted as they come out.
"""

import subprocess
import sys
from pathlib import Path

from gguf import GGUFReader, LlamaFileType

from benchmarks.peers.exchange import EMBEDDING, Sizes, is_written, read_calibration, write
from benchmarks.peers.gguf_file import write_gguf
from benchmarks.peers.importance import write_importance
from compression.gguf_checkpoint import GgufLlama, hugging_face_name

TYPES = ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "Q4_0", "Q4_1", "Q4_K_S", "Q5_K_S", "IQ4_XS")
TOOLS = "llama.cpp-tools"
THREADS = 2


def main(checkpoint: Path, work: Path) -> None:
    """Write the weights of each quantization type."""
    scratch = work / "llama.cpp"
    scratch.mkdir(exist_ok=True)
    full, importance = scratch / "full.gguf", scratch / "importance.gguf"
    if not full.is_file():
        write_gguf(checkpoint, full)
    if not importance.is_file():
        write_importance(checkpoint, read_calibration(work), importance)
    version = (work / TOOLS / "VERSION").read_text(encoding="utf-8").strip()
    for kind in TYPES:
        directory = work / f"gguf-{kind.lower()}"
        if not is_written(directory):
            quantized = scratch / f"{kind}.gguf"
            quantize(work / TOOLS / "llamacpp_quantize", full, quantized, kind, importance)
            hand_over(quantized, directory, kind, version)
            quantized.unlink()


def quantize(tool: Path, full: Path, quantized: Path, kind: str, importance: Path) -> None:
    """Let llama.cpp write ``quantized``; what it says goes to a log beside it.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    number = int(LlamaFileType[f"MOSTLY_{kind}"])
    words = [tool, full, quantized, number, importance, THREADS]
    with quantized.with_suffix(".log").open("w", encoding="utf-8") as log:
        subprocess.run([str(word) for word in words], check=True, stdout=log, stderr=log)


def hand_over(path: Path, directory: Path, kind: str, version: str) -> None:
    """Write a GGUF file's weights, dequantized, under their Hugging Face names."""
    weights = {name: weight for name, weight in GgufLlama(path).tensors() if weight.dim() == 2}
    num_bytes, types = {}, {}
    for tensor in GGUFReader(path).tensors:
        name = hugging_face_name(tensor.name)
        num_bytes[name], types[name] = int(tensor.n_bytes), tensor.tensor_type.name
    linears = [name for name in weights if ".layers." in name]
    used = [types[name] for name in linears]
    counts = ", ".join(f"{used.count(each)} {each}" for each in sorted(set(used)))
    sizes = Sizes(
        name=f"llama.cpp {kind}",
        version=version,
        settings=f"imatrix; linears: {counts}",
        linear_bytes=sum(num_bytes[name] for name in linears),
        embedding_bytes=num_bytes[EMBEDDING],
        embedding=types[EMBEDDING],
    )
    write(directory, weights, sizes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
