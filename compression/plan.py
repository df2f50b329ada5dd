"""What will be done to each tensor: a pure decision from facts and recipe."""

from dataclasses import dataclass

from compression.errors import RecipeError
from compression.facts import ITEMSIZE, CheckpointFacts, TensorFact
from compression.recipe import Recipe
from compression.schemes import Int4, Int8, Unquantized

EMBEDDINGS = frozenset({"model.embed_tokens.weight", "lm_head.weight"})


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of an artifact file: safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Return the bytes this tensor takes in the file."""
        count = ITEMSIZE[self.dtype]
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """What becomes of one tensor of the checkpoint."""

    fact: TensorFact
    scheme: Unquantized | Int8 | Int4
    """The scheme under which the embedded engine serves the tensor."""
    stored: tuple[StoredTensor, ...]
    """What the artifact holds for it."""
    reason: str = ""
    """Why ``stored`` differs from ``scheme``, or why nothing is done."""

    @property
    def bytes_in_memory(self) -> int:
        """Return the bytes the tensor takes while it is served."""
        if len(self.fact.shape) != 2:
            return self.fact.num_bytes
        return self.scheme.memory_bytes(*self.fact.shape, ITEMSIZE[self.fact.dtype])

    @property
    def bytes_stored(self) -> int:
        """Return the bytes the tensor takes in the artifact."""
        return sum(tensor.num_bytes for tensor in self.stored)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that will be done, decided before a weight is read."""

    facts: CheckpointFacts
    recipe: Recipe
    tensors: tuple[TensorPlan, ...]

    @property
    def bytes_stored(self) -> int:
        """Return the bytes of all weights in the artifact."""
        return sum(tensor.bytes_stored for tensor in self.tensors)

    @property
    def bytes_in_memory(self) -> int:
        """Return the bytes of all weights while they are served."""
        return sum(tensor.bytes_in_memory for tensor in self.tensors)


def make_plan(facts: CheckpointFacts, recipe: Recipe) -> Plan:
    """Decide what becomes of each tensor.

    Raises:
        RecipeError: a tensor's shape does not fit the scheme.
    """
    return Plan(
        facts=facts,
        recipe=recipe,
        tensors=tuple(_plan_tensor(fact, recipe) for fact in facts.tensors.values()),
    )


def _plan_tensor(fact: TensorFact, recipe: Recipe) -> TensorPlan:
    if fact.name in EMBEDDINGS:
        kept = (StoredTensor(fact.name, fact.dtype, fact.shape),)
        reason = (
            "" if isinstance(recipe.embeddings, Unquantized) else "stored as is, quantized at load"
        )
        return TensorPlan(fact, recipe.embeddings, kept, reason)
    if len(fact.shape) != 2:
        kept = (StoredTensor(fact.name, fact.dtype, fact.shape),)
        return TensorPlan(fact, Unquantized(), kept, "not a matrix")
    return TensorPlan(fact, recipe.weights, stored_tensors(fact, recipe.weights))


def stored_tensors(fact: TensorFact, scheme: Unquantized | Int8 | Int4) -> tuple[StoredTensor, ...]:
    """Return the compressed-tensors layout of one linear weight ``[rows, columns]``.

    Raises:
        RecipeError: the columns do not divide into groups.
    """
    rows, columns = fact.shape
    stem = fact.name
    match scheme:
        case Unquantized():
            return (StoredTensor(stem, fact.dtype, fact.shape),)
        case Int8():
            return (
                StoredTensor(stem, "I8", fact.shape),
                StoredTensor(f"{stem}_scale", "BF16", (rows, 1)),
            )
        case Int4(group_size=group):
            if columns % group:
                raise RecipeError(
                    f"{fact.name!r} has {columns} columns, not a multiple of group_size {group}: "
                    "use a smaller group_size, or the recipe int8"
                )
            groups = columns // group
            scale = StoredTensor(f"{stem}_scale", "BF16", (rows, groups))
            zero = StoredTensor(f"{stem}_zero_point", "I32", (-(-rows // 8), groups))
            return (
                StoredTensor(f"{stem}_packed", "I32", (rows, columns // 8)),
                scale,
                *(() if scheme.symmetric else (zero,)),
                StoredTensor(f"{stem}_shape", "I64", (2,)),
            )
