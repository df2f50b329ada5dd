"""The few figures of a slice's fidelity that an artifact's manifest keeps."""

from pydantic import BaseModel, ConfigDict


class SliceFidelity(BaseModel):
    """How far one slice is from the full model; intervals are those of ``compression.fidelity``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kld_mean: float
    """Mean KL divergence of the compressed model from the full one, nats a token."""
    kld_mean_ci95: tuple[float, float]
    kld_p99: float
    top1: float
    """Share of positions where both models would have chosen the same token."""
    top1_ci95: tuple[float, float]
    tokens: int
