"""What the operator asks for: YAML file, environment and flags as one frozen, validated value."""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from compression.errors import RecipeError
from compression.presets import load_recipe
from compression.recipe import FULL
from gateway.api_key import ApiKey, check_distinct, check_models, named
from gateway.errors import SettingsError

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

ENV_PREFIX = "NARROWGATE_"
_ENV_OF_OTHERS = frozenset({"NARROWGATE_HOME", "NARROWGATE_API_KEY"})
# Kubernetes injects these for a Service that happens to be called "narrowgate".
_ENV_OF_KUBERNETES = re.compile(r"NARROWGATE_(SERVICE_(HOST|PORT)|PORT_\d+_)")
_ENDPOINT = re.compile(r"https?://[^\s/?#]+[^\s?#]*")
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VARIANT = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")

NEXT_RUNG = "next-rung"
"""In a model's ``fallback``: the variant above the active one on its ladder."""

MAX_REPLICAS = 64
_YAML_IN_ENVIRONMENT = frozenset({"models", "api_keys", "allowed_hosts", "cors_origins"})
_SECRET = frozenset({"api_keys", "redis_url"})
_REDIS_URL = re.compile(r"rediss?://.+|redis\+unix:///.+")
_ORIGIN = re.compile(r"https?://[^/\s]+|\*")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        # No command line, path or host name can carry one.
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{value!r} has a NUL character: remove it")
        return value


class VariantSettings(_Frozen):
    """How one variant of a model is made and served."""

    model: str = Field(min_length=1)
    recipe: str = Field(default="int4", min_length=1)
    revision: str | None = None
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

    @field_validator("urls")
    @classmethod
    def _urls_are_http(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError(f"{url!r} is no address such as http://10.0.0.5:8000")
        return tuple(url.rstrip("/").removesuffix("/v1") for url in urls)

    @model_validator(mode="after")
    def _urls_are_the_replicas(self) -> Self:
        if self.urls and "replicas" in self.model_fields_set:
            raise ValueError("'replicas' and 'urls' exclude each other: each URL is a replica")
        if self.url_api_key_env is not None and not self.urls:
            raise ValueError("'url_api_key_env' needs 'urls': it is the key of engines elsewhere")
        return self


class Rung(_Frozen):
    """One variant of a ladder; what it leaves out is as the model says."""

    name: str | None = Field(default=None, pattern=_VARIANT.pattern)
    model: str | None = Field(default=None, min_length=1)
    recipe: str | None = Field(default=None, min_length=1)
    revision: str | None = None
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


class Settings(_Frozen):
    """The whole service; times are in seconds."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    models: dict[str, ModelSettings] = Field(min_length=1)
    memory_budget: ByteSize | None = Field(default=None, ge=1)
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    max_retries: int = Field(default=1, ge=0, le=10)
    drain_s: float = Field(default=30.0, ge=0)
    load_wait_s: float = Field(default=30.0, ge=0)
    read_timeout_s: float = Field(default=600.0, gt=0)
    start_timeout_s: float = Field(default=600.0, gt=0)
    stall_timeout_s: float = Field(default=60.0, gt=0)
    unknown_parameters: Literal["reject", "report"] = "reject"
    sse_keep_alive_s: float = Field(default=15.0, gt=0)
    canary_max_nll_increase: float = Field(default=2.0, gt=0)
    api_keys: tuple[ApiKey, ...] = ()
    api_keys_file: Path | None = None
    redis_url: str | None = Field(default=None, repr=False)
    protect_metrics: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_concurrent_requests: int = Field(default=1024, ge=1)
    request_timeout_s: float | None = Field(default=None, gt=0)
    head_timeout_s: float = Field(default=30.0, gt=0)
    body_timeout_s: float = Field(default=30.0, gt=0)
    write_timeout_s: float = Field(default=60.0, gt=0)
    log_format: LogFormat = "text"
    log_level: LogLevel | None = None
    """None means ``warning`` in a terminal, where progress bars tell the story, else ``info``."""
    log_prompts: bool = False
    otlp_endpoint: str | None = None

    @field_validator("otlp_endpoint")
    @classmethod
    def _endpoint_is_an_address(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
            raise ValueError(
                f"{endpoint!r} is no address of a collector: give one like http://127.0.0.1:4318"
            )
        return endpoint

    @field_validator("models")
    @classmethod
    def _aliases_are_names(cls, models: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        for alias in models:
            if not _ALIAS.fullmatch(alias):
                raise ValueError(
                    f"the alias {alias!r} must be 1 to 64 letters, digits, '.', '_' or '-'"
                )
        return models

    @field_validator("api_keys", mode="before")
    @classmethod
    def _keys_have_names(cls, entries: Any) -> Any:
        return named(entries)

    @field_validator("redis_url")
    @classmethod
    def _redis_is_addressed(cls, url: str | None) -> str | None:
        if url is not None and not _REDIS_URL.fullmatch(url):
            raise ValueError("must begin with redis://, rediss:// or redis+unix:///")
        return url

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _hosts_are_names(cls, hosts: Any) -> Any:
        hosts = [hosts] if isinstance(hosts, str) else hosts
        for host in hosts if isinstance(hosts, (list, tuple)) else ():
            if not isinstance(host, str) or not re.fullmatch(
                r"[A-Za-z0-9._-]+|\[[0-9a-f:]+\]", host
            ):
                raise ValueError(f"{host!r} must be a host's name or address, without a port")
        return hosts

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins_are_whole(cls, origins: Any) -> Any:
        origins = [origins] if isinstance(origins, str) else origins
        for origin in origins if isinstance(origins, (list, tuple)) else ():
            if not isinstance(origin, str) or not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} must be as https://host or https://host:port, or '*'")
        return origins

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        check_distinct(self.api_keys)
        check_models(self.api_keys, list(self.models))
        if self.protect_metrics and not self.api_keys and self.api_keys_file is None:
            raise ValueError("'protect_metrics' needs 'api_keys' or 'api_keys_file'")
        return self


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """One variant of a model under its names."""

    alias: str
    variant: str
    settings: VariantSettings

    @property
    def served_name(self) -> str:
        """Return the name that pins the variant: ``alias@variant``."""
        return f"{self.alias}@{self.variant}"

    @property
    def num_replicas(self) -> int:
        """Return how many engines serve it."""
        return len(self.settings.urls) or self.settings.replicas


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: its ladder from the smallest variant to the safest, and which one is active."""

    alias: str
    variants: tuple[VariantSpec, ...]
    active: str
    settings: ModelSettings


def make_specs(settings: Settings) -> tuple[ModelSpec, ...]:
    """Return the models with their variants.

    Raises:
        SettingsError: a recipe is unknown, or a name stands for nothing or for two things.
    """
    specs = tuple(_model_spec(alias, model) for alias, model in settings.models.items())
    known = {spec.alias for spec in specs} | {NEXT_RUNG}
    known |= {variant.served_name for spec in specs for variant in spec.variants}
    for spec in specs:
        for name in spec.settings.fallback:
            if name not in known:
                raise SettingsError(
                    f"model {spec.alias!r}: 'fallback' names {name!r}: use "
                    f"{', '.join(sorted(known - {spec.alias}))}"
                )
    return specs


def _model_spec(alias: str, model: ModelSettings) -> ModelSpec:
    base = VariantSettings.model_validate(
        {key: getattr(model, key) for key in _set_of(model) & set(VariantSettings.model_fields)}
    )
    rungs = model.ladder or (Rung(recipe=model.recipe if "recipe" in _set_of(model) else None),)
    variants: dict[str, VariantSpec] = {}
    for rung in rungs:
        spec = _variant_spec(alias, base, rung)
        if spec.variant in variants:
            raise SettingsError(
                f"model {alias!r}: two rungs of 'ladder' are called {spec.variant!r}: "
                "give one another 'name'"
            )
        variants[spec.variant] = spec
    active = model.active or next(iter(variants))
    if active not in variants:
        raise SettingsError(
            f"model {alias!r}: 'active' is {active!r}: use one of {', '.join(variants)}"
        )
    return ModelSpec(alias, tuple(variants.values()), active, model)


def _variant_spec(alias: str, base: VariantSettings, rung: Rung) -> VariantSpec:
    said = {key: getattr(base, key) for key in _set_of(base)}
    said |= {
        key: value for key in _set_of(rung) - {"name"} if (value := getattr(rung, key)) is not None
    }
    if rung.urls:
        said.pop("replicas", None)
    if said.get("urls"):
        said.setdefault("recipe", FULL)
    try:
        settings = VariantSettings.model_validate(said)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"])) or "ladder"
        reason = problem["msg"].removeprefix("Value error, ")
        raise SettingsError(f"model {alias!r}: {key!r}: {reason}") from None
    return VariantSpec(alias, rung.name or _variant(alias, settings.recipe), settings)


def _set_of(settings: _Frozen) -> set[str]:
    return settings.model_fields_set


def _variant(alias: str, recipe: str) -> str:
    if recipe == FULL:
        return FULL
    try:
        return load_recipe(recipe).name
    except RecipeError as error:
        raise SettingsError(f"model {alias!r}: {error}") from None


def default_alias(model: str) -> str:
    """Return the name that clients send when the operator gave none.

    Raises:
        SettingsError: the last part of ``model`` is no valid alias.
    """
    path = Path(model)
    alias = (path.absolute() if model.startswith(".") else path).name.lower()
    if not _ALIAS.fullmatch(alias):
        raise SettingsError(f"cannot make an alias of the model {model!r}: give one with --name")
    return alias


def load_settings(
    file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> Settings:
    """Merge file, environment and flags; later ones win, key by key.

    Raises:
        SettingsError: names the key, the value and where it came from.
    """
    fields: dict[str, Any] = {}
    origins: dict[str, str] = {}
    sources = (
        (str(file), _read_yaml(file) if file else {}),
        ("environment", _read_environment(environment)),
        ("command line", {key: value for key, value in flags.items() if value is not None}),
    )
    for origin, found in sources:
        fields |= found
        origins |= dict.fromkeys(found, origin)
    if not fields.get("models"):
        raise SettingsError("no model: pass --model NAME, or list some under 'models' in --config")
    try:
        return Settings.model_validate(fields)
    except ValidationError as error:
        raise SettingsError(_first_problem(error, origins)) from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {file}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"the settings file {file} is not YAML: {reason}") from None
    if not isinstance(found, dict):
        raise SettingsError(f"the settings file {file} must be a mapping with the key 'models'")
    return {str(key): value for key, value in found.items()}


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in environment.items():
        if not name.startswith(ENV_PREFIX) or name in _ENV_OF_OTHERS:
            continue
        if _ENV_OF_KUBERNETES.match(name) or value.startswith("tcp://"):
            continue
        key = name.removeprefix(ENV_PREFIX).lower()
        found[key] = _parse_mapping(name, value) if key in _YAML_IN_ENVIRONMENT else value
    return found


def _parse_mapping(name: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise SettingsError(f"the environment variable {name} is not YAML or JSON") from None


def _suggestion(loc: tuple[int | str, ...]) -> str:
    """Return what an unknown key at that place was probably meant to be."""
    kind: type[BaseModel] = Settings
    if "ladder" in loc[:-1]:
        kind = Rung
    elif len(loc) > 1 and loc[0] == "models":
        kind = ModelSettings
    close = difflib.get_close_matches(str(loc[-1]), kind.model_fields, n=1)
    return f"did you mean {close[0]!r}?" if close else "remove it"


def _first_problem(error: ValidationError, origins: Mapping[str, str]) -> str:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if not key:
        return f"settings: {problem['msg'].removeprefix('Value error, ')}"
    origin = origins.get(str(problem["loc"][0]), "default")
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {key!r} ({origin}): {_suggestion(problem['loc'])}"
    if problem["type"] == "missing":
        return f"missing setting {key!r} ({origin})"
    reason = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"setting {key!r} ({origin}): {reason}"
    if problem["loc"][0] in _SECRET:
        return f"setting {key!r} ({origin}): {reason}"
    return f"setting {key!r} is {problem['input']!r} ({origin}): {reason}"
