"""What the metrics say of a variant."""

from collections.abc import Mapping

from gateway.pool.state import Snapshot, State
from gateway.registry import Metrics

_OF_A_LIVE_ENGINE = (
    "model_info",
    "weights_bytes",
    "weights_uncompressed_bytes",
    "bytes_per_weight",
    "kv_bytes_per_token",
    "probe_change_nats",
)
"""What ends with the engine; another one may be another thing."""


def record_state(metrics: Metrics, shot: Snapshot) -> None:
    """Write a variant's state, and the sizes of what it serves."""
    spec, gauges = shot.spec, metrics.gauges
    names = (spec.alias, spec.variant)
    gauges["engine_up"].labels(*names).set(shot.state is State.READY)
    for state in State:
        gauges["model_state"].labels(*names, state.value).set(shot.state is state)
    ready = sum(replica.state is State.READY for replica in shot.replicas)
    gauges["replicas_ready"].labels(*names).set(ready)
    gauges["reserved_memory_bytes"].labels(*names).set(shot.num_bytes)
    if shot.state is State.READY:
        _record_info(metrics, shot)
    else:
        for name in _OF_A_LIVE_ENGINE:
            gauges[name].remove_by_labels({"model": spec.alias, "variant": spec.variant})


def _record_info(metrics: Metrics, shot: Snapshot) -> None:
    spec, info, gauges = shot.spec, shot.info, metrics.gauges
    if info is None:
        return
    manifest = (shot.prepared.manifest if shot.prepared else None) or {}
    gauges["model_info"].labels(
        model=spec.alias,
        variant=spec.variant,
        recipe=spec.variant,
        recipe_digest=info.recipe_digest or "",
        source_digest=manifest.get("source", {}).get("digest", info.source_digest or ""),
        weight_bits="" if info.weight_bits is None else f"{info.weight_bits:.2f}",
        base_dtype=info.dtype,
        backend=shot.backend or "",
        numerics=_shown(info.numerics),
        kernels=_shown(info.kernels),
        kv_dtype=info.kv_dtype or "",
    ).set(1)
    sizes = (
        ("weights_bytes", info.weights_bytes),
        ("weights_uncompressed_bytes", info.weights_bytes_before),
        ("bytes_per_weight", None if info.weight_bits is None else info.weight_bits / 8),
        ("kv_bytes_per_token", info.kv_bytes_per_token),
    )
    for name, size in sizes:
        if size is not None:  # an engine that is not ours does not tell
            labels = {"model": spec.alias, "variant": spec.variant, "recipe": spec.variant}
            gauges[name].labels(**labels).set(size)


def _shown(by_scheme: Mapping[str, str] | None) -> str:
    return " ".join(f"{scheme}:{found}" for scheme, found in sorted((by_scheme or {}).items()))
