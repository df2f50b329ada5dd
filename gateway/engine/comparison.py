"""Recipes against the full model, on the kernels that serve: fidelity, size and decode speed."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from compression.errors import RecipeError
from compression.evaluation import (
    WINDOW_TOKENS,
    Tokenizer,
    Window,
    cut,
)
from compression.events import OnProgress, Progress
from compression.fidelity import TokenScores, pool, require_finite, score_tokens, summarize
from compression.prepare import Prepared
from compression.recipe import FULL, load_recipe
from gateway.engine.decode_speed import Decoder, decode_ms, decode_shape

BUILTIN = "built-in"
_MEMORY_SHARE = 0.6


class Runner(Decoder, Protocol):
    """What is needed of a loaded model."""

    def score(self, ids: list[int], /) -> torch.Tensor:
        """Return float32 logits ``[len(ids), vocab_size]``."""
        ...

    def info(self) -> dict[str, Any]:
        """Return what is loaded: bytes and bits of the live weights, kernels."""
        ...


Prepare = Callable[[str, str, str | None, OnProgress], Prepared]
LoadRunner = Callable[[Path], Runner]
LoadTokenizer = Callable[[Path], Tokenizer]
Cut = Mapping[str, Sequence[Window]]


@dataclass(slots=True)
class _Candidate:
    """One recipe under test and what was measured of it so far."""

    name: str
    prepared: Prepared
    scores: dict[str, list[TokenScores]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    ms_per_token: float = 0.0
    ms_per_token_full: float = 0.0


@dataclass(slots=True)
class _Counter:
    """Tokens read of all, reported as they are."""

    on_progress: OnProgress
    total: int
    done: int = 0

    def add(self, tokens: int, detail: str) -> None:
        self.done += tokens
        self.on_progress(Progress("compare", self.done, self.total, "tokens", detail))


def compare(
    model: str,
    recipes: Sequence[str],
    slices: Mapping[str, str],
    *,
    prepare: Prepare,
    load_runner: LoadRunner,
    load_tokenizer: LoadTokenizer,
    on_progress: OnProgress,
    revision: str | None = None,
    text: str = BUILTIN,
    max_tokens: int | None = None,
    memory_bytes: int | None = None,
) -> dict[str, Any]:
    """Measure each recipe against the full model and return the report, as plain data.

    Logits are never stored: each window is read by the full model and the recipes in one turn.
    Recipes that do not fit into ``memory_bytes`` together (default: most of what is free) take
    turns beside the full model.

    Keys: ``model, text, window_tokens, decode, recipes, machine, seconds``. A recipe has
    ``recipe, recipe_digest, bits_per_weight, bytes, bytes_full`` (weights in memory, read from
    the live tensors), ``ms_per_token, ms_per_token_full, slices, all, worst_slice``; a slice, and
    ``all`` of them pooled, has the fields of :class:`compression.fidelity.Fidelity`.

    Raises:
        CompressionError: a recipe, the model or the text refuses.
    """
    began = time.monotonic()
    names = recipe_names(recipes)
    directory = prepare(model, FULL, revision, on_progress).directory
    candidates = [
        _Candidate(name, prepare(model, recipe, revision, on_progress))
        for name, recipe in names.items()
    ]
    full = load_runner(directory)
    window_tokens = min(WINDOW_TOKENS, full.max_model_len)
    tokenizer = load_tokenizer(directory)
    windows = {
        name: cut(name, body, tokenizer, window_tokens=window_tokens, max_tokens=max_tokens)
        for name, body in slices.items()
    }
    groups = _groups(candidates, _free_bytes() if memory_bytes is None else memory_bytes)
    context, steps = decode_shape(full)
    tokens = sum(len(window.token_ids) for parts in windows.values() for window in parts)
    counter = _Counter(on_progress, (len(candidates) + len(groups)) * (tokens + steps))
    counter.add(0, "reading the text")
    for group in groups:
        _measure(full, group, windows, load_runner, counter)
    return {
        "model": model,
        "text": text,
        "window_tokens": window_tokens,
        "decode": {"context_tokens": context, "steps": steps},
        "recipes": [_result(candidate, full.info()) for candidate in candidates],
        "machine": _machine(full, candidates),
        "seconds": round(time.monotonic() - began, 2),
    }


def recipe_names(recipes: Sequence[str]) -> dict[str, str]:
    """Return each recipe as it was given, by its name, in order and without repetitions.

    Raises:
        RecipeError: a recipe is unknown, or two different ones have one name.
    """
    names: dict[str, str] = {}
    for recipe in recipes:
        name = FULL if recipe == FULL else load_recipe(recipe).name
        if names.setdefault(name, recipe) != recipe:
            raise RecipeError(f"{names[name]!r} and {recipe!r} are both named {name!r}: rename one")
    return names


def _groups(candidates: list[_Candidate], memory_bytes: int) -> list[list[_Candidate]]:
    """Return the recipes that are held in memory at a time: all of them, or one."""
    if sum(_weight_bytes(candidate.prepared) for candidate in candidates) <= memory_bytes:
        return [candidates]
    return [[candidate] for candidate in candidates]


def _weight_bytes(prepared: Prepared) -> int:
    if prepared.manifest is not None:
        return prepared.manifest.bytes_in_memory
    return sum(path.stat().st_size for path in prepared.directory.glob("*.safetensors"))


def _free_bytes() -> int:
    return int(_MEMORY_SHARE * psutil.virtual_memory().available)


def _measure(
    full: Runner,
    group: Sequence[_Candidate],
    windows: Cut,
    load_runner: LoadRunner,
    counter: _Counter,
) -> None:
    """Load the recipes of one group, measure them beside the full model and let go of them."""
    runners = [load_runner(candidate.prepared.directory) for candidate in group]
    _score(full, runners, group, windows, counter)
    context, steps = decode_shape(full)
    text = [token for parts in windows.values() for window in parts for token in window.token_ids]
    text *= 1 + (context + steps) // len(text)
    full_ms, *recipes_ms = decode_ms([full, *runners], text[: context + steps], context)
    counter.add(steps * (1 + len(runners)), "decode speed")
    for candidate, runner, milliseconds in zip(group, runners, recipes_ms, strict=True):
        candidate.ms_per_token = milliseconds
        candidate.ms_per_token_full = full_ms
        candidate.info = runner.info()


def _score(
    full: Runner,
    runners: Sequence[Runner],
    group: Sequence[_Candidate],
    windows: Cut,
    counter: _Counter,
) -> None:
    for name, parts in windows.items():
        for window in parts:
            token_ids = list(window.token_ids)
            expected = full.score(token_ids)[window.rows]
            require_finite(expected, recipe=FULL, slice_name=name)
            counter.add(len(token_ids), f"{FULL} on {name}")
            for candidate, runner in zip(group, runners, strict=True):
                logits = runner.score(token_ids)[window.rows]
                require_finite(logits, recipe=candidate.name, slice_name=name)
                measured = score_tokens(expected, logits, window.targets)
                candidate.scores.setdefault(name, []).append(measured)
                counter.add(len(token_ids), f"{candidate.name} on {name}")


def _result(candidate: _Candidate, full: Mapping[str, Any]) -> dict[str, Any]:
    manifest = candidate.prepared.manifest
    slices = {name: asdict(summarize(pool(parts))) for name, parts in candidate.scores.items()}
    everything = [part for parts in candidate.scores.values() for part in parts]
    return {
        "recipe": candidate.name,
        "recipe_digest": None if manifest is None else manifest.recipe_digest,
        "bits_per_weight": candidate.info["weight_bits"],
        "bytes": candidate.info["weights_bytes"],
        "bytes_full": full["weights_bytes"],
        "ms_per_token": candidate.ms_per_token,
        "ms_per_token_full": candidate.ms_per_token_full,
        "slices": slices,
        "all": asdict(summarize(pool(everything))),
        "worst_slice": max(slices, key=lambda name: float(slices[name]["kld_mean"])),
    }


def _machine(full: Runner, candidates: Sequence[_Candidate]) -> dict[str, Any]:
    kernels = {candidate.name: candidate.info["kernels"] for candidate in candidates}
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": {FULL: full.info()["kernels"], **kernels},
    }


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
