"""Who is who: the models and variants that names stand for."""

from collections.abc import Collection, Iterator

from gateway.errors import ModelNotFound
from gateway.pool.model import Model
from gateway.pool.variant import Variant
from gateway.specs import NEXT_RUNG
from gateway.wire import MAX_ECHO


class Roster:
    """All models by alias, all variants by ``alias`` or ``alias@variant``."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}

    def add(self, model: Model) -> None:
        """Let a model be found, after those that came before."""
        self._models[model.spec.alias] = model

    def __iter__(self) -> Iterator[Model]:
        """Yield the models in the order in which they were added."""
        return iter(self._models.values())

    def variants(self) -> list[Variant]:
        """Return all variants, model by model, rung by rung."""
        return [each for model in self for each in model.variants.values()]

    def find(self, name: str) -> tuple[Model, Variant | None]:
        """Return the model of a name, and the variant that the name pins.

        Raises:
            ModelNotFound: names the models that exist.
        """
        alias, _, pinned = name.partition("@")
        model = self._models.get(alias)
        if model is not None and name == alias:
            return model, None
        if model is not None and pinned in model.variants:
            return model, model.variants[pinned]
        known = ", ".join(variant.spec.served_name for variant in self.variants())
        raise ModelNotFound(f"no model {name[:MAX_ECHO]!r} is served here: use one of {known}")

    def variant(self, name: str) -> Variant:
        """Return the variant that answers to a name now.

        Raises:
            ModelNotFound: names the models that exist.
        """
        model, pinned = self.find(name)
        return pinned or model.active

    def targets(self, name: str, request_id: str | None, slices: Collection[str]) -> list[Variant]:
        """Return who may answer a request, in the order in which they are to be tried.

        A name that pins its variant has no second choice. Where one of the request's slices leads
        elsewhere, that is its first choice; a canary is one of the requests that it takes; the
        active variant is their second.

        Raises:
            ModelNotFound: names the models that exist.
        """
        model, pinned = self.find(name)
        if pinned is not None:
            return [pinned]
        targets = model.first_choices(request_id, slices)
        for fallback in model.spec.settings.fallback:
            if fallback == NEXT_RUNG:
                targets += model.next_rung()
            else:
                targets.append(self.variant(fallback))
        return list(dict.fromkeys(targets))
