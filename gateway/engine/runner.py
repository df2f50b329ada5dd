"""The model as the scheduler sees it: token ids and caches in, logits out."""

import logging
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compression.crossover import as_at_any_load, reading_from, tune
from compression.kv.centre_file import read_centres
from compression.loading import Checkpoint
from compression.manifest import Manifest
from compression.packed import PackedLinear
from compression.packed.arena import gather
from compression.packed.linear import NEVER
from compression.recipe import FULL, KvCache
from gateway.engine.cache import Cache, LayerCodecs
from gateway.engine.kv_codecs import describe_cache, make_codecs, require_applied
from gateway.engine.model import Model, load_model
from gateway.engine.scheduler import SMALL_CHUNK

logger = logging.getLogger(__name__)
_NOTABLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Runner:
    """A loaded model; to be called from one thread at a time."""

    decoder: Model
    codecs: tuple[LayerCodecs, ...]
    """How each layer's keys and values are kept."""
    manifest: Manifest | None
    max_model_len: int
    """Tokens, prompt and output together."""

    @property
    def vocab_size(self) -> int:
        """Return the width of the logits."""
        return self.decoder.architecture.vocab_size

    def new_cache(self, max_tokens: int) -> Cache:
        """Return an empty cache with room for ``max_tokens`` tokens."""
        return Cache(self.decoder.architecture, self.codecs, max_tokens)

    @torch.inference_mode()
    def forward(
        self, batch: list[tuple[Cache, list[int], int]], *, is_reading: bool = False
    ) -> Tensor:
        """Append each sequence's new token ids to its cache.

        Args:
            batch: a cache, token ids, and of how many of them, the last ones, logits are wanted.
            is_reading: whether a text is only read, by the same products at every load.

        Returns:
            Float32 logits ``[rows, vocab]``: those wanted of the first sequence, then of the next.
        """
        with as_at_any_load(self.decoder.linears) if is_reading else nullcontext():
            hidden = self.decoder.hidden([(cache, ids) for cache, ids, _ in batch])
            stop, wanted = 0, []
            for _, ids, count in batch:
                stop += len(ids)
                wanted.append(hidden[stop - count : stop])
            if not any(count for _, _, count in batch):
                return torch.empty(0, self.vocab_size)
            return self.decoder.logits(torch.cat(wanted))

    @torch.inference_mode()
    def score(self, ids: list[int]) -> Tensor:
        """Return float32 logits ``[len(ids), vocab]`` of one whole text (teacher forcing)."""
        return self.logits(self.hidden(ids))

    @torch.inference_mode()
    def hidden(self, ids: list[int]) -> Tensor:
        """Read one whole text and return its final hidden states ``[len(ids), hidden_size]``."""
        return self.decoder.hidden([(self.new_cache(len(ids)), ids)])

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits ``[rows, vocab]`` of hidden states ``[rows, hidden_size]``."""
        return self.decoder.logits(hidden)

    def info(self) -> dict[str, Any]:
        """Return what is really held and run, read from the live tensors."""
        held = self.decoder.linears
        other_bytes, num_others = self.decoder.other_weights
        weights_bytes = other_bytes + sum(linear.weight_bytes for linear in held)
        num_weights = num_others + sum(linear.num_weights for linear in held)
        schemes: dict[str, int] = {}
        for linear in held:
            schemes[linear.scheme] = schemes.get(linear.scheme, 0) + 1
        manifest = self.manifest
        return {
            "architecture": self.decoder.architecture.name,
            "dtype": "bfloat16",
            "recipe": FULL if manifest is None else manifest.recipe.name,
            "recipe_digest": None if manifest is None else manifest.recipe_digest,
            "weights_bytes": weights_bytes,
            "weights_bytes_before": weights_bytes if manifest is None else 2 * num_weights,
            "weight_bits": 8 * weights_bytes / num_weights,
            "schemes": schemes,
            "kernels": {scheme: _kernels(held, scheme) for scheme in schemes},
            "numerics": {linear.scheme: linear.numerics for linear in held},
            "dense_from_rows": {
                linear.kernel: None if linear.dense_from == NEVER else linear.dense_from
                for linear in held
            },
            "dense_dtype": str(held[0].dense_dtype).removeprefix("torch."),
            "reads_with": self.reads_with,
            **describe_cache(self.new_cache(1), kv_cache_of(manifest)),
        }

    @property
    def reads_with(self) -> str:
        """Return what a text is read with, in chunks as the scheduler makes them beside others."""
        dense = str(self.decoder.linears[0].dense_dtype).removeprefix("torch.")
        products = {
            f"{each.scheme} {each.numerics}"
            f" {dense if reading_from(each) <= SMALL_CHUNK else each.kernel}"
            for each in self.decoder.linears
        }
        kept = describe_cache(self.new_cache(1), kv_cache_of(self.manifest))["kv_scheme"]
        caches = [f"{part}s {', '.join(sorted(of['applied']))}" for part, of in kept.items()]
        return "; ".join([*sorted(products), *caches])


def kv_cache_of(manifest: Manifest | None) -> KvCache:
    """Return what an artifact asks of the cache; a plain checkpoint asks for bf16."""
    return KvCache() if manifest is None else manifest.recipe.kv_cache


def _kernels(linears: list[PackedLinear], scheme: str) -> str:
    """Return every kernel that layers of one scheme run on, joined by commas."""
    return ", ".join(sorted({linear.kernel for linear in linears if linear.scheme == scheme}))


def load_runner(
    directory: Path,
    *,
    threads: int | None,
    max_model_len: int | None,
    reads_in_float32: bool = False,
) -> Runner:
    """Load a checkpoint or an artifact.

    ``threads`` defaults to the processors this process may use. ``max_model_len`` defaults to the
    checkpoint's context, at most
    :data:`gateway.engine.model.DEFAULT_MAX_MODEL_LEN`. Texts are read in the dtype that is fastest
    here now, or always in float32.

    Raises:
        CompressionError: the directory is no checkpoint or artifact this engine can serve, or its
            cache would not be kept as the artifact asks.
    """
    # Packing is many small steps, which several threads only slow down on a busy machine.
    torch.set_num_threads(1)
    with torch.inference_mode(), Checkpoint(directory) as checkpoint:
        decoder = load_model(checkpoint, max_model_len)
        gather(decoder.linears)
        architecture = decoder.architecture
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        tune(decoder.linears)
        if reads_in_float32:
            for linear in decoder.linears:
                linear.dense_from, linear.dense_dtype, linear.is_timed = 2, torch.float32, False
        kv_cache = kv_cache_of(checkpoint.manifest)
        codecs = make_codecs(kv_cache, architecture, read_centres(directory, architecture))
        runner = Runner(
            decoder=decoder,
            codecs=codecs,
            manifest=checkpoint.manifest,
            max_model_len=decoder.max_tokens,
        )
        require_applied(runner.new_cache(1), kv_cache, architecture)
    _compile(runner)
    return runner


def _compile(runner: Runner) -> None:
    """Let a first step compile its kernels, or read them where they were kept."""
    start = time.perf_counter()
    runner.forward([(runner.new_cache(1), [0], 1)])
    seconds = time.perf_counter() - start
    if seconds > _NOTABLE_S:
        logger.info("compiled the kernels for this processor in %.0f s, once", seconds)
