"""Which functions a single query's attention calls, by how keys and values are kept."""

from collections.abc import Iterator

from compression.kernels import attention_vectors as vectors
from compression.kernels.attention_integers import MOST_CHANNELS
from compression.kernels.attention_tiles import INT8
from compression.kernels.compiling import Linked
from compression.kernels.integer_tiles import CHANNELS, HAS_QUADS
from compression.kernels.llvm import LANES


def row_functions(keys: int, values: int, size: int) -> tuple[Linked | None, Linked, Linked]:
    """Return the three functions of :mod:`compression.kernels.attention_row`.

    Args:
        keys: how they are kept.
        values: the same.
        size: channels of a head.
    """
    prepare, score, add = None, vectors.SCORES[keys], vectors.SUMS[values]
    if keys == INT8 and size % LANES == 0 and size <= MOST_CHANNELS:
        prepare, score = vectors.ROUND_QUERIES, vectors.SCORE_INTEGERS
    if values == INT8 and HAS_QUADS and size % CHANNELS == 0:
        add = vectors.SUM_INTEGERS
    return prepare, score, add


def every_row_function() -> Iterator[Linked]:
    """Return all of them that this processor can run."""
    yield from (*vectors.SCORES, *vectors.SUMS, vectors.ROUND_QUERIES, vectors.SCORE_INTEGERS)
    if HAS_QUADS:
        yield vectors.SUM_INTEGERS
