"""Metrics under other names: engines' as the gateway's or vLLM's, ours as OpenTelemetry's.

Pure: families in, families out. Names of vLLM are those of its ``vllm/v1/metrics/loggers.py``,
names of OpenTelemetry those of its semantic conventions for generative AI (1.41, in development).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from gateway.metrics.engine import ENGINE_FAMILIES, ENGINE_PREFIX
from gateway.metrics.family import OTHER
from gateway.metrics.own import PREFIX

_VLLM = "vllm:"
_ENDING = "finished_reason"
_KNOWN_ENDINGS = frozenset({"stop", "length", "abort", "error"})
_PROVIDER = "narrowgate"


@dataclass(frozen=True, slots=True)
class EngineSeries:
    """What one engine said of itself at one moment."""

    model: str
    variant: str
    served_name: str
    replica: int
    families: tuple[Metric, ...]

    def replica_of(self, sample: Sample) -> str:
        """Return which engine a sample is of; vLLM numbers those that share one address."""
        inner = sample.labels.get("engine", "0")
        return str(self.replica) if inner == "0" else f"{self.replica}.{inner}"


def _stem(name: str) -> str:
    # Of a counter the client library's families go without it.
    return name.removesuffix("_total")


def _vllm_stem(name: str) -> str:
    # vLLM has a histogram whose name ends in _total, too.
    return name if name == "iteration_tokens_total" else _stem(name)


_OWN: Mapping[str, str] = MappingProxyType(
    {
        name: ENGINE_PREFIX + _stem(family.name)
        for family in ENGINE_FAMILIES
        for name in (
            ENGINE_PREFIX + _stem(family.name),
            *([_VLLM + _vllm_stem(family.vllm)] if family.vllm else []),
        )
    }
)
_HELP: Mapping[str, str] = MappingProxyType(
    {ENGINE_PREFIX + _stem(family.name): family.help for family in ENGINE_FAMILIES}
)
_AS_VLLM: Mapping[str, str] = MappingProxyType(
    {
        ENGINE_PREFIX + _stem(family.name): _VLLM + _vllm_stem(family.vllm)
        for family in ENGINE_FAMILIES
        if family.vllm
    }
)


def own_view(engines: Iterable[EngineSeries]) -> list[Metric]:
    """Return what engines said under the manifest's names; what it does not list is left out."""
    found: dict[str, Metric] = {}
    for engine in engines:
        for family in engine.families:
            name = _OWN.get(family.name)
            if name is None:
                continue
            for sample in family.samples:
                labels = {
                    "model": engine.model,
                    "variant": engine.variant,
                    "replica": engine.replica_of(sample),
                    **_without(sample, "model", "model_name", "engine"),
                }
                if labels.get(_ENDING, OTHER) not in _KNOWN_ENDINGS:
                    labels = {**labels, _ENDING: OTHER} if _ENDING in labels else labels
                _add(found, name, _HELP[name], family, sample, labels)
    return list(found.values())


def vllm_view(engines: Iterable[EngineSeries]) -> list[Metric]:
    """Return what engines said under vLLM's names; all that vLLMs said, of others what it has."""
    found: dict[str, Metric] = {}
    for engine in engines:
        for family in engine.families:
            is_vllm = family.name.startswith(_VLLM)
            name = family.name if is_vllm else _AS_VLLM.get(family.name)
            if name is None:
                continue
            for sample in family.samples:
                labels = {
                    "model_name": engine.served_name,
                    "engine": engine.replica_of(sample),
                    **_without(sample, "model", "model_name", "engine"),
                }
                _add(found, name, family.documentation, family, sample, labels)
    return list(found.values())


def otel_view(families: Iterable[Metric]) -> list[Metric]:
    """Return the gateway's own histograms under the names of ``gen_ai`` metrics."""
    found: dict[str, Metric] = {}
    for family in families:
        name, extra = _OTEL.get(family.name.removeprefix(PREFIX), ("", {}))
        if not name:
            continue
        for sample in family.samples:
            labels = {**_otel_labels(sample.labels), **extra}
            _add(found, name, family.documentation, family, sample, labels)
    return list(found.values())


_OTEL: Mapping[str, tuple[str, Mapping[str, str]]] = MappingProxyType(
    {
        "request_duration_seconds": ("gen_ai_server_request_duration_seconds", {}),
        "time_to_first_token_seconds": ("gen_ai_server_time_to_first_token_seconds", {}),
        "time_per_output_token_seconds": ("gen_ai_server_time_per_output_token_seconds", {}),
        "request_prompt_tokens": ("gen_ai_client_token_usage", {"gen_ai_token_type": "input"}),
        "request_generated_tokens": ("gen_ai_client_token_usage", {"gen_ai_token_type": "output"}),
    }
)
_OPERATIONS: Mapping[str, str] = MappingProxyType(
    {"completion": "text_completion", "embedding": "embeddings"}
)


def _otel_labels(labels: Mapping[str, str]) -> dict[str, str]:
    found = {
        "gen_ai_provider_name": _PROVIDER,
        "gen_ai_request_model": labels["model"],
        "gen_ai_response_model": f"{labels['model']}@{labels['variant']}",
    }
    if "operation" in labels:
        operation = labels["operation"]
        found["gen_ai_operation_name"] = _OPERATIONS.get(operation, operation)
    if labels.get("outcome", "ok") != "ok":
        found["error_type"] = labels["outcome"]
    if "le" in labels:
        found["le"] = labels["le"]
    return found


def _without(sample: Sample, *names: str) -> dict[str, str]:
    return {name: value for name, value in sample.labels.items() if name not in names}


def _add(
    found: dict[str, Metric],
    name: str,
    documentation: str,
    family: Metric,
    sample: Sample,
    labels: dict[str, str],
) -> None:
    metric = found.setdefault(name, Metric(name, documentation, family.type))
    suffix = sample.name.removeprefix(family.name)
    if metric.type == family.type:  # an engine of another version may know it as another kind
        metric.add_sample(name + suffix, labels, sample.value, exemplar=sample.exemplar)
