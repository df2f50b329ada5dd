"""A cache of the engine as transformers' models see one."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import CacheLayerMixin

from compression.errors import UnsupportedArchitecture
from gateway.engine.cache import Cache, LayerCache


class LayerView(CacheLayerMixin):  # type: ignore[misc]  # transformers ships no types
    """One layer: writes what is new through the codecs and reads everything back.

    Keys are given back as attention expects them, rotations of the codec undone, so that any
    family's own attention can read them. Windows are left to the masks.
    """

    is_sliding = False

    def __init__(self, kept: LayerCache, length: int) -> None:
        super().__init__()
        self._kept = kept
        self._length = length
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the memory is there."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep ``[1, kv_heads, m, head_dim]`` and return all positions, float32.

        Raises:
            UnsupportedArchitecture: they have another shape than the cache was made for.
        """
        codecs = self._kept.codecs
        head_dim = codecs.key.head_dim
        if key_states.shape != value_states.shape or key_states.shape[-1] != head_dim:
            raise UnsupportedArchitecture(
                f"this model caches keys of shape {list(key_states.shape)} and values of shape "
                f"{list(value_states.shape)}, where heads of {head_dim} are expected: serve it "
                "with vLLM"
            )
        heads = torch.cat([key_states[0], value_states[0]]).transpose(0, 1).to(torch.float32)
        self._kept.write(self._length, codecs.encode(heads))
        self._length += heads.shape[0]
        keys, values = self._kept.read(self._length, torch.float32)
        return codecs.key.rotate(keys), codecs.value.rotate(values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the next queries meet, and the position of the first."""
        return self._length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the positions that are filled."""
        return self._length

    def get_max_length(self) -> int:
        """Return -1: the engine sees to it that sequences end in time."""
        return -1


def view(cache: Cache) -> Any:
    """Return what a model's forward takes as ``past_key_values``."""
    return TransformersCache(layers=[LayerView(layer, cache.length) for layer in cache.layers])
