"""How much memory a build takes at most, told from the headers alone."""

from compression.facts import CheckpointFacts
from compression.kv.layers import needs_centres
from compression.pruning.footprint import prune_bytes
from compression.recipe import FIRST_TOKENS, Recipe
from compression.requirements import method_of
from compression.schemes import CALIBRATED, Nf4, Unquantized

PIECE_BYTES = 8 * 1024 * 1024
"""Tensors that are only copied pass through memory in pieces of this size."""
TABLE_PIECE_BYTES = PIECE_BYTES // 4
"""Of an output head whose codes GPTQ chooses."""
_FIXED_BYTES = 144 * 1024 * 1024
"""Smaller libraries, threads, headers, records, and what the allocator keeps."""
_TRANSFORMERS_BYTES = 128 * 1024 * 1024
"""transformers' modules of one family, which calibration runs."""
_NF4_BYTES = 160 * 1024 * 1024
"""bitsandbytes, which imports torch's compiler."""
_PER_WEIGHT = 16
"""Bytes a weight of the matrix in work: as read, in f32, rounded in f32, codes, packed."""
_TIMED_BYTES = 256 * 1024 * 1024
"""Timing a kernel: a weight of 16 million numbers as codes, nibbles, packed, and in bf16."""
_PER_TURNED_BYTE = 3
"""Bytes a byte of a matrix that the file holds as its transpose: as read, turned, checked."""
_PER_CALIBRATED_WEIGHT = 28
"""Bytes a weight of the matrix in work, where codes are chosen by what inputs see (f32 copies)."""
_MOMENTS = 10
"""Square f32 matrices of the widest input that the methods hold at once."""
_PER_TABLE_BYTE = 48
"""Bytes a byte of the table in work, of which there may be two a number."""
_HIDDEN_COPIES = 10
"""f32 copies of all hidden states in both models, one batch's inner activations among them."""


def build_bytes(facts: CheckpointFacts, recipe: Recipe) -> int:
    """Return a bound for the build's memory above an interpreter with torch, in bytes."""
    sizes = {
        module: _count(facts.tensors[f"{module}.weight"].shape)
        for module in facts.linears
        if not isinstance(recipe.scheme_for(module), Unquantized)
    }
    turned = [fact.num_bytes for fact in facts.tensors.values() if fact.is_transposed]
    copied = max(24 * PIECE_BYTES, _PER_TURNED_BYTE * max(turned, default=0))
    at_work = _PER_WEIGHT * max(sizes.values(), default=0)
    calibrated = 0
    if facts.known is not None and _is_calibrated(facts, recipe):
        widest = max(facts.architecture.intermediate_size, facts.architecture.hidden_size)
        per_layer = sum(_count(shape) for _, shape in facts.architecture.linears(0))
        hidden = (recipe.calibration.tokens + FIRST_TOKENS) * facts.architecture.hidden_size
        calibrated = (
            _TRANSFORMERS_BYTES
            + _PER_CALIBRATED_WEIGHT * max(sizes.values(), default=0)
            + 3 * 4 * per_layer
            + _MOMENTS * 4 * widest * widest
            + _HIDDEN_COPIES * 4 * hidden
        )
        if method_of(recipe.embeddings) in CALIBRATED:
            calibrated += _PER_TABLE_BYTE * TABLE_PIECE_BYTES
    libraries = _NF4_BYTES if any(isinstance(each, Nf4) for each in recipe.schemes) else 0
    bound = _FIXED_BYTES + libraries + max(copied, at_work + calibrated, _TIMED_BYTES)
    if recipe.prune.is_active:
        return max(bound, _FIXED_BYTES + prune_bytes(facts, recipe.prune, recipe.calibration))
    return bound


def _is_calibrated(facts: CheckpointFacts, recipe: Recipe) -> bool:
    schemes = (*map(recipe.scheme_for, facts.linears), recipe.embeddings)
    chosen = any(method_of(scheme) in CALIBRATED for scheme in schemes)
    return chosen or needs_centres(recipe.kv_cache)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
