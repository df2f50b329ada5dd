"""Hidden states of a text, moved through a checkpoint one decoder layer at a time.

Only one layer's weights are in memory. The layers are transformers' own modules in float32, so
what is observed here is what the reference model computes.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from compression.facts import CheckpointFacts
from compression.tensor_source import TensorSource, require_finite

_BATCH_TOKENS = 4096
_TABLE_ROWS = 8192


class Weights(Protocol):
    """Where the tensors of a checkpoint come from; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *details: object) -> None: ...

    def tensor(self, name: str) -> Tensor:
        """Return a whole tensor in any float dtype."""
        ...

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Return the rows with these indices of a token embedding or an output head."""
        ...


class CheckpointWeights:
    """The tensors as the checkpoint has them; nothing of its files stays in memory."""

    def __init__(self, facts: CheckpointFacts) -> None:
        self._source = TensorSource(facts)

    def __enter__(self) -> Self:
        self._source.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._source.__exit__(None, None, None)

    def tensor(self, name: str) -> Tensor:
        """Return a whole tensor."""
        return self._source.read(name)

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Return the rows with these indices; only they are read."""
        return self._source.rows(name, rows)


class LayerStream:
    """A checkpoint of a known family, read layer by layer; a context manager."""

    def __init__(self, facts: CheckpointFacts, weights: Weights | None = None) -> None:
        self._facts = facts
        self._weights = CheckpointWeights(facts) if weights is None else weights
        config = AutoConfig.from_pretrained(facts.directory)
        with torch.device("meta"):
            self._model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        self._rotary = type(self._model.model.rotary_emb)(config)

    @property
    def vocab_size(self) -> int:
        """Return the width of the logits."""
        return self._facts.architecture.vocab_size

    def __enter__(self) -> Self:
        self._weights.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._weights.__exit__(kind, error, trace)

    def embed(self, windows: Tensor) -> Tensor:
        """Return float32 hidden states ``[B, T, hidden]`` of token ids ``[B, T]``."""
        used, places = torch.unique(windows, return_inverse=True)
        return self._weights.rows("model.embed_tokens.weight", used).to(torch.float32)[places]

    def layer(self, index: int) -> nn.Module:
        """Return decoder layer ``index`` with its float32 weights.

        Raises:
            CorruptCheckpoint: a weight holds NaN or infinite values.
        """
        prefix = f"model.layers.{index}."
        module: nn.Module = self._model.model.layers[index]
        state = {}
        for name in self._facts.tensors:
            if name.startswith(prefix):
                state[name.removeprefix(prefix)] = self.tensor(name).to(torch.float32)
                require_finite(name, state[name.removeprefix(prefix)])
        module.load_state_dict(state, assign=True)
        return module

    def release(self, index: int) -> None:
        """Let go of the weights of layer ``index``."""
        self._model.model.layers[index].to("meta")

    def tensor(self, name: str) -> Tensor:
        """Return one tensor."""
        return self._weights.tensor(name)

    def run(self, layer: nn.Module, hidden: Tensor) -> Iterator[Tensor]:
        """Yield the layer's output ``[b, T, hidden]`` for one batch of windows after the other."""
        length = hidden.shape[1]
        places = torch.arange(length).unsqueeze(0)
        embeddings = self._rotary(hidden[:1], places)
        windows = self._facts.architecture.windows
        # Only attention knows which layer it is of; the other half of a layer needs no mask.
        indices = [getattr(each, "layer_idx", None) for each in layer.modules()]
        index = next((each for each in indices if isinstance(each, int)), None)
        mask = None if index is None else _window_mask(length, windows[index])
        for batch in batches(hidden):
            with torch.no_grad():
                output = layer(batch, attention_mask=mask, position_embeddings=embeddings)
            yield output

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Return normalized final hidden states."""
        norm: nn.Module = self._model.model.norm
        norm.load_state_dict(
            {"weight": self.tensor("model.norm.weight").to(torch.float32)}, assign=True
        )
        with torch.no_grad():
            normed: Tensor = norm(hidden)
        return normed

    def logits(self, normed: Tensor) -> Tensor:
        """Return float32 logits ``[n, vocab]``; the table is read piece by piece."""
        architecture = self._facts.architecture
        name = "model.embed_tokens.weight" if architecture.tied else "lm_head.weight"
        parts = []
        for start in range(0, architecture.vocab_size, _TABLE_ROWS):
            stop = min(start + _TABLE_ROWS, architecture.vocab_size)
            table = self._weights.rows(name, torch.arange(start, stop)).to(torch.float32)
            parts.append(normed @ table.T)
        return torch.cat(parts, dim=-1)


def batches(hidden: Tensor) -> tuple[Tensor, ...]:
    """Split hidden states ``[B, T, hidden]`` into batches of some 4,096 tokens."""
    return torch.split(hidden, max(1, _BATCH_TOKENS // hidden.shape[1]))


def _window_mask(length: int, window: int | None) -> Tensor | None:
    """Return ``[1, 1, length, length]`` of what a query may see; None where that is all before."""
    if window is None or length <= window:
        return None
    seen = torch.ones(length, length, dtype=torch.bool)
    return seen.tril().triu(1 - window)[None, None]
