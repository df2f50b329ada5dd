"""How much of the traffic is scored against the full model, and where that model runs."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ByteSize, Field, field_validator, model_validator

from compression.paths import cache_home
from compression.recipe import FULL
from gateway.capture import MAX_ROWS, MAX_ROWS_WAIT_S, MAX_TOP
from gateway.model_settings import (
    EngineKind,
    Frozen,
    VariantSettings,
    VllmOption,
    check_address,
)

Estimator = Literal["topk", "exact"]
"""How a divergence is found: over the likeliest tokens and a rest, or over the vocabulary."""


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


class LadderSettings(Frozen):
    """When the gateway steps on a model's ladder by itself; times are in seconds."""

    mode: Literal["off", "dry-run", "on"] = "dry-run"
    pinned: tuple[str, ...] = ()
    """Slices whose drift counts as the model's."""
    route_slices: bool = False
    """Whether a pinned slice that drifts goes to a safer rung alone, where a request can tell that
    it is in it; else the whole model does."""
    cool_down_s: float = Field(default=300.0, gt=0)
    return_after_s: float = Field(default=3600.0, gt=0)
    return_after_requests: int = Field(default=500, ge=0)
    max_returns: int = Field(default=4, ge=0)
    """Within a day."""
    canary_share: float = Field(default=0.05, gt=0, le=0.5)
    canary_requests: int = Field(default=300, ge=1)
    canary_patience_s: float = Field(default=14_400.0, gt=0)

    @field_validator("mode", mode="before")
    @classmethod
    def _on_and_off_are_words(cls, mode: object) -> object:
        # YAML reads a bare `on` as true.
        return {True: "on", False: "off"}[mode] if isinstance(mode, bool) else mode


class LedgerSettings(Frozen):
    """Whether and where the numbers of scored requests are kept."""

    path: Path | Literal["off"] | None = None
    """None: in the cache, a file for each port."""
    max_requests: int = Field(default=200_000, ge=1)
    max_days: float = Field(default=30.0, gt=0)

    @field_validator("path", mode="before")
    @classmethod
    def _off_is_a_word(cls, path: object) -> object:
        # YAML reads a bare `off` as false.
        return "off" if path is False else path


class VerdictSettings(Frozen):
    """How much divergence is borne, and how sure a verdict is; divergences are nats a token."""

    tolerance: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    """By slice, of every variant; ``all`` also stands for slices that nothing else is known of."""
    factor: float = Field(default=1.2, ge=1, allow_inf_nan=False)
    floor: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    ceiling: float = Field(default=0.3, gt=0, allow_inf_nan=False)
    baseline_requests: int = Field(default=200, ge=2)
    requests_per_false_alarm: int = Field(default=100_000, ge=1)
    """Scored requests; at most one alarm of any slice of a variant is false in so many."""
    stale_after_s: float = Field(default=600.0, gt=0)
    stale_after_requests: int = Field(default=100, ge=1)
    """Served ones; at small rates ten times as many as it takes to expect a score."""

    @model_validator(mode="after")
    def _floor_is_below(self) -> Self:
        if self.floor > self.ceiling:
            raise ValueError(
                f"'floor' is {self.floor} and 'ceiling' {self.ceiling}: use floor <= ceiling"
            )
        return self


class ShadowSettings(Frozen):
    """What is scored, what it may cost, and what follows; times are in seconds."""

    rate: float = Field(default=0.0, ge=0, le=1)
    tokens_per_second: float = Field(default=200.0, gt=0)
    """Prompt and answer tokens that references may read."""
    max_tokens: int = Field(default=4096, ge=2)
    """Of one request, prompt and answer."""
    top_k: int = Field(default=20, ge=1, le=MAX_TOP)
    estimator: Estimator = "topk"
    exact_tokens: int = Field(default=512, ge=1, le=MAX_ROWS)
    """Of one answer whose whole distributions are kept for an exact score."""
    exact_memory: ByteSize = Field(default=ByteSize(256 * 1024 * 1024), ge=1)
    """For them, in each engine that is scored exactly."""
    queue_size: int = Field(default=256, ge=1)
    queue_s: float = Field(default=300.0, gt=0)
    """How long a request may wait for its score."""
    score_timeout_s: float = Field(default=60.0, gt=0)
    max_running: int | None = Field(default=None, ge=0)
    """Requests that may run meanwhile; None: none beside a reference here, any beside one
    elsewhere."""
    floor_every: int = Field(default=50, ge=0)
    """Every how many scored requests the full model is scored against itself; 0 is never."""
    free_run: float = Field(default=0.0, ge=0, le=1)
    """Share of the scored requests that the reference also answers itself."""
    free_run_timeout_s: float = Field(default=300.0, gt=0)
    probe_every_s: float = Field(default=60.0, ge=0)
    """0 is never."""
    fixed_texts_every_s: float = Field(default=3600.0, ge=0)
    """0 is not again after a reading that succeeded."""
    slices: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The operator's own: keys of requests' metadata, and the values that are told apart."""
    reference: ReferenceSettings = ReferenceSettings()
    verdict: VerdictSettings = VerdictSettings()
    ledger: LedgerSettings = LedgerSettings()
    ladder: LadderSettings = LadderSettings()

    @model_validator(mode="after")
    def _longest_fits_the_budget(self) -> Self:
        if self.max_tokens > self.burst_tokens:
            raise ValueError(
                f"'max_tokens' is {self.max_tokens}, but 'tokens_per_second' makes only "
                f"{self.burst_tokens:.0f} in a minute: lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _rows_outlast_the_queue(self) -> Self:
        if self.estimator == "exact" and self.queue_s > MAX_ROWS_WAIT_S:
            raise ValueError(
                f"'queue_s' is {self.queue_s:g}, but engines keep what an exact score needs for "
                f"{MAX_ROWS_WAIT_S:g} s: use at most that, or 'estimator': topk"
            )
        return self

    def estimator_of(self, alias: str, variant: VariantSettings) -> Estimator:
        """Return how a variant's divergences are found: one way as long as the settings hold.

        Exactly where both engines are embedded ones of ours, beside each other. The full model has
        no verdict, so nothing is kept for it.
        """
        there = alias in self.reference.urls or variant.urls
        engines = {variant.engine, self.reference.engine}
        is_exact = self.estimator == "exact" and engines == {"embedded"} and not there
        return "exact" if is_exact and variant.recipe != FULL else "topk"

    @property
    def burst_tokens(self) -> float:
        """Return the tokens that may be read at once after a quiet minute."""
        return 60 * self.tokens_per_second


def default_ledger_path(port: int) -> Path:
    """Return the file of a service that named none; services beside each other share nothing."""
    return cache_home() / f"ledger-{port}.sqlite"
