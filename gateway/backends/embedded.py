"""How the embedded engine is started."""

import socket
import sys
from pathlib import Path

from gateway.settings import ModelSettings

BACKEND = "embedded"
HOST = "127.0.0.1"


def command(directory: Path, *, served_name: str, port: int, settings: ModelSettings) -> list[str]:
    """Return the command line that serves a checkpoint or an artifact."""
    words = [sys.executable, "-m", "gateway.engine", f"--model={directory}"]
    words += [f"--served-model-name={served_name}", f"--host={HOST}", f"--port={port}"]
    numbers = {
        "--threads": settings.threads,
        "--max-model-len": settings.max_model_len,
        "--max-num-seqs": settings.max_num_seqs,
        "--max-num-batched-tokens": settings.max_num_batched_tokens,
        "--kv-cache-memory-bytes": settings.kv_cache_memory_bytes,
    }
    words += [f"{flag}={value:d}" for flag, value in numbers.items() if value is not None]
    if not settings.enable_prefix_caching:
        words += ["--no-enable-prefix-caching"]
    return words


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
