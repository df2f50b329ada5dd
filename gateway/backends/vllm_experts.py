"""Which artifacts of mixtures of experts vLLM can run, told from their config.json."""

import re
from collections.abc import Mapping
from typing import Any

from gateway.backends.vllm_facts import VllmFacts
from gateway.errors import LoadRefused

_EXPERT = re.compile(r"\.experts\.\d+\.([^.]+)$")
_STACKED = frozenset({"gate_up_proj"})
"""What our artifacts call a matrix that the checkpoint held in one tensor for all experts."""
_UNRUN_GROUP = 32
_REMEDY = "use recipe int8 on a processor with AMX, or engine 'embedded'"


def require_experts_servable(facts: VllmFacts, config: Mapping[str, Any], name: str) -> None:
    """Refuse quantized experts that vLLM has no kernel for, or would read wrongly.

    ``config`` is the artifact's config.json, ``name`` what the operator calls the model. What vLLM
    0.32 does on a processor was tried; on a GPU only what its loader cannot read is refused.

    Raises:
        LoadRefused: says why, and what can be served.
    """
    entry = config.get("quantization_config") or {}
    paths, groups = _quantized_experts(entry)
    if not paths:
        return
    reason = _unreadable(paths, groups, entry)
    if reason is None and facts.device == "cpu":
        reason = _unrun_on_cpu(facts, groups[0])
    if reason is not None:
        raise LoadRefused(
            f"model {name!r} has quantized experts that vLLM does not serve: {reason}: {_REMEDY}"
        )


def _quantized_experts(entry: Mapping[str, Any]) -> tuple[list[str], list[Mapping[str, Any]]]:
    """Return the paths of experts' matrices, and the groups that they belong to."""
    paths, groups = [], []
    for group in (entry.get("config_groups") or {}).values():
        found = [path for path in group.get("targets", ()) if _EXPERT.search(path)]
        if found:
            paths += found
            groups.append(group)
    return paths, groups


def _unreadable(
    paths: list[str], groups: list[Mapping[str, Any]], entry: Mapping[str, Any]
) -> str | None:
    if any((found := _EXPERT.search(path)) and found[1] in _STACKED for path in paths):
        return "it looks for the experts of this family in one tensor, and each is stored alone"
    if len(groups) > 1:
        return "the matrices of its experts have different schemes, and it takes one for all"
    kept = [path for path in entry.get("ignore", ()) if _EXPERT.search(path)]
    modules = {path.split(".experts.")[0] for path in paths}
    if any(path.split(".experts.")[0] in modules for path in kept):
        return "some experts of a layer are kept as they are, and it takes one scheme for all"
    return None


def _unrun_on_cpu(facts: VllmFacts, group: Mapping[str, Any]) -> str | None:
    weights = group["weights"]
    bits, size = weights["num_bits"], weights.get("group_size")
    if bits == 4 and (size == _UNRUN_GROUP or not weights["symmetric"]):
        return (
            "on a processor its kernel for experts of 4 bits takes symmetric groups of more than "
            f"{_UNRUN_GROUP} weights (scheme int4 with symmetric: true and group_size: 64)"
        )
    if "amx" not in facts.cpu_features:
        return "on a processor its kernels for quantized experts need AMX, and this one has none"
    return None
