"""From a variant's settings to a started vLLM: ask it, plan, refuse what cannot be, start."""

import json
import logging
from pathlib import Path

from compression.events import OnProgress
from compression.presets import load_recipe
from compression.recipe import FULL
from gateway.backends import vllm
from gateway.backends.base import Engine
from gateway.backends.process import EngineProcess
from gateway.backends.vllm import VllmStart
from gateway.backends.vllm_capabilities import plan, require_servable_by
from gateway.backends.vllm_facts import find_python, probe
from gateway.backends.vllm_log import VllmLog
from gateway.backends.vllm_pulse import VllmPulse
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)


async def check_vllm(spec: VariantSpec) -> VllmStart:
    """Return how vLLM is to be started for a variant, before anything is built for it.

    Raises:
        LoadRefused: there is no vLLM that can be used, or it cannot carry out the recipe.
    """
    python = find_python(spec.settings.vllm_python)
    facts = await probe(python)
    recipe = None if spec.settings.recipe == FULL else load_recipe(spec.settings.recipe)
    start = VllmStart(python, facts, plan(recipe, facts))
    # Wrong options are told now, not after minutes of compression.
    vllm.chosen_words(spec.settings, facts)
    return start


def require_servable(start: VllmStart, directory: Path, spec: VariantSpec) -> None:
    """Check that vLLM knows the family and the shapes of what it is to serve.

    Raises:
        LoadRefused: names what does not fit.
    """
    config = json.loads((directory / "config.json").read_bytes())
    require_servable_by(start.facts, config, spec.settings.model)


async def start_vllm(
    spec: VariantSpec,
    directory: Path,
    client: EngineClient,
    *,
    port: int,
    replica: int,
    kv_cache_memory_bytes: int | None,
    otlp_endpoint: str | None,
    timeout_s: float,
    on_progress: OnProgress,
) -> Engine:
    """Return a ready vLLM that serves ``directory`` on ``port``.

    Raises:
        LoadRefused: it cannot carry out the recipe, or lacks an option.
        ChildFailed: it ended, or fell silent while it started; its own words are in the message.
    """
    start = await check_vllm(spec)
    for note in start.plan.notes:
        logger.warning("%s: %s", spec.served_name, note)
    kv_bytes = vllm.kv_cache_bytes(start.facts, kv_cache_memory_bytes)
    return await EngineProcess.start(
        vllm.command(
            start,
            directory,
            served_name=spec.served_name,
            port=port,
            settings=spec.settings,
            kv_cache_memory_bytes=kv_bytes,
            otlp_endpoint=otlp_endpoint,
        ),
        client,
        backend=vllm.BACKEND,
        timeout_s=timeout_s,
        environment=vllm.environment(
            start, settings=spec.settings, replica=replica, kv_cache_memory_bytes=kv_bytes
        ),
        pulse=VllmPulse(client),
        log=VllmLog(spec.served_name, on_progress),
    )
