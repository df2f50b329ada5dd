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
    if settings.threads is not None:
        words += [f"--threads={settings.threads}"]
    if settings.max_model_len is not None:
        words += [f"--max-model-len={settings.max_model_len}"]
    return words


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
