"""``python -m gateway.engine.fixed_texts``: how far a sound engine is from what a build kept.

It is run once a build, once an upgrade of what computes, and once a kind of processor, and ends
with the artifact's manifest. Texts are read as a serving engine reads them in the background: one
at a time, in the scheduler's chunks.
"""

import argparse
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from compression.artifact import write_manifest
from compression.child import report_progress, run_child
from compression.errors import ArtifactError
from compression.events import OnProgress, Progress
from compression.fixed_texts import (
    FixedText,
    Reading,
    distance,
    mean_distances,
    read_fixed_texts,
)
from compression.manifest import Manifest, read_manifest
from compression.processor import instruction_sets
from compression.verification import require_unchanged
from gateway.engine.runner import Runner, load_runner
from gateway.engine.scheduler import SMALL_CHUNK
from gateway.program import program

logger = logging.getLogger(__name__)


def read(runner: Runner, text: FixedText) -> list[float]:
    """Return the distance of each predicted token of a text, nats."""
    kept = torch.tensor(text.top_ids)
    told: list[list[float]] = []
    for logits in _chunks(runner, text):
        ids = kept[len(told) : len(told) + len(logits)]
        told += (logits.gather(1, ids) - logits.logsumexp(1, keepdim=True)).tolist()
    return [distance(a, b) for a, b in zip(text.logprobs, told, strict=True)]


def _chunks(runner: Runner, text: FixedText) -> Iterator[torch.Tensor]:
    """Yield logits ``[n, vocabulary]`` of the predicted positions."""
    ids = list(text.token_ids[:-1])
    cache = runner.new_cache(len(ids))
    for start in range(0, len(ids), SMALL_CHUNK):
        chunk = ids[start : start + SMALL_CHUNK]
        wanted = min(len(chunk), start + len(chunk) - (text.first - 1))
        logits = runner.forward([(cache, chunk, max(0, wanted))], is_reading=True)
        if wanted > 0:
            yield logits


def add_reading(directory: Path, threads: int | None, on_progress: OnProgress) -> Manifest:
    """Read the texts that an artifact keeps, and put how far off that was into its manifest.

    What the same program read with the same numerics elsewhere holds here as well, and stays. Where
    the manifest cannot be written, as in a read-only store, it is in what is returned alone.

    Raises:
        ArtifactError: it is no artifact, keeps no texts, its files are not as they were built, or
            what it predicts is no number.
        CompressionError: it cannot be loaded.
    """
    manifest = read_manifest(directory)
    record = None if manifest is None else manifest.fixed_texts
    if manifest is None or record is None:
        raise ArtifactError(f"{str(directory)!r} keeps no fixed texts: build it with --fidelity")
    require_unchanged(directory, manifest)
    texts = read_fixed_texts(directory).texts
    runner = load_runner(directory, threads=threads, max_model_len=None)
    reading = _elsewhere(record.reading, runner)
    if reading is None:
        reading = Reading(
            version=program(),
            numerics=runner.reads_with,
            distances=_distances(runner, texts, directory, on_progress),
            processors=(instruction_sets(),),
        )
    known = manifest.model_copy(
        update={"fixed_texts": record.model_copy(update={"reading": reading})}
    )
    try:
        write_manifest(known, directory)
    except OSError as error:
        logger.warning("the texts are read at each load, as this cannot be kept: %s", error)
    return known


def _elsewhere(reading: Reading | None, runner: Runner) -> Reading | None:
    """Return a reading that was made by the same means on another processor, to hold here too."""
    if reading is None or (reading.version, reading.numerics) != (program(), runner.reads_with):
        return None
    processors = {*reading.processors, instruction_sets()}
    return reading.model_copy(update={"processors": tuple(sorted(processors))})


def _distances(
    runner: Runner, texts: Sequence[FixedText], directory: Path, on_progress: OnProgress
) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for number, text in enumerate(texts):
        on_progress(Progress("measure", number, len(texts), "units", text.name))
        found.setdefault(text.name, []).extend(read(runner, text))
    distances = mean_distances(found)
    for name, nats in distances.items():
        if not math.isfinite(nats):
            raise ArtifactError(
                f"what {str(directory)!r} predicts of the fixed text {name!r} is no number here: "
                "build it again, or try another machine"
            )
    return distances


def main(arguments: list[str] | None = None) -> int:
    """Run the one verb and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gateway.engine.fixed_texts")
    parser.add_argument("--model", type=Path, required=True, help="directory of the artifact")
    parser.add_argument("--threads", type=int, help="CPU threads of the model")
    options = parser.parse_args(arguments)
    return run_child(lambda: ("ready", _run(options)))


def _run(options: argparse.Namespace) -> dict[str, Any]:
    manifest = add_reading(options.model, options.threads, report_progress)
    return {"manifest": manifest.model_dump(mode="json")}


if __name__ == "__main__":
    sys.exit(main())
