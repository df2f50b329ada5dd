"""Which checkpoints and artifacts vLLM can run, told from their config.json."""

import re
from collections.abc import Mapping
from typing import Any

from gateway.backends.vllm_facts import VllmFacts
from gateway.errors import LoadRefused

_EXPERT = re.compile(r"\.experts\.\d+\.([^.]+)$")
_STACKED = frozenset({"gate_up_proj"})
"""What our artifacts call a matrix that the checkpoint held in one tensor for all experts."""
_UNRUN_GROUP = 32
_EXPERTS_REMEDY = "use recipe int8 on a processor with AMX, or engine 'embedded'"


def require_servable_by(facts: VllmFacts, config: Mapping[str, Any], name: str) -> None:
    """Check that vLLM knows a checkpoint's family and shapes, and runs its experts' codes.

    ``config`` is its config.json, ``name`` what the operator calls it.

    Raises:
        LoadRefused: names what does not fit.
    """
    families = [str(each) for each in config.get("architectures") or ()]
    if families and not facts.architectures.intersection(families):
        raise LoadRefused(
            f"model {name!r} is a {families[0]}, which vLLM {facts.version} does not know: "
            "use engine 'embedded' or a newer vLLM"
        )
    head_dim = _head_dim(config)
    if facts.head_sizes and head_dim is not None and head_dim not in facts.head_sizes:
        sizes = ", ".join(map(str, sorted(facts.head_sizes)))
        raise LoadRefused(
            f"model {name!r} has heads of {head_dim} values; vLLM's attention on a processor "
            f"takes {sizes}: use engine 'embedded'"
        )
    _require_experts_servable(facts, config, name)


def _head_dim(config: Mapping[str, Any]) -> int | None:
    if config.get("head_dim"):
        return int(config["head_dim"])
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return int(hidden) // int(heads) if hidden and heads else None


def _require_experts_servable(facts: VllmFacts, config: Mapping[str, Any], name: str) -> None:
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
            f"model {name!r} has quantized experts that vLLM does not serve: {reason}: "
            f"{_EXPERTS_REMEDY}"
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
