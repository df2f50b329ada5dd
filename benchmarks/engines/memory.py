"""What our engine holds while eight streams fill their contexts, against what it must."""

from pathlib import Path
from typing import Any

from benchmarks.engines.checkpoints import HOME, LLAMA_1B, ensure_checkpoint
from benchmarks.engines.contestants import start_ours
from benchmarks.engines.measures import Measure, Prompts
from compression.events import ignore
from compression.facts import read_facts
from compression.kv.layers import bytes_per_token
from compression.manifest import read_manifest
from compression.prepare import prepare_recipe
from compression.presets import load_recipe
from compression.recipe import Calibration, Recipe
from compression.schemes import Int4

RECIPE = "w4-kv8"
STREAMS, CONTEXT, _ANSWER = 8, 1024, 96
_ROOM = 1.1
"""The last page of a sequence is not full."""


def measure(model: str) -> dict[str, Any]:
    """Return the peak of an engine of a model and its parts, in MB.

    Raises:
        EngineFailed: it did not start, or broke.
    """
    recipe = _recipe(model)
    checkpoint = ensure_checkpoint(model)
    directory = prepare_recipe(str(checkpoint), recipe, None, ignore).directory
    architecture = read_facts(checkpoint).architecture
    pages = STREAMS * CONTEXT * bytes_per_token(recipe.kv_cache, architecture)
    asked = Measure("memory", "", "MB", CONTEXT - _ANSWER, _ANSWER, lambda _: 0.0, streams=STREAMS)
    prompts = Prompts(model).draw(asked, 0)
    log = HOME / f"memory-{model}.log"
    with start_ours(directory, log, kv_bytes=int(_ROOM * pages), streams=STREAMS) as engine:
        loaded = _Resident(engine.process.pid)
        idle, loading = loaded.now_mb, loaded.peak_mb
        loaded.forget_peak()
        engine.generate(prompts, _ANSWER)
        peak = loaded.peak_mb
    return {
        "recipe": recipe.name,
        "streams": STREAMS,
        "context": CONTEXT,
        "weights_mb": weights_bytes(directory) / 1e6,
        "pages_mb": pages / 1e6,
        "loading_peak_mb": loading,
        "idle_mb": idle,
        "peak_mb": peak,
    }


def weights_bytes(artifact: Path) -> int:
    """Return the bytes of an artifact's weights in memory; all are read for every token."""
    manifest = read_manifest(artifact)
    if manifest is None:
        raise ValueError(f"{artifact} is no artifact")
    return manifest.bytes_in_memory


def _recipe(model: str) -> Recipe:
    recipe = load_recipe(RECIPE)
    if model != LLAMA_1B:
        return recipe
    # The same layout; calibration has nothing to see in random weights.
    changed = {"weights": Int4(method="mse"), "calibration": Calibration()}
    return recipe.model_copy(update={"name": f"{RECIPE}-fast", **changed})


class _Resident:
    """The resident memory of a process, shared libraries included, in MB."""

    def __init__(self, pid: int) -> None:
        self._files = Path("/proc", str(pid))

    @property
    def now_mb(self) -> float:
        """Return what it holds now."""
        return self._field("VmRSS")

    @property
    def peak_mb(self) -> float:
        """Return the most it has held since its start, or since the peak was forgotten."""
        return self._field("VmHWM")

    def forget_peak(self) -> None:
        """Begin a new peak."""
        (self._files / "clear_refs").write_text("5", encoding="ascii")

    def _field(self, name: str) -> float:
        lines = (self._files / "status").read_text(encoding="ascii").splitlines()
        [line] = [line for line in lines if line.startswith(f"{name}:")]
        return int(line.split()[1]) * 1024 / 1e6
