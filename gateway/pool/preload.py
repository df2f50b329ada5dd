"""What is loaded at the start, and what gives way where that fails."""

import logging
from collections.abc import Iterable

from gateway.errors import ApiError, NarrowgateError, StartupError
from gateway.pool.model import Model
from gateway.pool.variant import Variant

logger = logging.getLogger(__name__)


async def preload(models: Iterable[Model]) -> None:
    """Load the active variant of every model that is to be preloaded, one after the other.

    One that cannot be loaded gives way to the one that the settings name.

    Raises:
        NarrowgateError: a first load failed.
    """
    for model in models:
        if not model.spec.settings.preload:
            continue
        try:
            await _load(model.active)
        except NarrowgateError as error:
            configured = model.configured
            if model.active is configured:
                raise
            name = model.active.spec.served_name
            logger.error("%s is given up for %s: %s", name, configured.spec.variant, error)
            model.begin_at(configured)
            await _load(configured)


async def _load(variant: Variant) -> None:
    try:
        await variant.ensure_ready()
    except (StartupError, ApiError) as error:
        if not variant.spec.settings.urls:
            raise
        # Engines elsewhere may come at any time, and the other models can be served.
        logger.error("%s is not there yet: %s", variant.spec.served_name, error)
