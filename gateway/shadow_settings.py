"""How much of the traffic is scored against the full model, and where that model runs."""

from typing import Literal, Self

from pydantic import ByteSize, Field, field_validator, model_validator

from gateway.capture import MAX_TOP
from gateway.model_settings import EngineKind, Frozen, VllmOption, check_address


class ReferenceSettings(Frozen):
    """The full model beside the engines; times are in seconds."""

    mode: Literal["resident", "on-demand"] = "on-demand"
    engine: EngineKind = "embedded"
    vllm_options: dict[str, VllmOption] = Field(default_factory=dict)
    threads: int = Field(default=1, ge=1)
    memory: ByteSize | None = Field(default=None, ge=1)
    """What all references together may hold; taken out of the memory budget."""
    idle_s: float = Field(default=300.0, gt=0)
    urls: dict[str, str] = Field(default_factory=dict)
    """By model: a reference that others run."""

    @model_validator(mode="after")
    def _options_are_of_vllm(self) -> Self:
        if self.vllm_options and self.engine != "vllm":
            raise ValueError("'vllm_options' needs 'engine': vllm")
        return self

    @field_validator("urls")
    @classmethod
    def _urls_are_http(cls, urls: dict[str, str]) -> dict[str, str]:
        for url in urls.values():
            check_address(url)
        return {alias: url.rstrip("/").removesuffix("/v1") for alias, url in urls.items()}


class ShadowSettings(Frozen):
    """What is scored, and what it may cost; times are in seconds."""

    rate: float = Field(default=0.0, ge=0, le=1)
    tokens_per_second: float = Field(default=200.0, gt=0)
    """Prompt and answer tokens that references may read."""
    max_tokens: int = Field(default=4096, ge=2)
    """Of one request, prompt and answer."""
    top_k: int = Field(default=20, ge=1, le=MAX_TOP)
    queue_size: int = Field(default=256, ge=1)
    queue_s: float = Field(default=300.0, gt=0)
    """How long a request may wait for its score."""
    score_timeout_s: float = Field(default=60.0, gt=0)
    max_running: int | None = Field(default=None, ge=0)
    """Requests that may run meanwhile; None: none beside a reference here, any beside one
    elsewhere."""
    floor_every: int = Field(default=50, ge=0)
    """Every how many scored requests the full model is scored against itself; 0 is never."""
    probe_every_s: float = Field(default=60.0, ge=0)
    """0 is never."""
    reference: ReferenceSettings = ReferenceSettings()

    @model_validator(mode="after")
    def _longest_fits_the_budget(self) -> Self:
        if self.max_tokens > self.burst_tokens:
            raise ValueError(
                f"'max_tokens' is {self.max_tokens}, but 'tokens_per_second' makes only "
                f"{self.burst_tokens:.0f} in a minute: lower the one or raise the other"
            )
        return self

    @property
    def burst_tokens(self) -> float:
        """Return the tokens that may be read at once after a quiet minute."""
        return 60 * self.tokens_per_second
