"""What was pruned, and what it cost: the record inside the manifest."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OutputError(_Record):
    """E‖change of an output‖² / E‖output‖² on the calibration text."""

    removed: float
    """By the removal alone."""
    compensated: float
    """After the weights that stay were refitted."""


class LayerRecord(_Record):
    """What was taken out of one layer; indices are those of the source."""

    query_heads: tuple[int, ...]
    """Removed query heads, those of removed groups included."""
    kv_heads: tuple[int, ...]
    neurons: int
    """How many MLP neurons were removed."""
    attention_error: OutputError | None
    """None where no calibration text was read or nothing was removed."""
    mlp_error: OutputError | None


class PruneRecord(_Record):
    """The whole record."""

    architecture: str
    """The family as which the result is written."""
    heads: int
    kv_heads: int
    neurons: int
    """Query heads, key-value heads and MLP neurons that every layer has now."""
    score: Literal["fluctuation", "magnitude", "leave-one-out"]
    compensation: Literal["none", "weights", "weights and biases"]
    reason: str
    """Why neurons have another score than asked for; empty if they have not."""
    layers: tuple[LayerRecord, ...]
    bytes_before: int
    bytes_after: int
    kld: float | None
    """Mean KL divergence in nats on the first calibration tokens; None without calibration."""
    kld_tokens: int
    seconds: float
