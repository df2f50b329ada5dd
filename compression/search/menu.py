"""The schemes that a search gives to units, bf16 apart."""

from typing import Literal

from compression.errors import SearchError
from compression.facts import CheckpointFacts
from compression.schemes import Int4, Int5, Int8

Scheme = Int4 | Int5 | Int8
"""A scheme of the menu; each has a label, and says what it takes in memory."""
Engine = Literal["embedded", "vllm"]


def menu(facts: CheckpointFacts, engine: Engine) -> dict[str, Scheme]:
    """Return the schemes that fit every module of a checkpoint, by label; the first is probed.

    vLLM has no kernel for five bits.

    Raises:
        SearchError: no group size divides the columns of every module.
    """
    columns = {
        shape[1]
        for layer in range(facts.architecture.num_layers)
        for _, shape in facts.architecture.linears(layer)
    }
    kinds = (Int4,) if engine == "vllm" else (Int4, Int5)
    schemes: list[Scheme] = [
        kind(group_size=size, method="gptq")
        for kind in kinds
        for size in (32, 64, 128)
        if not any(width % size for width in columns)
    ]
    if not schemes:
        widths = ", ".join(str(width) for width in sorted(columns) if width % 32)
        raise SearchError(
            f"no group size of int4 divides the columns of every module ({widths}): use the recipe "
            "int8"
        )
    schemes.append(Int8(method="gptq"))
    return {scheme.label: scheme for scheme in schemes}
