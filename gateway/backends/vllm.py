"""How vLLM is started: its command line and environment, for one engine of a variant."""

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gateway.backends.vllm_cache import CACHE_DTYPE, KEPT_LAYERS
from gateway.backends.vllm_facts import VllmFacts, python_path
from gateway.backends.vllm_plan import DISABLED, VllmPlan
from gateway.errors import LoadRefused
from gateway.model_settings import VariantSettings

BACKEND = "vllm"
HOST = "127.0.0.1"

OVERHEAD_BYTES = 2400 * 1024 * 1024
"""What its three processes hold beside weights and cache (vLLM 0.32 on a processor)."""

CPU_KV_BYTES = 4 * 1024**3
"""The cache on a processor, unless the settings say another size; left alone, vLLM takes nearly
all memory there is."""

SHUTDOWN_TIMEOUT_S = 3
"""How long requests may still run after the signal to end, less than the gateway's own patience; it
drains before."""

MAX_LOGPROBS = 256
"""Per position; what comparisons ask for, captures and references ask for less."""

MAX_MODEL_LEN = 8192
"""The longest context that is taken unless the settings say another one, as in our own engine."""

ARTIFACT_VARIABLE = "NARROWGATE_VLLM_ARTIFACT"
"""Tells an engine that a gateway elsewhere reaches what it must say of its artifact."""

_GIB = 1024**3
_PLUGINS = "VLLM_PLUGINS"
_OUR_PLUGIN = "narrowgate"
_OF_THE_CACHE = (CACHE_DTYPE, KEPT_LAYERS)
"""What the recipe says of keys and values."""
_OURS = frozenset(
    {
        "--model",
        "--served-model-name",
        "--host",
        "--port",
        "--uds",
        "--middleware",
        "--worker-extension-cls",
        *_OF_THE_CACHE,
        "--kv-cache-memory-bytes",
        "--max-model-len",
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--max-logprobs",
        "--logprobs-mode",
        "--api-key",
        "--shutdown-timeout",
        "--ssl-keyfile",
        "--ssl-certfile",
        "--root-path",
        "--headless",
        "--config",
    }
)
"""Options that the gateway sets, or that would hide the engine from it."""

_SPREADING = (
    "tensor-parallel-size",
    "pipeline-parallel-size",
    "data-parallel-size",
    "prefill-context-parallel-size",
)
"""Options whose product is how many GPUs one engine takes."""


@dataclass(frozen=True, slots=True)
class VllmStart:
    """All that is known before an engine is started."""

    python: Path
    facts: VllmFacts
    plan: VllmPlan


def command(
    start: VllmStart,
    directory: Path,
    *,
    served_name: str,
    port: int,
    settings: VariantSettings,
    kv_cache_memory_bytes: int | None,
    otlp_endpoint: str | None = None,
    host: str = HOST,
) -> list[str]:
    """Return the command line that serves a checkpoint or an artifact.

    Raises:
        LoadRefused: an option that the operator chose cannot be used.
    """
    facts = start.facts
    words = [str(start.python), "-m"]
    if facts.has_command:
        words += ["vllm.entrypoints.cli.main", "serve", str(directory)]
    else:
        words += ["vllm.entrypoints.openai.api_server", f"--model={directory}"]
    words += [f"--served-model-name={served_name}", f"--host={host}", f"--port={port}"]
    wanted: dict[str, str | tuple[str, ...] | None] = {
        "--worker-extension-cls": "narrowgate_vllm.describe.WorkerExtension",
        "--middleware": "narrowgate_vllm.middleware.DescribesItself",
        "--shutdown-timeout": f"{SHUTDOWN_TIMEOUT_S}",
        "--max-logprobs": f"{MAX_LOGPROBS}",
        "--logprobs-mode": "raw_logprobs",
        "--uvicorn-log-level": "warning",
        "--max-model-len": _number(settings.max_model_len),
        "--max-num-seqs": _number(settings.max_num_seqs),
        "--max-num-batched-tokens": _number(settings.max_num_batched_tokens),
        "--kv-cache-memory-bytes": _number(kv_cache_memory_bytes),
        "--otlp-traces-endpoint": (
            otlp_endpoint and facts.has_tracing and f"{otlp_endpoint}/v1/traces"
        )
        or None,
        **start.plan.options_for(directory),
    }
    for option, value in wanted.items():
        words += _words(option, value, facts)
    if not settings.enable_prefix_caching:
        words += ["--no-enable-prefix-caching"]
    return words + chosen_words(settings, facts)


def chosen_words(settings: VariantSettings, facts: VllmFacts) -> list[str]:
    """Return the options that the operator chose, as words of the command line.

    Raises:
        LoadRefused: the gateway sets one itself, or this vLLM lacks it or its value.
    """
    return [
        word
        for name, choice in settings.vllm_options.items()
        for word in _chosen(name, choice, facts)
    ]


def environment(
    start: VllmStart,
    *,
    settings: VariantSettings,
    replica: int,
    kv_cache_memory_bytes: int | None,
) -> dict[str, str]:
    """Return what the engine's environment has beside ours.

    Raises:
        LoadRefused: there are not GPUs enough for all replicas.
    """
    found = {
        "PYTHONPATH": python_path(),
        "HF_HUB_OFFLINE": "1",  # the directory is complete
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        **start.plan.environment,
    }
    for name, ours in ((DISABLED, found.get(DISABLED)), (_PLUGINS, _OUR_PLUGIN)):
        if ours and (theirs := os.environ.get(name)):
            found[name] = f"{theirs},{ours}"
    if os.environ.get(_PLUGINS) == "":
        found[_PLUGINS] = _OUR_PLUGIN
    if start.facts.device != "cpu":
        return found | _gpus(start.facts, settings, replica)
    if mine := processors(start.facts, settings, replica):
        workers = sorted(mine)[: settings.threads]
        found["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, workers))
    else:
        found["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        found["OMP_NUM_THREADS"] = str(settings.threads or len(os.sched_getaffinity(0)))
    if kv_cache_memory_bytes and "--kv-cache-memory-bytes" not in start.facts.options:
        found["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, kv_cache_memory_bytes // _GIB))
    return found


def processors(facts: VllmFacts, settings: VariantSettings, replica: int) -> frozenset[int] | None:
    """Return the processors that all of a replica's processes are held to; None: it may use all.

    Its servers wait by looking and would take the processors of others. One engine alone has all,
    and so has one that computes on a GPU.
    """
    if facts.device != "cpu" or settings.replicas == 1:
        return None
    ours = sorted(os.sched_getaffinity(0))
    if len(ours) < settings.replicas:
        return frozenset({ours[replica % len(ours)]})
    first, stop = (len(ours) * each // settings.replicas for each in (replica, replica + 1))
    return frozenset(ours[first:stop])


def _gpus(facts: VllmFacts, settings: VariantSettings, replica: int) -> dict[str, str]:
    """Return which GPUs a replica sees; one alone sees all."""
    if settings.replicas == 1:
        return {}
    share = prod(int(settings.vllm_options.get(name, 1)) for name in _SPREADING)
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(index) for index in range(facts.num_devices)]
    mine = visible[replica * share :][:share]
    if len(mine) < share:
        raise LoadRefused(
            f"'replicas' is {settings.replicas} at {share} GPUs each, and {len(visible)} are seen: "
            "ask for fewer"
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}


def kv_cache_bytes(facts: VllmFacts, asked: int | None) -> int | None:
    """Return the bytes of the cache; None: as vLLM finds right, from the GPU's free memory."""
    return CPU_KV_BYTES if asked is None and facts.device == "cpu" else asked


def _number(value: int | None) -> str | None:
    return None if value is None else f"{int(value)}"


def _words(option: str, value: str | tuple[str, ...] | None, facts: VllmFacts) -> list[str]:
    """Return an option of ours; one that only an older vLLM lacks is left out."""
    if value is None or option not in facts.options:
        return []
    return [option, *value] if isinstance(value, tuple) else [f"{option}={value}"]


def _chosen(name: str, value: str | int | float | bool, facts: VllmFacts) -> list[str]:
    option = f"--{name}"
    where = f"'vllm_options' has {name!r}"
    if option in _OURS:
        ours = name.replace("-", "_")
        remedy = f"set {ours!r} beside it" if ours in VariantSettings.model_fields else "remove it"
        if option in _OF_THE_CACHE:
            remedy = "say it in 'kv_cache' of a recipe"
        raise LoadRefused(f"{where}, which the gateway sets itself: {remedy}")
    if option not in facts.options:
        raise LoadRefused(f"{where}, an option that vLLM {facts.version} does not have: correct it")
    if option in facts.flags and value is True:
        return [option]
    if value is False and f"--no-{name}" in facts.options:
        return [f"--no-{name}"]
    if option in facts.flags or isinstance(value, bool):
        kind = "true or false" if option in facts.flags else "a value"
        raise LoadRefused(f"{where} as {value!r}: vLLM {facts.version} takes {kind} for it")
    choices = facts.options[option]
    if choices is not None and str(value) not in choices:
        raise LoadRefused(f"{where} as {value!r}: use one of {', '.join(choices)}")
    return [f"{option}={value}"]
