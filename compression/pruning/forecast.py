"""What a checkpoint's headers will say once it is pruned, known before a weight is read."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from compression.architecture import parse_architecture
from compression.facts import ITEMSIZE, CheckpointFacts, TensorFact
from compression.pruning.form import emitted_config
from compression.pruning.shape import Shape


def pruned_facts(facts: CheckpointFacts, shape: Shape) -> CheckpointFacts:
    """Return the facts of the checkpoint that pruning makes of ``facts``.

    Files and dtypes are the source's; a bias that only the result has follows its weight.
    ``directory`` and the tensors' offsets still tell where the source lies.
    """
    config = emitted_config(
        facts.config,
        shape.form,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=facts.architecture.head_dim,
        neurons=shape.neurons,
    )
    architecture = parse_architecture(config, where=str(facts.directory))
    tensors = {
        fact.name: fact
        for source in facts.tensors.values()
        for fact in _pruned(source, architecture.tensors(), facts)
    }
    return replace(
        facts,
        config=MappingProxyType(config),
        name=architecture.name,
        known=architecture,
        tensors=MappingProxyType(tensors),
    )


def _pruned(
    source: TensorFact, shapes: Mapping[str, tuple[int, ...]], facts: CheckpointFacts
) -> Iterator[TensorFact]:
    yield _resized(source, source.name, shapes)
    bias = f"{source.name.removesuffix('.weight')}.bias"
    if source.name.endswith(".weight") and bias in shapes and bias not in facts.tensors:
        yield _resized(source, bias, shapes)


def _resized(source: TensorFact, name: str, shapes: Mapping[str, tuple[int, ...]]) -> TensorFact:
    num_bytes = ITEMSIZE[source.dtype]
    for size in shapes[name]:
        num_bytes *= size
    return replace(source, name=name, shape=shapes[name], num_bytes=num_bytes)
