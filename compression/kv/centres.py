"""The constants that are taken off keys: the mean key of every head and channel.

Only the slow pairs of the rotation keep a mean over positions. So the mean is taken before the
rotation, where it does not depend on how long the calibration's windows are, and then turned by
the average rotation.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compression.architecture import Architecture
from compression.facts import CheckpointFacts
from compression.frequencies import frequencies
from compression.kv.centre_file import write_centres
from compression.layerwise import LayerStream

POSITIONS = 2048
"""The rotation is averaged over this many positions, or the checkpoint's context if shorter."""
_WINDOWS = 8
"""A mean needs no more windows than these."""


class KeyMean:
    """The mean key of one decoder layer before the rotation, observed while a text runs.

    ``layer`` is a transformers module of a known family: keys come out of ``k_norm`` where there
    is one, else out of ``k_proj``. Use :meth:`stop` before the layer is used for anything else.
    """

    def __init__(self, layer: nn.Module, architecture: Architecture) -> None:
        self._architecture = architecture
        self._sum = torch.zeros(architecture.num_kv_heads, architecture.head_dim)
        self._count = 0
        attention = layer.get_submodule("self_attn")
        last = attention.get_submodule("k_norm" if architecture.qk_norm else "k_proj")
        self._hook = last.register_forward_hook(self._add)

    def _add(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        keys = output.reshape(-1, *self._sum.shape).to(torch.float32)
        self._sum += keys.sum(dim=0)
        self._count += keys.shape[0]

    def stop(self) -> None:
        """Observe no more."""
        self._hook.remove()

    def centre(self) -> Tensor:
        """Return the mean after the rotation ``[kv_heads, head_dim]`` f32; zeros without a text."""
        return average_rotation(self._sum / max(self._count, 1), self._architecture)


def average_rotation(keys: Tensor, architecture: Architecture) -> Tensor:
    """Return the mean over positions of ``keys [kv_heads, head_dim]`` rotated to each of them."""
    positions = torch.arange(min(POSITIONS, architecture.max_position_embeddings))
    angles = torch.outer(positions.to(torch.float64), frequencies(architecture))
    size = architecture.rope.attention_factor
    cos, sin = size * angles.cos().mean(dim=0), size * angles.sin().mean(dim=0)
    first, second = keys.to(torch.float64).chunk(2, dim=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat(turned, dim=-1).to(torch.float32)


def add_centres(facts: CheckpointFacts, windows: Tensor, directory: Path) -> Path:
    """Write the centres into an artifact and return the file.

    ``windows`` are the token ids ``[B, T]`` of the calibration text.
    """
    return write_centres(directory, key_centres(facts, windows))


@torch.inference_mode()
def key_centres(facts: CheckpointFacts, windows: Tensor) -> tuple[Tensor, ...]:
    """Return each layer's centre ``[kv_heads, head_dim]`` f32 from token ids ``[B, T]``.

    One pass through the full-precision layers, one layer in memory at a time, of a few windows
    that are taken evenly from ``windows``.
    """
    centres = []
    with LayerStream(facts) as stream:
        hidden = stream.embed(windows[:: -(-len(windows) // _WINDOWS)])
        for index in range(facts.architecture.num_layers):
            layer = stream.layer(index)
            mean = KeyMean(layer, facts.architecture)
            hidden = torch.cat(list(stream.run(layer, hidden)))
            mean.stop()
            stream.release(index)
            centres.append(mean.centre())
    return tuple(centres)
