"""What the operator asks for: YAML file, environment and flags as one frozen, validated value."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, field_validator

from compression.errors import RecipeError
from compression.presets import load_recipe
from compression.recipe import FULL
from gateway.errors import SettingsError

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

ENV_PREFIX = "NARROWGATE_"
_ENV_OF_OTHERS = frozenset({"NARROWGATE_HOME", "NARROWGATE_API_KEY"})
# Kubernetes injects these for a Service that happens to be called "narrowgate".
_ENV_OF_KUBERNETES = re.compile(r"NARROWGATE_(SERVICE_(HOST|PORT)|PORT_\d+_)")
_ENDPOINT = re.compile(r"https?://[^\s/?#]+[^\s?#]*")
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        # No command line, path or host name can carry one.
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{value!r} has a NUL character: remove it")
        return value


class ModelSettings(_Frozen):
    """One model: where it comes from and how it is compressed and served."""

    model: str = Field(min_length=1)
    recipe: str = Field(default="int4", min_length=1)
    revision: str | None = None
    max_model_len: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    kv_cache_memory_bytes: ByteSize | None = Field(default=None, ge=1)
    enable_prefix_caching: bool = True


class Settings(_Frozen):
    """The whole service; times are in seconds."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    models: dict[str, ModelSettings] = Field(min_length=1)
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    drain_s: float = Field(default=30.0, ge=0)
    read_timeout_s: float = Field(default=600.0, gt=0)
    start_timeout_s: float = Field(default=600.0, gt=0)
    stall_timeout_s: float = Field(default=60.0, gt=0)
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


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model under its names."""

    alias: str
    variant: str
    settings: ModelSettings

    @property
    def served_name(self) -> str:
        """Return the name that pins the variant: ``alias@variant``."""
        return f"{self.alias}@{self.variant}"


def make_specs(settings: Settings) -> tuple[ModelSpec, ...]:
    """Return the models with their variants' names.

    Raises:
        SettingsError: a recipe is unknown or malformed.
    """
    return tuple(
        ModelSpec(alias, _variant(alias, model.recipe), model)
        for alias, model in settings.models.items()
    )


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
        found[key] = _parse_mapping(name, value) if key == "models" else value
    return found


def _parse_mapping(name: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise SettingsError(f"the environment variable {name} is not YAML or JSON") from None


def _first_problem(error: ValidationError, origins: Mapping[str, str]) -> str:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    origin = origins.get(str(problem["loc"][0]), "default")
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {key!r} ({origin}): remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"missing setting {key!r} ({origin})"
    reason = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"setting {key!r} ({origin}): {reason}"
    return f"setting {key!r} is {problem['input']!r} ({origin}): {reason}"
