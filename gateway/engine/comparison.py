"""Recipes against the full model, on the kernels that serve: fidelity, size and decode speed."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from compression import bootstrap
from compression.errors import RecipeError
from compression.evaluation import WINDOW_TOKENS, Tokenizer, cut
from compression.events import OnProgress
from compression.fidelity import TokenScores, pool, summarize
from compression.prepare import Prepared
from compression.presets import load_recipe
from compression.recipe import FULL
from gateway.engine.decode_path import decoded_rows, summarize_decode_path
from gateway.engine.decode_speed import decode_ms, decode_shape
from gateway.engine.machine import describe_machine
from gateway.engine.side_by_side import Counter, Cut, Live, Runner, score
from gateway.engine.vllm_comparison import ESTIMATOR, Reader, require_plain_caches, score_on_vllm

BUILTIN = "built-in"
_MEMORY_SHARE = 0.6


Prepare = Callable[[str, str, str | None, OnProgress], Prepared]
LoadRunner = Callable[[Path], Runner]
LoadTokenizer = Callable[[Path], Tokenizer]
Serve = Callable[[Path, int], AbstractContextManager[Reader]]
"""A directory and the tokens of a text → vLLM that reads such texts."""


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
    serve: Serve | None = None,
) -> dict[str, Any]:
    """Measure each recipe against the full model and return the report, as plain data.

    Logits are never stored: each window is read by the full model and the recipes in one turn, and
    logits are made of a few positions at a time. Recipes that do not fit into ``memory_bytes``
    together (default: most of what is free) take turns beside the full model.

    Keys: ``model, text, created, window_tokens, decode, confidence, recipes, machine, seconds``.
    A recipe has ``recipe, recipe_digest, bits_per_weight, bytes, bytes_full`` (weights in memory,
    read from the live tensors), ``ms_per_token, ms_per_token_full, decode_path_kld,
    decode_path_kld_full`` (see :mod:`gateway.engine.decode_path`), ``slices`` (worst first),
    ``all, worst_slice``; a slice, and ``all`` of them pooled, has the fields of
    :class:`compression.fidelity.Fidelity`. The command line adds ``command``.

    With ``serve`` each recipe is also run by vLLM, and has ``vllm``, see :func:`_on_vllm`.

    Raises:
        CompressionError: a recipe, the model or the text refuses.
    """
    began = time.monotonic()
    names = recipe_names(recipes)
    if serve is not None:
        require_plain_caches([load_recipe(each) for each in names.values() if each != FULL])
    directory = prepare(model, FULL, revision, on_progress).directory
    prepared = {
        name: prepare(model, recipe, revision, on_progress) for name, recipe in names.items()
    }
    full = load_runner(directory)
    # vLLM scores nothing without writing a token, for which there must be room.
    window_tokens = min(WINDOW_TOKENS, full.max_model_len - (serve is not None))
    windows = _cut(slices, load_tokenizer(directory), window_tokens, max_tokens)
    groups = _groups(prepared, _free_bytes() if memory_bytes is None else memory_bytes)
    context, steps = decode_shape(full)
    work = (len(prepared) + len(groups)) * (_work(windows) + steps)
    work += len(prepared) * _tokens(windows) * (serve is not None)
    counter = Counter(on_progress, work)
    counter.add(0, "reading the text")
    measured: dict[str, dict[str, Any]] = {}
    for group in groups:
        chosen = {name: prepared[name] for name in group}
        measured |= _measure(full, chosen, windows, load_runner, counter, serve)
    kernels = {FULL: full.info()["kernels"]}
    kernels |= {name: part.pop("kernels") for name, part in measured.items()}
    return {
        "model": model,
        "text": text,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "window_tokens": window_tokens,
        "decode": {"context_tokens": context, "steps": steps},
        "confidence": bootstrap.describe(),
        "recipes": list(measured.values()),
        "machine": describe_machine(kernels),
        "seconds": round(time.monotonic() - began, 2),
    }


def _cut(
    slices: Mapping[str, str], tokenizer: Tokenizer, window_tokens: int, max_tokens: int | None
) -> Cut:
    return {
        name: cut(name, body, tokenizer, window_tokens=window_tokens, max_tokens=max_tokens)
        for name, body in slices.items()
    }


def _work(windows: Cut) -> int:
    """Return the tokens that each model reads and decodes."""
    return _tokens(windows) + sum(decoded_rows(parts[0]).stop for parts in windows.values())


def _tokens(windows: Cut) -> int:
    return sum(len(window.token_ids) for parts in windows.values() for window in parts)


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


def _groups(prepared: Mapping[str, Prepared], memory_bytes: int) -> list[list[str]]:
    """Return the names of recipes that are held in memory at a time: all of them, or one."""
    if sum(_weight_bytes(each) for each in prepared.values()) <= memory_bytes:
        return [list(prepared)]
    return [[name] for name in prepared]


def _weight_bytes(prepared: Prepared) -> int:
    if prepared.manifest is not None:
        return prepared.manifest.bytes_in_memory
    return sum(path.stat().st_size for path in prepared.directory.glob("*.safetensors"))


def _free_bytes() -> int:
    return int(_MEMORY_SHARE * psutil.virtual_memory().available)


def _measure(
    full: Runner,
    group: Mapping[str, Prepared],
    windows: Cut,
    load_runner: LoadRunner,
    counter: Counter,
    serve: Serve | None,
) -> dict[str, dict[str, Any]]:
    """Load the recipes of one group, measure them beside the full model and let go of them.

    Return the part of the report about each recipe, by its name.
    """
    reference = Live(FULL, full)
    # Loaded twice, the full model could choose its kernels otherwise and differ from itself.
    recipes = [
        Live(name, full if name == FULL else load_runner(each.directory))
        for name, each in group.items()
    ]
    models = [reference, *recipes]
    score(models, windows, counter)
    context, steps = decode_shape(full)
    text = [token for parts in windows.values() for window in parts for token in window.token_ids]
    text *= 1 + (context + steps) // len(text)
    full_ms, *recipes_ms = decode_ms(
        [model.runner for model in models], text[: context + steps], context
    )
    counter.add(steps * len(models), "decode speed")
    on_vllm: dict[str, Any] = {}
    if serve is not None:
        for recipe in recipes:
            counter.add(0, f"{recipe.name} on vLLM: starting")
            with serve(group[recipe.name].directory, _longest(windows)) as reader:
                on_vllm[recipe.name] = _on_vllm(reader, reference, recipe, windows, counter)
    return {
        recipe.name: {
            **_describe(recipe.name, group[recipe.name], recipe.runner.info(), full.info()),
            "ms_per_token": milliseconds,
            "ms_per_token_full": full_ms,
            "decode_path_kld": summarize_decode_path(recipe.decode_path),
            "decode_path_kld_full": summarize_decode_path(reference.decode_path),
            **_fidelity(recipe.scores),
            **({"vllm": on_vllm[recipe.name]} if on_vllm else {}),
        }
        for recipe, milliseconds in zip(recipes, recipes_ms, strict=True)
    }


def _longest(windows: Cut) -> int:
    return max(len(window.token_ids) for parts in windows.values() for window in parts)


def _on_vllm(
    reader: Reader, full: Live, recipe: Live, windows: Cut, counter: Counter
) -> dict[str, Any]:
    """Return what the report says of a recipe on vLLM.

    ``slices, all, worst_slice`` are as the embedded engine's, but for their estimator; ``embedded``
    has these three of the embedded engine on the same support, see
    :mod:`compression.fidelity_support`.
    """
    scores = score_on_vllm(reader, full, recipe, windows, counter)
    return {
        "version": reader.version,
        "estimator": ESTIMATOR,
        "top": reader.top,
        "kernels": dict(reader.kernels),
        "numerics": dict(reader.numerics),
        **_fidelity(scores.by_vllm),
        "embedded": _fidelity(scores.by_embedded),
    }


def _describe(
    name: str, prepared: Prepared, info: Mapping[str, Any], full: Mapping[str, Any]
) -> dict[str, Any]:
    manifest = prepared.manifest
    return {
        "recipe": name,
        "recipe_digest": None if manifest is None else manifest.recipe_digest,
        "bits_per_weight": info["weight_bits"],
        "bytes": info["weights_bytes"],
        "bytes_full": full["weights_bytes"],
        "kernels": info["kernels"],
    }


def _fidelity(parts: Mapping[str, Sequence[TokenScores]]) -> dict[str, Any]:
    """Return the statistics of each slice, worst first, and of all of them."""
    scores = {name: pool(measured) for name, measured in parts.items()}
    slices = {name: summarize(measured) for name, measured in scores.items()}
    worst_first = sorted(slices, key=lambda name: -slices[name].kld_mean)
    return {
        "slices": {name: slices[name].as_json() for name in worst_first},
        "all": summarize(*scores.values()).as_json(),
        "worst_slice": worst_first[0],
    }
