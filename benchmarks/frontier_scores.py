"""Scores of points, remembered beside what they were measured on."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.frontier_evaluator import Cut, Evaluator
from benchmarks.frontier_points import Point
from benchmarks.peers.exchange import linears


class Scorer:
    """Gives the figures of a point: measured once for each result and text."""

    def __init__(self, checkpoint: Path, windows: Cut, memory: Path) -> None:
        self._checkpoint = checkpoint
        self._windows = windows
        self._memory = memory
        self._evaluator: Evaluator | None = None
        self._num_weights = sum(weight.numel() for _, weight in linears(checkpoint))

    def figures(self, point: Point) -> dict[str, Any]:
        """Return sizes and fidelity of a point as plain data."""
        total = point.sizes.linear_bytes + point.sizes.embedding_bytes
        return {
            **asdict(point.sizes),
            "is_ours": point.is_ours,
            "bytes": total,
            "stored_bytes": point.stored_bytes,
            "linear_bits": 8 * point.sizes.linear_bytes / self._num_weights,
            **self._fidelity(point),
        }

    def _fidelity(self, point: Point) -> dict[str, Any]:
        memory = self._memory / f"{self._key(point)}.json"
        if memory.is_file():
            remembered: dict[str, Any] = json.loads(memory.read_text(encoding="utf-8"))
            return remembered
        if self._evaluator is None:
            self._evaluator = Evaluator(self._checkpoint, self._windows)
        slices, pooled = self._evaluator.score(point.read(point.directory), label=point.sizes.name)
        divergences = {name: fidelity.kld_mean for name, fidelity in slices.items()}
        worst = max(divergences, key=divergences.__getitem__)
        measured = {
            "kld": sum(divergences.values()) / len(divergences),
            "kld_ci95": list(pooled.kld_mean_ci95),
            "worst_slice": worst,
            "worst_kld": divergences[worst],
            "top1": pooled.top1,
            "slices": divergences,
        }
        self._memory.mkdir(parents=True, exist_ok=True)
        memory.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        return measured

    def _key(self, point: Point) -> str:
        """Return a name for this result on this text: it changes when either does."""
        text = [[window.token_ids for window in parts] for parts in self._windows.values()]
        files = sorted(point.directory.glob("*.safetensors"))
        stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        body = json.dumps([point.directory.name, stamps, text])
        return f"{point.directory.name}-{hashlib.sha256(body.encode()).hexdigest()[:16]}"
