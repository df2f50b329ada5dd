"""What the operator asks for: YAML file, environment and flags as one frozen, validated value."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ByteSize,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from compression.strict_yaml import load_yaml
from gateway.api_key import ApiKey, check_distinct, check_models, named
from gateway.errors import SettingsError
from gateway.model_settings import Frozen, ModelSettings, Rung
from gateway.shadow_settings import ShadowSettings

PREPARE_TIMEOUT_S = 3600.0
"""One layer of a slow method can take long."""

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

ENV_PREFIX = "NARROWGATE_"
_ENV_OF_OTHERS = frozenset({"NARROWGATE_HOME", "NARROWGATE_API_KEY", "NARROWGATE_VLLM_PYTHON"})
# Kubernetes injects these for a Service that happens to be called "narrowgate".
_ENV_OF_KUBERNETES = re.compile(r"NARROWGATE_(SERVICE_(HOST|PORT)|PORT_\d+_)")
_ENDPOINT = re.compile(r"https?://[^\s/?#]+[^\s?#]*")
ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_YAML_IN_ENVIRONMENT = frozenset({"models", "api_keys", "allowed_hosts", "cors_origins", "shadow"})
_SECRET = frozenset({"api_keys", "redis_url"})
_REDIS_URL = re.compile(r"rediss?://.+|redis\+unix:///.+")
_ORIGIN = re.compile(r"https?://[^/\s]+|\*")


class Settings(Frozen):
    """The whole service; times are in seconds."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    models: dict[str, ModelSettings] = Field(min_length=1)
    memory_budget: ByteSize | None = Field(default=None, ge=1)
    max_body_bytes: ByteSize = Field(default=ByteSize(8 * 1024 * 1024), ge=1024)
    max_body_parts: int = Field(default=50_000, ge=1024)
    """Objects, lists and named values of one body."""
    max_retries: int = Field(default=1, ge=0, le=10)
    drain_s: float = Field(default=30.0, ge=0)
    load_wait_s: float = Field(default=30.0, ge=0)
    read_timeout_s: float = Field(default=600.0, gt=0)
    prepare_timeout_s: float = Field(default=PREPARE_TIMEOUT_S, gt=0)
    start_timeout_s: float = Field(default=600.0, gt=0)
    stall_timeout_s: float = Field(default=60.0, gt=0)
    unknown_parameters: Literal["reject", "report"] = "reject"
    sse_keep_alive_s: float = Field(default=15.0, gt=0)
    smoke_check_max_nll_increase: float = Field(default=2.0, gt=0)
    shadow: ShadowSettings = ShadowSettings()
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
            if not ALIAS.fullmatch(alias):
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

    @model_validator(mode="after")
    def _references_fit(self) -> Self:
        for alias in self.shadow.reference.urls:
            if alias not in self.models:
                raise ValueError(
                    f"'shadow.reference.urls' names the model {alias!r}: use one of "
                    f"{', '.join(self.models)}"
                )
        reserved = self.shadow.reference.memory
        if reserved and self.memory_budget is not None and reserved >= self.memory_budget:
            raise ValueError(
                f"'shadow.reference.memory' is {reserved} and leaves nothing of 'memory_budget', "
                f"{self.memory_budget}: lower it"
            )
        for alias in self.models:
            if self.shadow_rate(alias) and (reason := self.shadow_obstacle(alias)):
                raise ValueError(reason)
        return self

    @property
    def engine_memory(self) -> int | None:
        """Return the part of the memory budget that is for the engines that serve, in bytes."""
        budget, reserved = self.memory_budget, self.shadow.reference.memory
        return None if budget is None else budget - (reserved or 0)

    def shadow_rate(self, alias: str) -> float:
        """Return the share of a model's requests that is scored."""
        own = self.models[alias].shadow
        return self.shadow.rate if own is None else own

    def shadow_obstacle(self, alias: str) -> str | None:
        """Return why a model's requests cannot be scored, and the remedy; None if they can."""
        reference = self.shadow.reference
        if alias in reference.urls:
            return None
        if self.models[alias].urls:
            return (
                f"model {alias!r} has engines elsewhere and no reference here: name one in "
                f"'shadow.reference.urls', as {{{alias}: http://10.0.0.5:8000}}"
            )
        if self.memory_budget is not None and reference.memory is None:
            return (
                "'shadow' needs memory of its own beside 'memory_budget': say how much of it "
                "references may hold in 'shadow.reference.memory'"
            )
        return None


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
        found = load_yaml(file.read_text(encoding="utf-8"))
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
        return load_yaml(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise SettingsError(f"the environment variable {name} is not YAML or JSON") from None


def _suggestion(loc: tuple[int | str, ...]) -> str:
    """Return what an unknown key at that place was probably meant to be."""
    kind: type[BaseModel] = Settings
    if "ladder" in loc[:-1] and loc[0] == "models":
        kind = Rung
    elif loc[0] == "shadow" and len(loc) > 1:
        part = ShadowSettings.model_fields.get(str(loc[1])) if len(loc) > 2 else None
        kind = part.default.__class__ if part is not None else ShadowSettings
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
