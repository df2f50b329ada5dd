"""Reorders a Llama checkpoint's channels at random without changing what it computes."""

import re
from dataclasses import dataclass

import torch

from compression.errors import UnsupportedArchitecture

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Reordering:
    """Where each new channel comes from: ``new[i] = old[order[i]]``; int64 index tensors.

    ``residual``: [hidden]. Per layer: ``neurons`` [MLP neurons], ``values`` [value rows of all KV
    heads] (every head's rows stay within the head) and ``outputs`` [input columns of ``o_proj``],
    which follows ``values`` in each query head.
    """

    residual: torch.Tensor
    neurons: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]


def make_reordering(
    *,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    seed: int,
) -> Reordering:
    """Draw the permutations; the same seed gives the same ones."""
    generator = torch.Generator().manual_seed(seed)
    residual = torch.randperm(hidden_size, generator=generator)
    neurons, values, outputs = [], [], []
    for _ in range(num_layers):
        neurons.append(torch.randperm(intermediate_size, generator=generator))
        heads = [torch.randperm(head_dim, generator=generator) for _ in range(num_kv_heads)]
        values.append(torch.cat([head * head_dim + order for head, order in enumerate(heads)]))
        group = num_heads // num_kv_heads
        outputs.append(
            torch.cat([head * head_dim + heads[head // group] for head in range(num_heads)])
        )
    return Reordering(residual, tuple(neurons), tuple(values), tuple(outputs))


def reorder_tensor(name: str, tensor: torch.Tensor, reordering: Reordering) -> torch.Tensor:
    """Return one tensor of the checkpoint with its channels reordered; the shape stays.

    Query and key rows stay where they are, because rotary embedding pairs them by position.

    Raises:
        UnsupportedArchitecture: a tensor whose channels have no known meaning here.
    """
    residual = reordering.residual
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        return tensor[:, residual]
    if name == "model.norm.weight":
        return tensor[residual]
    if (match := _LAYER.fullmatch(name)) is None:
        raise UnsupportedArchitecture(_unknown(name))
    layer, part = int(match[1]), match[2]
    match part:
        case "input_layernorm.weight" | "post_attention_layernorm.weight":
            return tensor[residual]
        case "self_attn.q_proj.weight" | "self_attn.k_proj.weight":
            return tensor[:, residual]
        case "self_attn.v_proj.weight":
            return tensor[reordering.values[layer]][:, residual]
        case "self_attn.o_proj.weight":
            return tensor[residual][:, reordering.outputs[layer]]
        case "mlp.gate_proj.weight" | "mlp.up_proj.weight":
            return tensor[reordering.neurons[layer]][:, residual]
        case "mlp.down_proj.weight":
            return tensor[residual][:, reordering.neurons[layer]]
        case _:
            raise UnsupportedArchitecture(_unknown(name))


def _unknown(name: str) -> str:
    return f"cannot reorder tensor {name!r}: only Llama checkpoints without biases are known"
