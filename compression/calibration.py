"""What a calibration text puts into every linear layer, one decoder layer after the other."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from compression.facts import CheckpointFacts
from compression.layerwise import LayerStream
from compression.weights.statistics import InputStatistics, MomentSum

STAGES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The linear modules of a layer in the order of their work; those of a stage read one input."""

HELD_OUT = 8
"""One window of so many is not learned from: it tells how well what was learned holds."""


class Calibrating(Protocol):
    """Observes the layers in order, a stage at a time; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def stages(self, index: int) -> Iterator[dict[str, InputStatistics]]:
        """Yield the input statistics of the modules of layer ``index``, by module path."""
        ...

    def serve(self, weights: Mapping[str, Tensor]) -> None:
        """Take the float32 weights, by tensor name, that the last stage's modules will have."""
        ...


class Calibrator:
    """Observes the full model's inputs: all of a layer is one stage.

    ``whole`` gathers second moments and holds every eighth window out; otherwise their diagonal,
    the mean squares, is gathered from all windows, which is much cheaper.
    """

    def __init__(self, facts: CheckpointFacts, windows: Tensor, *, whole: bool) -> None:
        self._stream = LayerStream(facts)
        self._windows = windows
        self._whole = whole
        self._seen = len(windows) - (len(windows) // HELD_OUT if whole else 0)
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

    def stages(self, index: int) -> Iterator[dict[str, InputStatistics]]:
        """Yield the input statistics of all linear modules of layer ``index``, by module path."""
        layer = self._stream.layer(index)
        with all_processors():
            observed = self._observe(layer, slice(0, self._seen))
            held_out = self._observe(layer, slice(self._seen, None))
        self._stream.release(index)
        found: dict[str, InputStatistics] = {}
        for modules in STAGES:
            other = held_out[modules[0]] if held_out else None
            statistics = observed[modules[0]].statistics(other)
            found |= {f"model.layers.{index}.{module}": statistics for module in modules}
        yield found

    def skip(self, index: int) -> None:
        """Move the text through layer ``index`` without a look at its inputs."""
        layer = self._stream.layer(index)
        with all_processors():
            # In the batches of :meth:`_observe`, so that what follows is the same to the bit.
            self._move(layer, slice(0, self._seen))
            self._move(layer, slice(self._seen, None))
        self._stream.release(index)

    def serve(self, weights: Mapping[str, Tensor]) -> None:
        """Do nothing: the full model is observed, whatever is served."""

    def _observe(self, layer: nn.Module, windows: slice) -> dict[str, MomentSum]:
        """Move some windows through a layer; return the sums over the inputs of each stage."""
        if not len(self._hidden[windows]):
            return {}
        sums: dict[str, MomentSum] = {}
        hooks = []
        for name, *_ in STAGES:
            linear = layer.get_submodule(name)
            columns = linear.in_features
            sums[name] = MomentSum(columns, whole=self._whole)  # type: ignore[arg-type]
            hooks.append(linear.register_forward_pre_hook(_adder(sums[name])))
        try:
            self._move(layer, windows)
        finally:
            for hook in hooks:
                hook.remove()
        return sums

    def _move(self, layer: nn.Module, windows: slice) -> None:
        """Put what a layer makes of some windows' states in their place."""
        hidden, start = self._hidden[windows], 0
        if not len(hidden):
            return
        for batch in self._stream.run(layer, hidden):
            hidden[start : start + len(batch)] = batch
            start += len(batch)


Hook = Callable[[nn.Module, tuple[Tensor, ...]], None]


def _adder(sums: MomentSum) -> Hook:
    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sums.add(inputs[0].flatten(0, -2))

    return add


@contextmanager
def all_processors() -> Iterator[None]:
    """Let torch share out the large products of a forward pass."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
