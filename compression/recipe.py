"""What the user asks for: a frozen, validated, versioned recipe with a digest."""

import hashlib
import json
import re
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from compression.schemes import (
    AUTO,
    CALIBRATED,
    AnyWeight,
    Int8,
    KvScheme,
    KvUnquantized,
    Nf4,
    Unquantized,
    WeightScheme,
)

FULL = "full"
"""The name that means: serve the checkpoint as it is, with no recipe."""
BUILT_IN = "built-in"
"""The calibration text that ships with the package."""
HUB = "hub:"
"""What the name of a calibration text on a hub starts with."""
LINEAR = "Linear"
"""The target that means every linear layer inside the decoder."""

Activations = Literal["none", "int8"]
"""How inputs of linear layers are taken: as they are, or rounded per token (W8A8)."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _check_target(target: str) -> str:
    if target.startswith("re:"):
        try:
            re.compile(target[3:])
        except re.error as error:
            raise ValueError(f"{target!r} is no regular expression ({error})") from None
    elif not target:
        raise ValueError("a target is empty")
    return target


def matches(target: str, module: str) -> bool:
    """Return whether ``target`` names the linear module with that path.

    A target is ``Linear`` (all of them), an exact module path, or ``re:`` and a regular
    expression that must match from the path's start, as compressed-tensors reads it.
    """
    if target.startswith("re:"):
        return re.match(target[3:], module) is not None
    return target in {LINEAR, module}


def _named(value: object) -> object:
    """Read the bare name of a scheme as that scheme."""
    return {"scheme": value} if isinstance(value, str) else value


def _listed(value: object) -> object:
    """Read a bare target as a list of one."""
    return (value,) if isinstance(value, str) else value


Weights = Annotated[WeightScheme, BeforeValidator(_named)]
Kv = Annotated[KvScheme, BeforeValidator(_named)]
Embeddings = Annotated[
    Annotated[Unquantized | Int8, Field(discriminator="scheme")], BeforeValidator(_named)
]
Targets = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Rule(_Part):
    """A scheme for the linear modules that any of ``targets`` names."""

    targets: Targets = Field(min_length=1)
    weights: Weights

    @field_validator("targets")
    @classmethod
    def _targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_check_target(target) for target in targets)


class KvCache(_Part):
    """How keys and values are kept while a sequence is decoded."""

    key: Kv = KvUnquantized()
    value: Kv = KvUnquantized()
    keep_first: int = Field(default=0, ge=0)
    """Layers at the start whose keys and values stay in bf16."""
    keep_last: int = Field(default=0, ge=0)
    """Layers at the end whose keys and values stay in bf16."""

    @model_validator(mode="before")
    @classmethod
    def _both(cls, fields: object) -> object:
        """Read the bare name of a scheme as that scheme for keys and values."""
        return {"key": fields, "value": fields} if isinstance(fields, str) else fields

    @property
    def is_quantized(self) -> bool:
        """Return whether anything is done at all."""
        return not (isinstance(self.key, KvUnquantized) and isinstance(self.value, KvUnquantized))


class Prune(_Part):
    """What is taken out of every layer, in equal count, before weights are quantized."""

    query_heads: int = Field(default=0, ge=0)
    """Query heads removed from every group that shares one key-value head."""
    kv_groups: int = Field(default=0, ge=0)
    """Key-value heads removed from every layer, each with all of its query heads."""
    neurons: float = Field(default=0.0, ge=0.0, lt=1.0)
    """The fraction of the MLP's neurons that goes, rounded so that what stays suits kernels."""
    score: Literal["fluctuation", "magnitude", "leave-one-out"] = "fluctuation"
    """How the least important parts are found."""
    compensate: bool = True
    """Put the mean output of what was removed into the next layer's bias, where there is one."""

    @property
    def is_active(self) -> bool:
        """Return whether anything is removed at all."""
        return bool(self.query_heads or self.kv_groups or self.neurons)


FIRST_TOKENS = 2048
"""Tokens of a calibration text, at most, that are also read as texts of their own."""


class Calibration(_Part):
    """The text on which inputs of layers are observed."""

    text: str = Field(default=BUILT_IN, min_length=1)
    """``built-in``, a text file, a directory of them, or ``hub:org/dataset``."""
    tokens: int = Field(default=16384, ge=512)
    seed: int = Field(default=0, ge=0)


class Budget(_Part):
    """The fidelity that an artifact must keep; without it there is no artifact."""

    kld: float | None = Field(default=None, gt=0)
    """Mean KL divergence over the slices, nats."""
    worst_slice_kld: float | None = Field(default=None, gt=0)
    """Mean KL divergence of the worst slice, nats."""
    top1: float | None = Field(default=None, gt=0, le=1)
    """Agreement of the top token, pooled."""

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if self.kld is None and self.worst_slice_kld is None and self.top1 is None:
            raise ValueError("a budget needs at least one of kld, worst_slice_kld, top1")
        return self


class Recipe(_Part):
    """How to compress a checkpoint.

    ``weights`` covers every linear layer inside the decoder that neither ``keep`` nor a rule
    names, ``embeddings`` the token embedding and the output head (tied or not).
    """

    version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    weights: Weights
    rules: tuple[Rule, ...] = ()
    """The first rule that names a module decides; ``weights`` covers the rest."""
    keep: Targets = ()
    """Targets that stay as the checkpoint has them, whatever the rules say."""
    embeddings: Embeddings = Unquantized()
    activations: Activations = "none"
    """``int8``: the inputs of int8 linears are rounded per token too (W8A8)."""
    kv_cache: KvCache = KvCache()
    prune: Prune = Prune()
    calibration: Calibration = Calibration()
    budget: Budget | None = None

    @field_validator("keep")
    @classmethod
    def _keep(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_check_target(target) for target in keep)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        schemes = self.schemes
        if any(isinstance(scheme, Nf4) for scheme in schemes) and any(
            not isinstance(scheme, Nf4 | Unquantized) for scheme in schemes
        ):
            raise ValueError(
                "nf4 cannot be mixed with int4, int5 or int8 in one artifact: use one of them, and "
                "'keep' for what must stay as it is"
            )
        if self.activations == "int8" and not any(isinstance(each, Int8) for each in schemes):
            raise ValueError("activations 'int8' need weights of scheme int8: no module has them")
        return self

    @property
    def schemes(self) -> tuple[AnyWeight, ...]:
        """Return every scheme that a linear module may get."""
        return (*(rule.weights for rule in self.rules), self.weights)

    @property
    def is_automatic(self) -> bool:
        """Return whether a method is left to the plan."""
        return AUTO in self._methods

    @property
    def needs_calibration(self) -> bool:
        """Return whether a text must be read before this recipe can be carried out.

        Where a method is left to the plan, it may have to be.
        """
        scores = self.prune.is_active and self.prune.score != "magnitude"
        centred = "int4" in {self.kv_cache.key.scheme}
        return (
            bool(self._methods & CALIBRATED)
            or self.is_automatic
            or scores
            or centred
            or (self.prune.is_active and self.prune.compensate)
        )

    @property
    def _methods(self) -> set[str]:
        """Return the methods of all schemes that have one, the tables' too."""
        return {getattr(scheme, "method", "rtn") for scheme in (*self.schemes, self.embeddings)}

    def scheme_for(self, module: str) -> AnyWeight:
        """Return what is asked for the linear module with that path."""
        if any(matches(target, module) for target in self.keep):
            return Unquantized()
        for rule in self.rules:
            if any(matches(target, module) for target in rule.targets):
                return rule.weights
        return self.weights

    @property
    def digest(self) -> str:
        """Return the SHA-256 (hex) of everything in the recipe that changes the result.

        The name is left out, so that two recipes that do the same share their artifacts; so are
        the budget, which only refuses, and a calibration that nothing asks for.
        """
        unused = set() if self.needs_calibration else {"calibration"}
        body = self.model_dump(mode="json", exclude={"name", "budget", *unused})
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
