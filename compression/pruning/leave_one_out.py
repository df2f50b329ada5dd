"""What each head's removal really costs: the model runs once without each of them.

For models of up to a billion weights, which are held in float32.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from compression.architecture import Architecture
from compression.events import OnProgress, Progress
from compression.halves import AttentionHalf, MlpHalf
from compression.pruning.selection import channels
from compression.recipe import Prune

_WINDOWS = 8
_WINDOW_TOKENS = 32


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Mean KL divergence (nats) of the model without one unit from the whole model."""

    heads: Tensor
    """[layers, query heads]; zeros where no single head is removed."""
    groups: Tensor
    """[layers, key-value heads]; zeros where no group is removed."""


def leave_one_out(
    directory: Path,
    architecture: Architecture,
    prune: Prune,
    windows: Tensor,
    on_progress: OnProgress,
) -> HeadScores:
    """Measure every head or group that ``prune`` may remove on a few tokens of each window."""
    few = windows[:: max(1, len(windows) // _WINDOWS)][:_WINDOWS, :_WINDOW_TOKENS]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    heads = torch.zeros(architecture.num_layers, architecture.num_heads)
    groups = torch.zeros(architecture.num_layers, architecture.num_kv_heads)
    size = architecture.num_heads // architecture.num_kv_heads
    single = [(head,) for head in range(architecture.num_heads)] if prune.query_heads else []
    whole = (
        [tuple(range(first, first + size)) for first in range(0, architecture.num_heads, size)]
        if prune.kv_groups
        else []
    )
    columns = [channels(unit, architecture.head_dim) for unit in (*single, *whole)]
    for layer, costs in enumerate(_costs(model, few, columns)):
        heads[layer, : len(single)] = costs[: len(single)]
        groups[layer, : len(whole)] = costs[len(single) :]
        on_progress(Progress("prune", layer + 1, architecture.num_layers, "steps", "leave one out"))
    return HeadScores(heads, groups)


@torch.no_grad()
def _costs(model: nn.Module, windows: Tensor, columns: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield [units] for each layer: the divergence without each unit's columns of ``o_proj``."""
    run = _Run(model, windows)
    exact = torch.log_softmax(run.logits(run.embedded, 0), dim=-1)
    hidden = run.embedded
    for index, half in enumerate(run.attention):
        seen: list[Tensor] = []
        handle = half.projection.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(inputs[0])
        )
        whole = half(hidden, **run.arguments)
        handle.remove()
        costs = []
        for unit in columns:
            lost = seen[0][..., unit] @ half.projection.weight[:, unit].T
            changed = run.logits(run.mlp[index](whole - lost), index + 1)
            costs.append(_divergence(exact, torch.log_softmax(changed, dim=-1)))
        yield torch.tensor(costs)
        hidden = run.mlp[index](whole)


class _Run:
    """A whole model on some windows, which can be entered at any layer."""

    def __init__(self, model: nn.Module, windows: Tensor) -> None:
        body = model.get_submodule("model")
        layers = list(body.get_submodule("layers").children())
        self.attention = [AttentionHalf(layer) for layer in layers]
        self.mlp = [MlpHalf(layer) for layer in layers]
        self.embedded: Tensor = body.get_submodule("embed_tokens")(windows)
        places = torch.arange(windows.shape[1]).unsqueeze(0)
        self.arguments = {
            "attention_mask": None,
            "position_embeddings": body.get_submodule("rotary_emb")(self.embedded, places),
        }
        self._norm = body.get_submodule("norm")
        self._head = model.get_submodule("lm_head")

    def logits(self, hidden: Tensor, first: int) -> Tensor:
        """Return float32 [B, T, vocab] for hidden states in front of layer ``first``."""
        for attention, mlp in zip(self.attention[first:], self.mlp[first:], strict=True):
            hidden = mlp(attention(hidden, **self.arguments))
        logits: Tensor = self._head(self._norm(hidden))
        return logits


def _divergence(exact: Tensor, changed: Tensor) -> float:
    return float((exact.exp() * (exact - changed)).sum(-1).clamp_min(0).mean())
