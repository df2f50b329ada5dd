"""One evaluator for all methods: f32 weights in transformers' own model against the full ones."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compression.evaluation import Window
from compression.fidelity import (
    Fidelity,
    TokenScores,
    pool,
    require_finite,
    score_tokens,
    summarize,
)

Cut = Mapping[str, Sequence[Window]]


class Evaluator:
    """Scores weights of one checkpoint on fixed windows.

    Everything is computed in f32, activations included, so that only the error of the weights is
    seen. The full model's final hidden states are kept (not its logits: they would take
    gigabytes) and multiplied with its output head again for each method.
    """

    def __init__(self, checkpoint: Path, windows: Cut) -> None:
        self._windows = windows
        self._model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        self._model.eval()
        self._state: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in self._model.named_parameters()
        }
        self._full_head: Tensor = self._model.lm_head.weight.detach().clone()
        self._full_hidden = {
            name: [self._hidden(window) for window in parts] for name, parts in windows.items()
        }

    @torch.inference_mode()
    def score(
        self, weights: Iterable[tuple[str, Tensor]], *, label: str
    ) -> tuple[dict[str, Fidelity], Fidelity]:
        """Return the fidelity of each slice and of all pooled, with ``weights`` in their places.

        Weights that are not given stay the full model's.

        Raises:
            KeyError: the checkpoint has no weight of a given name.
            ValueError: a weight is not f32 or of another shape.
            FidelityError: the logits are not finite.
        """
        self._place(weights)
        slices = {name: self._score_slice(name, label) for name in self._windows}
        summary = {name: summarize(scores) for name, scores in slices.items()}
        return summary, summarize(pool(list(slices.values())))

    def _place(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        parameters = dict(self._model.named_parameters())
        for name, value in self._state.items():
            parameters[name].copy_(value)
        for name, weight in weights:
            parameter = parameters[name]
            if weight.dtype != torch.float32 or weight.shape != parameter.shape:
                raise ValueError(
                    f"{name!r} is {weight.dtype} {tuple(weight.shape)}: "
                    f"torch.float32 {tuple(parameter.shape)} is needed"
                )
            parameter.copy_(weight)

    def _score_slice(self, name: str, label: str) -> TokenScores:
        parts = []
        for window, full_hidden in zip(self._windows[name], self._full_hidden[name], strict=True):
            logits = self._hidden(window) @ self._model.lm_head.weight.T
            require_finite(logits, recipe=label, slice_name=name)
            parts.append(score_tokens(full_hidden @ self._full_head.T, logits, window.targets))
        return pool(parts)

    @torch.inference_mode()
    def _hidden(self, window: Window) -> Tensor:
        """Return the states [targets, hidden] that the output head reads."""
        ids = torch.tensor([window.token_ids])
        output = self._model.model(ids, use_cache=False)
        states: Tensor = output.last_hidden_state[0, window.rows]
        return states
