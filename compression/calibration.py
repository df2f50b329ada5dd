"""What a calibration text puts into every linear layer, one decoder layer after the other."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType, TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from compression.facts import CheckpointFacts
from compression.layerwise import LayerStream
from compression.weights.statistics import InputStatistics, MomentSum

_READERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.o_proj": ("self_attn.o_proj",),
        "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj": ("mlp.down_proj",),
    }
)
"""The module to observe, and those that read the same input."""

_HELD_OUT = 8
"""One window of so many is not learned from: it tells how well what was learned holds."""


class Calibrator:
    """Observes the layers in order: ``inputs(0)``, ``advance(0, …)``, ``inputs(1)``, …

    With ``feedback`` the whole second moments are gathered, and each layer sees what the compressed
    layers before it make of the text, as in GPTQ (Frantar et al. 2022, arXiv 2210.17323), so that
    its quantizer can make up for their errors. Without, the mean squares of the uncompressed
    model's inputs are gathered, in a third of the time.
    """

    def __init__(self, facts: CheckpointFacts, windows: Tensor, *, feedback: bool) -> None:
        self._stream = LayerStream(facts)
        self._windows = windows
        self._feedback = feedback
        self._seen = len(windows) - (len(windows) // _HELD_OUT if feedback else 0)
        self._hidden = torch.empty(0)

    def __enter__(self) -> Self:
        self._stream.__enter__()
        self._hidden = self._stream.embed(self._windows)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.__exit__(kind, error, trace)

    def inputs(self, index: int) -> dict[str, InputStatistics]:
        """Return the input statistics of each linear module of a layer, by module path."""
        layer = self._stream.layer(index)
        with _all_processors():
            observed = self._observe(layer, slice(0, self._seen))
            held_out = self._observe(layer, slice(self._seen, None))
        statistics = {
            name: observed[name].statistics(held_out[name] if held_out else None)
            for name in _READERS
        }
        return {
            f"model.layers.{index}.{module}": statistics[name]
            for name, modules in _READERS.items()
            for module in modules
        }

    def _observe(self, layer: nn.Module, windows: slice) -> dict[str, MomentSum]:
        """Run a layer over some windows and return the sums over each module's inputs."""
        hidden = self._hidden[windows]
        if not len(hidden):
            return {}
        sums: dict[str, MomentSum] = {}
        hooks = []
        for name in _READERS:
            linear = layer.get_submodule(name)
            columns = linear.in_features
            sums[name] = MomentSum(columns, whole=self._feedback)  # type: ignore[arg-type]
            hooks.append(linear.register_forward_pre_hook(_adder(sums[name])))
        try:
            self._run(layer, hidden, keep=not self._feedback)
        finally:
            for hook in hooks:
                hook.remove()
        return sums

    def advance(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Go on to the next layer; with feedback, through the float32 weights of this one."""
        if self._feedback:
            layer = self._stream.layer(index)
            prefix = f"model.layers.{index}."
            state = {name.removeprefix(prefix): weight for name, weight in weights.items()}
            layer.load_state_dict(state, strict=False, assign=True)
            with _all_processors():
                self._run(layer, self._hidden, keep=True)
        self._stream.release(index)

    def _run(self, layer: nn.Module, hidden: Tensor, *, keep: bool) -> None:
        """Run a layer over hidden states; ``keep`` puts its output in their place."""
        start = 0
        for batch in self._stream.run(layer, hidden):
            if keep:
                hidden[start : start + batch.shape[0]] = batch
            start += batch.shape[0]


Hook = Callable[[nn.Module, tuple[Tensor, ...]], None]


def _adder(sums: MomentSum) -> Hook:
    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sums.add(inputs[0].flatten(0, -2))

    return add


@contextmanager
def _all_processors() -> Iterator[None]:
    """Let torch share out the large products of a forward pass."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
