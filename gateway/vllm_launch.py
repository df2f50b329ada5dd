"""From a variant's settings to a started vLLM: ask it, plan, refuse what cannot be, start."""

import json
import logging
from pathlib import Path

from compression.events import OnProgress
from compression.presets import load_recipe
from compression.recipe import FULL, Recipe
from gateway.backends import vllm
from gateway.backends.process import EngineProcess
from gateway.backends.vllm import VllmStart
from gateway.backends.vllm_checkpoint import require_servable_by
from gateway.backends.vllm_facts import find_python, probe
from gateway.backends.vllm_log import VllmLog
from gateway.backends.vllm_plan import plan
from gateway.backends.vllm_pulse import VllmPulse
from gateway.backends.vllm_weights import require_fp8_weights
from gateway.model_settings import VariantSettings
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)


async def check_vllm(settings: VariantSettings, recipe: Recipe | None) -> VllmStart:
    """Return how vLLM is to be started for a recipe (None: the full model), before it is built.

    Raises:
        LoadRefused: there is no vLLM that can be used, or it cannot carry out the recipe.
    """
    python = find_python(settings.vllm_python)
    facts = await probe(python)
    start = VllmStart(python, facts, plan(recipe, facts))
    # Wrong options are told now, not after minutes of compression.
    vllm.chosen_words(settings, facts)
    require_fp8_weights(settings.vllm_options.get("quantization"), facts)
    return start


def recipe_of(settings: VariantSettings) -> Recipe | None:
    """Return the recipe of a variant; None for the full model.

    Raises:
        RecipeError: it is unknown.
    """
    return None if settings.recipe == FULL else load_recipe(settings.recipe)


def require_servable(start: VllmStart, directory: Path, model: str) -> None:
    """Check that vLLM knows the family and the shapes of what it is to serve.

    Raises:
        LoadRefused: names what does not fit.
    """
    config = json.loads((directory / "config.json").read_bytes())
    require_servable_by(start.facts, config, model)


async def start_vllm(
    start: VllmStart,
    directory: Path,
    client: EngineClient,
    *,
    settings: VariantSettings,
    port: int,
    replica: int = 0,
    otlp_endpoint: str | None = None,
    timeout_s: float,
    niceness: int = 0,
    on_progress: OnProgress,
) -> EngineProcess:
    """Return a ready vLLM that serves ``directory`` on ``port`` under the client's name.

    Raises:
        LoadRefused: an option that the operator chose cannot be used.
        ChildFailed: it ended, or fell silent while it started; its own words are in the message.
    """
    for note in start.plan.notes:
        logger.warning("%s: %s", client.served_name, note)
    if otlp_endpoint is not None and not start.facts.has_tracing:
        logger.warning("%s: no traces: vLLM has no OpenTelemetry beside it", client.served_name)
    settings = with_context(settings, directory)
    kv_bytes = vllm.kv_cache_bytes(start.facts, settings.kv_cache_memory_bytes)
    return await EngineProcess.start(
        vllm.command(
            start,
            directory,
            served_name=client.served_name,
            port=port,
            settings=settings,
            kv_cache_memory_bytes=kv_bytes,
            otlp_endpoint=otlp_endpoint,
        ),
        client,
        backend=vllm.BACKEND,
        timeout_s=timeout_s,
        environment=vllm.environment(
            start, settings=settings, replica=replica, kv_cache_memory_bytes=kv_bytes
        ),
        pulse=VllmPulse(client),
        log=VllmLog(client.served_name, on_progress),
        niceness=niceness,
        processors=vllm.processors(start.facts, settings, replica),
    )


def with_context(settings: VariantSettings, directory: Path) -> VariantSettings:
    """Return the settings with a context, the checkpoint's as far as it is taken unasked."""
    if settings.max_model_len is not None:
        return settings
    longest = json.loads((directory / "config.json").read_bytes()).get("max_position_embeddings")
    context = min(int(longest), vllm.MAX_MODEL_LEN) if longest else None
    return settings.model_copy(update={"max_model_len": context})
