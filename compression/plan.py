"""What will be done to each tensor: a pure decision from facts and recipe."""

from dataclasses import dataclass, replace

from compression.automatic import choose_methods
from compression.errors import RecipeError
from compression.facts import ITEMSIZE, CheckpointFacts, TensorFact
from compression.footprint import build_bytes
from compression.nf4_state import nf4_state
from compression.recipe import Recipe, matches
from compression.requirements import method_of, require_possible
from compression.schemes import (
    AUTO,
    CALIBRATED,
    NF4_BLOCK,
    AnyWeight,
    Grouped,
    Int8,
    Nf4,
    Unquantized,
)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
EMBEDDINGS = frozenset({EMBEDDING, HEAD})


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
    scheme: AnyWeight
    """The scheme under which the embedded engine serves the tensor."""
    stored: tuple[StoredTensor, ...]
    """What the artifact holds for it."""
    is_linear: bool
    """Whether it is the weight of a linear layer inside the decoder."""
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

    @property
    def num_weights(self) -> int:
        """Return how many numbers the tensor holds."""
        return self.fact.num_bytes // ITEMSIZE[self.fact.dtype]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A part of the recipe that is not carried out, although the rest is."""

    subject: str
    requested: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that will be done, decided before a weight is read."""

    facts: CheckpointFacts
    recipe: Recipe
    """As it was asked for."""
    carried: Recipe
    """As it is carried out: every method chosen."""
    tensors: tuple[TensorPlan, ...]
    refusals: tuple[Refusal, ...]

    @property
    def linears(self) -> tuple[TensorPlan, ...]:
        """Return the plans of the linear layers' weights."""
        return tuple(tensor for tensor in self.tensors if tensor.is_linear)

    @property
    def bytes_stored(self) -> int:
        """Return the bytes of all weights in the artifact."""
        return sum(tensor.bytes_stored for tensor in self.tensors)

    @property
    def bytes_in_memory(self) -> int:
        """Return the bytes of all weights while they are served."""
        return sum(tensor.bytes_in_memory for tensor in self.tensors)

    @property
    def peak_bytes(self) -> int:
        """Return a bound for the memory of the build, above an interpreter with torch."""
        return build_bytes(self.facts, self.carried)


def make_plan(facts: CheckpointFacts, recipe: Recipe) -> Plan:
    """Decide what becomes of each tensor.

    Raises:
        RecipeError: a tensor's shape does not fit its scheme, or the recipe asks for something
            that cannot be done to this checkpoint (:mod:`compression.requirements`).
    """
    carried, why = choose_methods(facts, recipe)
    require_possible(facts, carried)
    kinds = _Modules(frozenset(facts.linears), facts.routers)
    tensors = tuple(
        _plan_table(fact, facts, carried, why if method_of(recipe.embeddings) == AUTO else "")
        if facts.known is not None and fact.name in EMBEDDINGS
        else _plan_tensor(fact, carried, kinds, why if _is_left_open(recipe, fact) else "")
        for fact in facts.tensors.values()
    )
    refusals = (*_refusals(facts, recipe), *_mostly_untouched(facts, recipe, tensors))
    return Plan(facts, recipe, carried, tensors, refusals)


def plan_for_pruned(plan: Plan, facts: CheckpointFacts) -> Plan:
    """Return what a plan becomes for what pruning left: methods and their reasons stay.

    Raises:
        RecipeError: what is left does not fit the recipe.
    """
    smaller = make_plan(facts, plan.carried)
    reasons = {tensor.fact.name: tensor.reason for tensor in plan.tensors}
    tensors = tuple(
        replace(tensor, reason=tensor.reason or reasons.get(tensor.fact.name, ""))
        for tensor in smaller.tensors
    )
    return replace(smaller, recipe=plan.recipe, tensors=tensors)


def module_of(tensor: str) -> str:
    """Return the path of the module that owns the tensor ``<path>.weight`` or ``<path>.bias``."""
    return tensor.rpartition(".")[0]


def _plan_table(fact: TensorFact, facts: CheckpointFacts, recipe: Recipe, why: str) -> TensorPlan:
    """Plan the embedding or the output head: numbers are stored, codes are made at load."""
    kept = (StoredTensor(fact.name, fact.dtype, fact.shape),)
    scheme = recipe.embeddings
    if isinstance(scheme, Unquantized):
        return TensorPlan(fact, scheme, kept, False, "no linear layer")
    if method_of(scheme) not in CALIBRATED:
        reason = "stored as is, quantized at load"
        return TensorPlan(fact, scheme, kept, False, f"{why}; {reason}" if why else reason)
    if fact.name == head_of(facts):
        reason = "stored as numbers that round to the codes at load"
        return TensorPlan(fact, scheme, kept, False, reason)
    reason = "rounded plainly: no logits are made of it; stored as is, quantized at load"
    return TensorPlan(fact, scheme.at_load, kept, False, reason)


def head_of(facts: CheckpointFacts) -> str:
    """Return the name of the table that makes the logits of a known family."""
    return EMBEDDING if facts.architecture.tied else HEAD


@dataclass(frozen=True, slots=True)
class _Modules:
    """Paths by what becomes of their weights."""

    linears: frozenset[str]
    routers: frozenset[str]


def _plan_tensor(fact: TensorFact, recipe: Recipe, kinds: _Modules, why: str) -> TensorPlan:
    module = module_of(fact.name)
    if module in kinds.linears and fact.name == f"{module}.weight":
        scheme = recipe.scheme_for(module)
        is_kept = any(matches(target, module) for target in recipe.keep)
        reason = "kept by the recipe" if is_kept else why
        return TensorPlan(fact, scheme, stored_tensors(fact, scheme), True, reason)
    kept = (StoredTensor(fact.name, fact.dtype, fact.shape),)
    reason = "no linear layer" if len(fact.shape) > 1 else "no matrix"
    if module in kinds.routers:
        reason = "chooses experts"
    return TensorPlan(fact, Unquantized(), kept, False, reason)


def _is_left_open(recipe: Recipe, fact: TensorFact) -> bool:
    """Return whether the recipe leaves the method of a linear weight to the plan."""
    return method_of(recipe.scheme_for(module_of(fact.name))) == AUTO


def _refusals(facts: CheckpointFacts, recipe: Recipe) -> tuple[Refusal, ...]:
    """Return what only the engine's lean decoder does, where it does not know the family."""
    if facts.known is not None or isinstance(recipe.embeddings, Unquantized):
        return ()
    reason = f"tables of {facts.name} are served as they are: its family is not known by heart"
    return (Refusal("embeddings", recipe.embeddings.label, reason),)


def _mostly_untouched(
    facts: CheckpointFacts, recipe: Recipe, tensors: tuple[TensorPlan, ...]
) -> tuple[Refusal, ...]:
    """Return that most of the matrices are no linear layers, where that is so."""
    if facts.known is not None:
        return ()
    linear = sum(each.fact.num_bytes for each in tensors if each.is_linear)
    others = sum(
        each.fact.num_bytes for each in tensors if not each.is_linear and len(each.fact.shape) > 1
    )
    if linear >= others:
        return ()
    share = 100 * linear / (linear + others)
    reason = f"only {share:.0f} % of the bytes of {facts.name}'s matrices are linear layers"
    return (Refusal("weights", recipe.weights.label, reason),)


def stored_tensors(fact: TensorFact, scheme: AnyWeight) -> tuple[StoredTensor, ...]:
    """Return the artifact's layout of one linear weight ``[rows, columns]``.

    That of compressed-tensors, or for nf4 that of bitsandbytes.

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
        case Grouped(bits=bits, group_size=group):
            if columns % group:
                remedy = "or use the recipe int8" if columns % 32 else "or use a smaller group_size"
                raise RecipeError(
                    f"{fact.name!r} has {columns} columns, not a multiple of group_size {group}: "
                    f"leave it out by a rule with scheme none, {remedy}"
                )
            groups = columns // group
            scale = StoredTensor(f"{stem}_scale", "BF16", (rows, groups))
            zero = StoredTensor(f"{stem}_zero_point", "I32", (-(-rows * bits // 32), groups))
            return (
                StoredTensor(f"{stem}_packed", "I32", (rows, columns * bits // 32)),
                scale,
                *(() if scheme.symmetric else (zero,)),
                StoredTensor(f"{stem}_shape", "I64", (2,)),
            )
        case Nf4():
            if columns % NF4_BLOCK:
                raise RecipeError(
                    f"{fact.name!r} has {columns} columns, not a multiple of nf4's block of "
                    f"{NF4_BLOCK}: name it in 'keep', or use the recipe int8"
                )
            count = rows * columns
            state = len(nf4_state(fact.shape, NF4_BLOCK))
            return (
                StoredTensor(stem, "U8", (count // 2, 1)),
                StoredTensor(f"{stem}.absmax", "F32", (count // NF4_BLOCK,)),
                StoredTensor(f"{stem}.quant_map", "F32", (16,)),
                StoredTensor(f"{stem}.quant_state.bitsandbytes__nf4", "U8", (state,)),
            )
