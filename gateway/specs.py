"""The models and variants that the settings stand for, under their names."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from compression.errors import RecipeError
from compression.presets import load_recipe
from compression.recipe import FULL
from gateway.errors import SettingsError
from gateway.model_settings import Frozen, ModelSettings, Rung, VariantSettings
from gateway.settings import ALIAS, Settings
from gateway.validation import first_problem

NEXT_RUNG = "next-rung"
"""In a model's ``fallback``: the variant above the active one on its ladder."""


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """One variant of a model under its names."""

    alias: str
    variant: str
    settings: VariantSettings
    niceness: int = 0
    """How far its engines stand back for other processes of the machine."""
    is_reference: bool = False
    """Whether it only reads what others served; they are held against its weights."""

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


def first_loaded(settings: Settings) -> VariantSpec | None:
    """Return the variant that is loaded first at a start; None if none is, or they are in error."""
    try:
        specs = make_specs(settings)
    except SettingsError:
        return None
    for spec in specs:
        if spec.settings.preload:
            return next(each for each in spec.variants if each.variant == spec.active)
    return None


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
    if rung.engine == "embedded":
        said = {key: value for key, value in said.items() if not key.startswith("vllm_")}
    if said.get("urls"):
        said.setdefault("recipe", FULL)
    try:
        settings = VariantSettings.model_validate(said)
    except ValidationError as error:
        where, reason = first_problem(error)
        raise SettingsError(f"model {alias!r}: {where or 'ladder'!r}: {reason}") from None
    return VariantSpec(alias, rung.name or _variant(alias, settings.recipe), settings)


def _set_of(settings: Frozen) -> set[str]:
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
    if not ALIAS.fullmatch(alias):
        raise SettingsError(f"cannot make an alias of the model {model!r}: give one with --name")
    return alias
