"""What our engine holds while eight streams fill their contexts, against what it must."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.engines.checkpoints import HOME, SMOLLM2, ensure_artifact, ensure_checkpoint
from benchmarks.engines.contestants import Engine, start_ours
from benchmarks.engines.measures import Measure, Prompts
from compression.facts import read_facts
from compression.kv.layers import bytes_per_token
from compression.manifest import read_manifest
from compression.presets import load_recipe

RECIPE = "w4-kv8"
STREAMS, CONTEXT, _ANSWER = 8, 1024, 96
_ROOM = 1.1
"""The last page of a sequence is not full."""
_EVERY_S = 0.25


def measure() -> dict[str, Any]:
    """Return the peak of an engine of SmolLM2 and its parts, in MB.

    Raises:
        EngineFailed: it did not start, or broke.
    """
    directory = ensure_artifact(SMOLLM2, RECIPE)
    architecture = read_facts(ensure_checkpoint(SMOLLM2)).architecture
    pages = STREAMS * CONTEXT * bytes_per_token(load_recipe(RECIPE).kv_cache, architecture)
    asked = Measure("memory", "", "MB", CONTEXT - _ANSWER, _ANSWER, lambda _: 0.0, streams=STREAMS)
    prompts = Prompts(SMOLLM2).draw(asked, 0)
    log = HOME / "memory.log"
    with start_ours(directory, log, kv_bytes=int(_ROOM * pages), streams=STREAMS) as engine:
        idle = engine.memory_mb()
        with _Peak(engine) as peak:
            engine.generate(prompts, _ANSWER)
    return {
        "recipe": RECIPE,
        "streams": STREAMS,
        "context": CONTEXT,
        "weights_mb": weights_bytes(directory) / 1e6,
        "pages_mb": pages / 1e6,
        "idle_mb": idle,
        "peak_mb": peak.mb,
    }


def weights_bytes(artifact: Path) -> int:
    """Return the bytes of an artifact's weights in memory; all are read for every token."""
    manifest = read_manifest(artifact)
    if manifest is None:
        raise ValueError(f"{artifact} is no artifact")
    return manifest.bytes_in_memory


class _Peak:
    """Reads an engine's memory now and then while the block runs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.mb = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self.mb = max(self.mb, self._engine.memory_mb())
