"""How far a model in transformers is from the full one, on the built-in evaluation slices."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from compression.evaluation import Window, builtin_slices, cut

SLICE_TOKENS = 300


class Evaluation:
    """The full model's distributions on the evaluation slices, to compare others with."""

    def __init__(self, directory: Path, tokenizer: Any) -> None:
        self._windows = {
            name: cut(name, text, tokenizer, max_tokens=SLICE_TOKENS)
            for name, text in builtin_slices().items()
        }
        self._full = self._log_probabilities(load(directory))

    def kld(self, model: nn.Module) -> dict[str, float]:
        """Return the mean divergence of ``model`` in nats for each slice."""
        given = self._log_probabilities(model)
        return {
            name: float((full.exp() * (full - given[name])).sum(-1).clamp_min(0).mean())
            for name, full in self._full.items()
        }

    def _log_probabilities(self, model: nn.Module) -> dict[str, Tensor]:
        return {
            name: torch.cat([_rows(model, window) for window in windows])
            for name, windows in self._windows.items()
        }


@torch.no_grad()
def _rows(model: nn.Module, window: Window) -> Tensor:
    logits: Tensor = model(torch.tensor([window.token_ids])).logits[0]
    return logits[window.rows].log_softmax(-1)


def load(directory: Path) -> nn.Module:
    """Return a checkpoint in float32."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval()
