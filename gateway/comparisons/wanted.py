"""What an operator asks to be compared → the command line of the process that does it."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from compression.presets import PRESETS
from compression.recipe import FULL
from gateway.comparisons.command import CompareCommand
from gateway.errors import InvalidRequest
from gateway.model_settings import ModelSettings, VariantSettings
from gateway.specs import VariantSpec
from gateway.wire import MAX_ECHO, ExactWire

MAX_RECIPES = 16

RecipeName = Annotated[str, Field(min_length=1, max_length=64)]


class CompareRequest(ExactWire):
    """Body of ``POST /admin/compare``; without ``recipes`` all variants of the model are meant.

    ``model`` may pin one variant. ``max_tokens`` is of each slice.
    """

    model: str = Field(min_length=1)
    recipes: Annotated[list[RecipeName], Field(min_length=1, max_length=MAX_RECIPES)] | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    threads: int = Field(default=1, ge=1, le=1024)


def command_of(
    request: CompareRequest, model: ModelSettings, variants: Sequence[VariantSpec]
) -> CompareCommand:
    """Return what compares the wanted recipes with the full model, both made here.

    Raises:
        InvalidRequest: the model is not here, or a recipe is none of its variants and no preset.
    """
    if model.urls:
        raise InvalidRequest(
            f"'model' is {request.model!r}, whose engines are elsewhere: name a model that is "
            "made here",
            param="model",
        )
    known = {each.variant: each.settings for each in variants}
    names = request.recipes
    if names is None:
        pinned = request.model.partition("@")[2]
        names = [
            name
            for name, settings in known.items()
            if name == pinned or (not pinned and name != FULL and not _obstacle(settings, model))
        ]
    if not names:
        raise InvalidRequest(
            f"{request.model!r} has no variant but 'full' that is made here: name presets, as in "
            '"recipes": ["int8"]',
            param="recipes",
        )
    return CompareCommand(
        model=model.model,
        recipe=tuple(dict.fromkeys(_recipe(name, known, model) for name in names)),
        revision=model.revision,
        max_tokens=request.max_tokens,
        threads=request.threads,
    )


def _recipe(name: str, known: Mapping[str, VariantSettings], model: ModelSettings) -> str:
    settings = known.get(name)
    if settings is not None:
        if (reason := _obstacle(settings, model)) is not None:
            raise InvalidRequest(
                f"'recipes' names the variant {name!r}, which {reason}: leave it out",
                param="recipes",
            )
        return settings.recipe
    # Never a path: what the service reads is not for its clients to say.
    if name == FULL or name in PRESETS:
        return name
    raise InvalidRequest(
        f"'recipes' names {name[:MAX_ECHO]!r}: use a variant of this model ({', '.join(known)}) or "
        f"a preset ({', '.join(PRESETS)})",
        param="recipes",
    )


def _obstacle(settings: VariantSettings, model: ModelSettings) -> str | None:
    """Return why a variant cannot be held against the model's own full one here."""
    if settings.urls:
        return "has engines elsewhere"
    if (settings.model, settings.revision) != (model.model, model.revision):
        return "is made from another checkpoint"
    return None
