"""How the embedded engine is started."""

import os
import socket
import sys
from pathlib import Path

from gateway.model_settings import VariantSettings

BACKEND = "embedded"
HOST = "127.0.0.1"

TOLD_LATER = Path("-")
"""In the place of a directory: the engine reads it from its standard input."""

OVERHEAD_BYTES = 480 * 1024 * 1024
"""What an engine holds beside weights and cache: Python, PyTorch and the buffers of a step."""

BUDGETED_KV_BYTES = 512 * 1024 * 1024
"""The cache of an engine under a memory budget, unless the settings say another size."""


def command(
    directory: Path,
    *,
    served_name: str,
    port: int,
    settings: VariantSettings,
    kv_cache_memory_bytes: int | None,
    host: str = HOST,
) -> list[str]:
    """Return the command line that serves a checkpoint or an artifact."""
    words = [sys.executable, "-m", "gateway.engine", f"--model={directory}"]
    words += [f"--served-model-name={served_name}", f"--host={host}", f"--port={port}"]
    numbers = {
        "--threads": settings.threads or _share(settings.replicas),
        "--max-model-len": settings.max_model_len,
        "--max-num-seqs": settings.max_num_seqs,
        "--max-num-batched-tokens": settings.max_num_batched_tokens,
        "--kv-cache-memory-bytes": kv_cache_memory_bytes,
    }
    words += [f"{flag}={value:d}" for flag, value in numbers.items() if value is not None]
    if not settings.enable_prefix_caching:
        words += ["--no-enable-prefix-caching"]
    return words


def _share(replicas: int) -> int | None:
    """Return an engine's share of the processors; None: one engine takes all it may use."""
    return None if replicas == 1 else max(1, len(os.sched_getaffinity(0)) // replicas)


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
