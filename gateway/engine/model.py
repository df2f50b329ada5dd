"""What the engine needs of a model, whichever way it is run, and which way that is."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from compression.errors import UnsupportedArchitecture
from compression.kv.shape import KvShape
from compression.loading import Checkpoint
from compression.packed import PackedLinear
from gateway.engine.assembly import assemble, read_architecture
from gateway.engine.cache import Cache

DEFAULT_MAX_MODEL_LEN = 8192
"""Tokens of one sequence where neither the user nor the checkpoint sets fewer."""


class ModelShape(KvShape, Protocol):
    """A model's name and its sizes that are seen from outside."""

    @property
    def name(self) -> str:
        """Return the architecture's class, as config.json has it."""

    @property
    def vocab_size(self) -> int:
        """Return the width of the logits."""


class Model(Protocol):
    """A loaded model; holds no state of any sequence."""

    @property
    def architecture(self) -> ModelShape:
        """Return what the model is."""

    @property
    def max_tokens(self) -> int:
        """Return how many positions a sequence can have."""

    @property
    def linears(self) -> list[PackedLinear]:
        """Return every distinct linear layer, embedding and head included."""

    @property
    def other_weights(self) -> tuple[int, int]:
        """Return the bytes and the number of all weights outside :attr:`linears`."""

    def hidden(self, batch: Sequence[tuple[Cache, list[int]]]) -> Tensor:
        """Append token ids to caches and return the final hidden states ``[m, hidden]`` of all."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits ``[m, vocab]`` for final hidden states ``[m, hidden]``."""


def load_model(checkpoint: Checkpoint, max_model_len: int | None) -> Model:
    """Load the families known by heart in the lean way, any other through transformers' modelling.

    ``max_model_len`` shortens the checkpoint's context.

    Raises:
        CompressionError: neither way can serve the checkpoint.
    """
    wanted = max_model_len or DEFAULT_MAX_MODEL_LEN
    try:
        architecture = read_architecture(checkpoint)
    except UnsupportedArchitecture:
        # transformers' modelling takes seconds to import, which the lean way does not pay.
        from gateway.engine.general.loading import load_general

        return load_general(checkpoint, wanted)
    return assemble(checkpoint, architecture, min(wanted, architecture.context))
