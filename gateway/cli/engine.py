"""``narrowgate engine``: one engine by itself, for a gateway that reaches it by its address."""

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compression.manifest import read_manifest
from compression.recipe import FULL
from gateway.backends import embedded, vllm
from gateway.cli.jobs import run_until_signal
from gateway.cli.serving import model_fields
from gateway.errors import LoadRefused
from gateway.launch import prepare
from gateway.listening import warn_if_open
from gateway.prepared import Prepared, num_weights, told_of
from gateway.settings import load_settings
from gateway.specs import VariantSpec, default_alias, make_specs
from gateway.terminal import Terminal
from gateway.vllm_launch import check_vllm, recipe_of, with_context


@dataclass(frozen=True, slots=True)
class _Program:
    """What this process is to become."""

    words: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def run_engine(options: argparse.Namespace, terminal: Terminal) -> int:
    """Prepare the model, then become its engine; a signal before that ends it."""
    name = options.name or default_alias(options.model)
    settings = load_settings(None, {"models": {name: model_fields(options)}}, {})
    (model,) = make_specs(settings)
    (spec,) = model.variants
    code, engine = run_until_signal(_prepare(spec, options, terminal))
    if engine is not None:
        warn_if_open(
            options.host, has_keys=False, remedy="an engine knows none, let only the gateway in"
        )
        terminal.note(f"{spec.alias}: its engine starts on {options.host} port {options.port}")
        os.execve(engine.words[0], engine.words, {**os.environ, **engine.environment})  # noqa: S606
    return code


async def _prepare(spec: VariantSpec, options: argparse.Namespace, terminal: Terminal) -> _Program:
    """Return the engine, its model compressed or found in the store.

    Raises:
        LoadRefused: the model or the recipe cannot be used, or not with this engine.
        ChildFailed: the compression crashed, or made no progress.
    """
    settings = spec.settings
    prepared = await prepare(
        spec,
        terminal.on_progress,
        is_measured=options.fidelity,
        stall_s=options.prepare_timeout_s,
    )
    if prepared.directory is None:
        raise LoadRefused(f"{spec.alias}: there is nothing to serve")
    if settings.engine == vllm.BACKEND:
        return await _vllm(spec, prepared, prepared.directory, options)
    words = embedded.command(
        prepared.directory,
        served_name=spec.alias,
        host=options.host,
        port=options.port,
        settings=settings,
        kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
    )
    return _Program([*words, "--no-end-with-parent"])


async def _vllm(
    spec: VariantSpec, prepared: Prepared, directory: Path, options: argparse.Namespace
) -> _Program:
    start = await check_vllm(spec.settings, recipe_of(spec.settings))
    settings = with_context(spec.settings, directory)
    kv_bytes = vllm.kv_cache_bytes(start.facts, settings.kv_cache_memory_bytes)
    words = vllm.command(
        start,
        directory,
        served_name=spec.alias,
        host=options.host,
        port=options.port,
        settings=settings,
        kv_cache_memory_bytes=kv_bytes,
    )
    environment = vllm.environment(
        start, settings=settings, replica=0, kv_cache_memory_bytes=kv_bytes
    )
    environment[vllm.ARTIFACT_VARIABLE] = json.dumps(told_by_vllm(prepared.manifest, directory))
    return _Program(words, environment)


def told_by_vllm(manifest: Mapping[str, Any] | None, directory: Path) -> dict[str, Any]:
    """Return what a vLLM that runs by itself must be told of what it serves.

    ``manifest`` is that of the artifact which was asked for; None: the full model, although an
    artifact may lie where it should be.

    Raises:
        ArtifactError: there is a manifest, and it is unreadable.
    """
    if manifest is None:
        found = read_manifest(directory)
        if found is None:
            return {"recipe": FULL}
        manifest = found.model_dump(mode="json")
    return {
        **told_of(manifest, rounds_at_load=False),
        "weights_bytes_before": manifest["bytes_before"],
        "num_weights": num_weights(manifest),
    }
