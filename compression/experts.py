"""Where the matrices of a mixture's experts lie in weight files, told by transformers' own mapping.

transformers holds all experts of a layer in one parameter. Files hold each matrix of each expert
under its own name, which transformers puts together while it loads, or one tensor for all.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from compression.errors import CorruptCheckpoint, UnsupportedArchitecture
from compression.facts import Stack

_MARKS = ("has_gate", "has_bias", "is_transposed", "_apply_gate")
"""What ``use_experts_implementation`` of transformers puts on a module of experts."""


@dataclass(frozen=True, slots=True)
class Naming:
    """Which tensor of the files is what in transformers' model."""

    weights: Mapping[str, str]
    """Module path → path in the files of each weight that is a parameter as it is."""
    experts: Mapping[str, tuple[tuple[str, ...], ...]]
    """Parameter → per expert the names in the files of the matrices whose rows make up its own."""
    stacks: Mapping[str, Stack]
    """Name in the files of a tensor that holds a parameter's whole stack."""


@dataclass(frozen=True, slots=True)
class _Source:
    """What one name of the files stands for."""

    name: str
    target: str
    """The parameter, by its path."""
    converter: Any
    """What transformers makes the parameter with; None where the tensor is the parameter."""
    part: int
    """Which of the converter's patterns the name has."""
    expert: int
    """The number in the name where the pattern has ``*``; -1 without one."""


def is_experts(module: nn.Module) -> bool:
    """Return whether a module is experts whose product can be told from their weights."""
    return all(hasattr(module, mark) for mark in _MARKS)


def stacked(model: nn.Module) -> dict[str, nn.Module]:
    """Return parameter path → module of every matrix that a model holds once for each expert."""
    return {
        f"{path}.{name}": module
        for path, module in model.named_modules()
        if is_experts(module)
        for name in ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
    }


def routers(model: nn.Module) -> frozenset[str]:
    """Return the paths of the modules that choose experts or weigh a shared one.

    They lie beside experts and have a weight with a row for each, or a single one, and nothing
    beside them takes what they give, as the second layer of an MLP would. A choice that is decided
    otherwise is another computation, and other engines do not look for codes there.
    """
    found = set()
    for path, module in model.named_modules():
        if not is_experts(module):
            continue
        parent = path.rpartition(".")[0]
        counts = {1, int(module.down_proj.shape[0])}
        for inner, owner in model.get_submodule(parent).named_modules():
            matrices = {
                name: weight.shape
                for name, each in owner.named_children()
                if isinstance(weight := getattr(each, "weight", None), Tensor) and weight.dim() == 2
            }
            taken = {columns for _, columns in matrices.values()}
            found |= {
                ".".join(filter(None, (parent, inner, name)))
                for name, (rows, _) in matrices.items()
                if rows in counts - taken
            }
    return frozenset(found)


def split_name(parameter: str, expert: int) -> str:
    """Return the path that an expert's matrix of a parameter gets, where files hold a stack."""
    module, _, name = parameter.rpartition(".")
    return f"{module}.{expert}.{name}"


def read_naming(model: Any, names: Iterable[str], where: str) -> Naming:
    """Tell what the tensors of a checkpoint or artifact are in transformers' model.

    Args:
        model: transformers' model, on whatever device.
        names: of all tensors, an artifact's as they were before they became codes.
        where: names the checkpoint in errors.

    Raises:
        UnsupportedArchitecture: experts lie in the files in a way that is not known.
        CorruptCheckpoint: an expert is missing.
    """
    sources = _sources(model, names)
    found: dict[str, list[_Source]] = {parameter: [] for parameter in stacked(model)}
    weights: dict[str, str] = {}
    for each in sources:
        if each.target in found:
            found[each.target].append(each)
        elif each.converter is None and each.target.endswith(".weight"):
            file_path = each.name.removesuffix(".weight")
            weights[each.target.removesuffix(".weight")] = file_path
    experts: dict[str, tuple[tuple[str, ...], ...]] = {}
    stacks: dict[str, Stack] = {}
    for parameter, parts in found.items():
        weight = model.get_parameter(parameter)
        count = int(weight.shape[0])
        is_transposed = bool(model.get_submodule(parameter.rpartition(".")[0]).is_transposed)
        if len(parts) == 1 and parts[0].converter is None and parts[0].expert < 0:
            modules = tuple(split_name(parameter, expert) for expert in range(count))
            shape = tuple(weight.shape[1:])
            stacks[parts[0].name] = Stack(
                modules, shape[::-1] if is_transposed else shape, is_transposed
            )
            experts[parameter] = tuple((f"{module}.weight",) for module in modules)
        else:
            experts[parameter] = _one_by_one(parts, parameter, count, is_transposed, where)
    return Naming(MappingProxyType(weights), MappingProxyType(experts), MappingProxyType(stacks))


def _sources(model: Any, names: Iterable[str]) -> list[_Source]:
    """Return what each name stands for, by the rules by which transformers loads."""
    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    state = model.state_dict()
    own = {
        f"{split_name(parameter, expert)}.weight": (parameter, expert)
        for parameter in stacked(model)
        for expert in range(state[parameter].shape[0])
    }
    sources = []
    for name in sorted(names, key=dot_natural_key):
        prefix = model.base_model_prefix
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = name, None
        if pattern is not None:
            converter = by_pattern[pattern]
            renamed, _ = rename_source_key(name, renamings, [])
            expert = _number(pattern, renamed)
            part = converter.source_patterns.index(pattern)
            sources.append(_Source(name, target, converter, part, expert))
        elif name in own:
            sources.append(_Source(name, own[name][0], None, 0, own[name][1]))
        else:
            sources.append(_Source(name, target, None, 0, -1))
    return sources


def _number(pattern: str, name: str) -> int:
    found = re.search(pattern.replace("*.", r"(?P<expert>\d+)\.", 1), name)
    return int(found["expert"]) if found and "expert" in found.groupdict() else -1


def _one_by_one(
    sources: Sequence[_Source], parameter: str, count: int, is_transposed: bool, where: str
) -> tuple[tuple[str, ...], ...]:
    """Return per expert the names of the matrices that make up its own, one below the other."""
    if not sources:
        raise CorruptCheckpoint(
            f"{where} lacks the weights of {parameter!r}: fetch the checkpoint again"
        )
    converter = sources[0].converter
    is_known = converter is None or not (is_transposed or _is_other(converter))
    if not is_known or any(each.converter is not converter for each in sources):
        raise UnsupportedArchitecture(
            f"{where}: the experts of {parameter!r} lie in the files in a way that is not known "
            "here: serve the model as it is, with recipe full"
        )
    parts = 1 if converter is None else len(converter.source_patterns)
    names = {(each.expert, each.part): each.name for each in sources}
    for expert in range(count):
        for part in range(parts):
            if (expert, part) not in names:
                raise CorruptCheckpoint(
                    f"{where} lacks the weight of expert {expert} that belongs beside "
                    f"{sources[0].name!r}, one of {count}: fetch the checkpoint again"
                )
    if len(sources) != count * parts:
        raise CorruptCheckpoint(
            f"{where} has {len(sources)} matrices of {parameter!r}, config.json asks for "
            f"{count * parts}: config and weights belong to different models"
        )
    return tuple(tuple(names[expert, part] for part in range(parts)) for expert in range(count))


def _is_other(converter: Any) -> bool:
    """Return whether a converter does anything but stack experts with their parts as rows."""
    kinds = [(type(each), each.dim) for each in converter.operations if hasattr(each, "dim")]
    stacking = [(MergeModulelist, 0)]
    if len(converter.source_patterns) > 1:
        stacking.append((Concatenate, 1))
    return len(kinds) != len(converter.operations) or kinds != stacking
