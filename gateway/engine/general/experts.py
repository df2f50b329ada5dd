"""Packed experts in the places where transformers' models have theirs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compression.experts import Naming
from compression.loading import Checkpoint, can_stack, make_linear, stack_rows
from gateway.engine.general.linears import PackedModule


class PackedExperts(nn.Module):
    """Experts as packed layers; the family's own module gates, activates and normalizes."""

    def __init__(
        self, family: Any, first: Sequence[Sequence[PackedModule]], down: Sequence[PackedModule]
    ) -> None:
        super().__init__()
        self.family = family
        self.first = nn.ModuleList(nn.ModuleList(parts) for parts in first)
        self.down = nn.ModuleList(down)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sums ``[m, hidden]`` of what each token's experts make of it.

        Only experts that a token goes to are run.

        Args:
            hidden_states: ``[m, hidden]``.
            top_k_index: ``[m, k]``, the experts of each token; other numbers stand for none.
            top_k_weights: ``[m, k]``.
        """
        chosen, share = top_k_index.reshape(-1), top_k_weights.reshape(-1, 1)
        num_choices = top_k_index.shape[-1]
        result = torch.zeros_like(hidden_states)
        for number in sorted(set(chosen.tolist())):
            if not 0 <= number < len(self.down):
                continue
            some = (chosen == number).nonzero().flatten()
            tokens = some // num_choices
            made = self._run(number, hidden_states[tokens]) * share[some]
            result.index_add_(0, tokens, made.to(result.dtype))
        return result

    def _run(self, number: int, x: Tensor) -> Tensor:
        parts: Any = self.first[number]
        inner = torch.cat([part(x) for part in parts], dim=-1)
        family = self.family
        inner = family._apply_gate(inner) if family.has_gate else family.act_fn(inner)
        result: Tensor = self.down[number](inner)
        # older versions of transformers have no such mark
        has_norm = getattr(family, "has_post_expert_norm", False)
        return family.post_expert_norm(result) if has_norm else result


def empty(family: Any) -> None:
    """Take the stacks of weights out of a family's experts, so that nothing is loaded for them."""
    for name in _stacks(family):
        delattr(family, name)
    family._is_hf_initialized = True  # transformers would draw numbers for what is not there


def pack_experts(family: Any, path: str, naming: Naming, checkpoint: Checkpoint) -> PackedExperts:
    """Return packed experts for an emptied module, whose biases are loaded."""
    first, down = (
        [
            _layers(checkpoint, names, None if biases is None else biases[expert])
            for expert, names in enumerate(naming.experts[f"{path}.{name}"])
        ]
        for name, biases in ((name, _take_biases(family, name)) for name in _stacks(family))
    )
    return PackedExperts(family, first, [layer for [layer] in down])


def _stacks(family: Any) -> tuple[str, str]:
    return "gate_up_proj" if family.has_gate else "up_proj", "down_proj"


def _take_biases(family: Any, name: str) -> Tensor | None:
    """Return the biases ``[experts, rows]`` of a stack, and take them out of the module."""
    if not family.has_bias:
        return None
    biases: Tensor = getattr(family, f"{name}_bias").detach().to(torch.bfloat16)
    delattr(family, f"{name}_bias")
    return biases


def _layers(
    checkpoint: Checkpoint, names: Sequence[str], bias: Tensor | None
) -> list[PackedModule]:
    """Return one layer of one expert's rows, or one for each part where schemes differ."""
    weights = [checkpoint.weight(name) for name in names]
    if can_stack(weights):
        weights = [stack_rows(weights)]
    count = len(weights)
    biases: Sequence[Tensor | None] = [None] * count if bias is None else bias.chunk(count)
    return [
        PackedModule(make_linear(weight, each, activations=checkpoint.activations))
        for weight, each in zip(weights, biases, strict=True)
    ]
