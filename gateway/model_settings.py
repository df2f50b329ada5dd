"""How one model is made and served: its variants, replicas, and when they are in memory."""

import re
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

_VARIANT = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")

_HOST = re.compile(r"[0-9a-z_-]+(\.[0-9a-z_-]+)*\.?|[0-9a-f.]*:[0-9a-f:.]*", re.IGNORECASE)

MAX_REPLICAS = 64

EngineKind = Literal["embedded", "vllm"]
VllmOption = StrictBool | StrictInt | StrictFloat | StrictStr

_OPTION = re.compile(r"[a-z][a-z0-9-]*")


class Frozen(BaseModel):
    """Settings that do not change, and know all their keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        # No command line, path or host name can carry one.
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{value!r} has a NUL character: remove it")
        return value


class VariantSettings(Frozen):
    """How one variant of a model is made and served."""

    model: str = Field(min_length=1)
    recipe: str = Field(default="int4", min_length=1)
    revision: str | None = None
    engine: EngineKind = "embedded"
    vllm_python: Path | None = None
    vllm_options: dict[str, VllmOption] = Field(default_factory=dict)
    max_model_len: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    kv_cache_memory_bytes: ByteSize | None = Field(default=None, ge=1)
    enable_prefix_caching: bool = True
    replicas: int = Field(default=1, ge=1, le=MAX_REPLICAS)
    memory: ByteSize | None = Field(default=None, ge=1)
    urls: tuple[str, ...] = Field(default=(), max_length=MAX_REPLICAS)
    url_api_key_env: str | None = None
    extra_parameters: frozenset[str] = frozenset()

    @property
    def may_score_prompts(self) -> bool:
        """Return whether the engine bounds the memory that scores of a prompt take; ours does."""
        return not self.urls and self.engine == "embedded"

    @field_validator("urls", mode="before")
    @classmethod
    def _urls_are_a_list(cls, urls: Any) -> Any:
        if isinstance(urls, str):
            raise ValueError(f"must be a list: write [{_without_secret(urls)}]")
        return urls

    @field_validator("urls")
    @classmethod
    def _urls_are_http(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            check_address(url)
        return tuple(url.rstrip("/").removesuffix("/v1") for url in urls)

    @model_validator(mode="after")
    def _urls_are_the_replicas(self) -> Self:
        if self.urls and "replicas" in self.model_fields_set:
            raise ValueError("'replicas' and 'urls' exclude each other: each URL is a replica")
        if self.url_api_key_env is not None and not self.urls:
            raise ValueError("'url_api_key_env' needs 'urls': it is the key of engines elsewhere")
        return self

    @field_validator("vllm_options")
    @classmethod
    def _options_are_bare(cls, options: dict[str, VllmOption]) -> dict[str, VllmOption]:
        for name in options:
            if not _OPTION.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no name of an option: write it without leading dashes, such as "
                    "'gpu-memory-utilization'"
                )
        return options

    @model_validator(mode="after")
    def _vllm_is_started_here(self) -> Self:
        for name in ("vllm_python", "vllm_options"):
            if not getattr(self, name):
                continue
            if self.engine != "vllm":
                raise ValueError(f"{name!r} needs 'engine': vllm")
            if self.urls:
                raise ValueError(f"{name!r} and 'urls' exclude each other: others run that vLLM")
        return self


def check_address(url: str) -> None:
    """Refuse what is no address of an engine.

    Raises:
        ValueError: quotes it without its password.
    """
    if "@" in url:
        raise ValueError(
            f"{_without_secret(url)!r} must not hold a password: name a variable that holds the "
            "key in 'url_api_key_env'"
        )
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in {"http", "https"} and parts.port != 0
    except ValueError:  # the port is none
        is_address = False
    if not is_address or not _HOST.fullmatch(parts.hostname or "") or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is no address such as http://10.0.0.5:8000")


def _without_secret(url: str) -> str:
    head, separator, rest = url.rpartition("@")
    return url if not separator else f"{head.partition('//')[0]}//...@{rest}"


class Rung(Frozen):
    """One variant of a ladder; what it leaves out is as the model says."""

    name: str | None = Field(default=None, pattern=_VARIANT.pattern)
    model: str | None = Field(default=None, min_length=1)
    recipe: str | None = Field(default=None, min_length=1)
    revision: str | None = None
    engine: EngineKind | None = None
    vllm_python: Path | None = None
    vllm_options: dict[str, VllmOption] | None = None
    max_model_len: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    kv_cache_memory_bytes: ByteSize | None = Field(default=None, ge=1)
    enable_prefix_caching: bool | None = None
    replicas: int | None = Field(default=None, ge=1, le=MAX_REPLICAS)
    memory: ByteSize | None = Field(default=None, ge=1)
    urls: tuple[str, ...] | None = None
    url_api_key_env: str | None = None
    extra_parameters: frozenset[str] | None = None


class ModelSettings(VariantSettings):
    """One model: where it comes from, its variants, and when they are in memory."""

    ladder: tuple[Rung, ...] = ()
    active: str | None = None
    preload: bool = True
    pin: bool = False
    keep_alive_s: float | None = Field(default=None, gt=0)
    fallback: tuple[str, ...] = ()
    max_running: int | None = Field(default=None, ge=1)
    max_queued: int = Field(default=64, ge=0)
    queue_timeout_s: float = Field(default=30.0, gt=0)
    shadow: float | None = Field(default=None, ge=0, le=1)

    @field_validator("shadow", mode="before")
    @classmethod
    def _off_is_none_of_them(cls, rate: Any) -> Any:
        # YAML reads a bare `off` as false.
        return 0.0 if rate is False or rate == "off" else rate

    @field_validator("ladder", mode="before")
    @classmethod
    def _recipes_are_rungs(cls, ladder: Any) -> Any:
        if not isinstance(ladder, (list, tuple)):
            return ladder
        return [{"recipe": rung} if isinstance(rung, str) else rung for rung in ladder]

    @model_validator(mode="after")
    def _ladder_says_the_recipes(self) -> Self:
        if self.ladder and "recipe" in self.model_fields_set:
            raise ValueError("'recipe' and 'ladder' exclude each other: each rung has its recipe")
        return self

    @model_validator(mode="after")
    def _a_queue_needs_a_limit(self) -> Self:
        asked = self.model_fields_set & {"max_queued", "queue_timeout_s"}
        if asked and self.max_running is None:
            raise ValueError(f"{min(asked)!r} needs 'max_running': without it nothing waits")
        return self
