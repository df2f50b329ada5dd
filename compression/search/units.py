"""The parts of a decoder that must share one scheme, because engines run them as one."""

from collections.abc import Iterator
from dataclasses import dataclass

from compression.architecture import Architecture

_KINDS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


@dataclass(frozen=True, slots=True)
class Unit:
    """Linear modules of one layer that share their input and their scheme."""

    layer: int
    shapes: tuple[tuple[str, tuple[int, int]], ...]
    """``(module path, [rows, columns])`` of each."""

    @property
    def name(self) -> str:
        """Return the path of the first module, by which tables name the unit."""
        return self.shapes[0][0]

    @property
    def modules(self) -> tuple[str, ...]:
        """Return the paths of all modules."""
        return tuple(module for module, _ in self.shapes)


def units(architecture: Architecture) -> Iterator[Unit]:
    """Yield the units of every layer, in the order in which they run."""
    for layer in range(architecture.num_layers):
        shapes = dict(architecture.linears(layer))
        prefix = f"model.layers.{layer}"
        for kind in _KINDS:
            modules = (f"{prefix}.{name}" for name in kind)
            yield Unit(layer, tuple((module, shapes[module]) for module in modules))
