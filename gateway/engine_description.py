"""What an engine says of itself, read: its description, or the list of models that others have.

Pure: bytes in, a description or an error out. ``base_url`` is the engine's address, for errors.
"""

from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import ValidationError

from gateway.errors import EngineFault
from gateway.protocol import EngineInfo
from gateway.validation import first_problem

_MAX_NAMES = 8


def read_description(content: bytes, served_name: str, base_url: str) -> EngineInfo:
    """Return the description in a reply of ``/engine/info``.

    Raises:
        EngineFault: it is none, or of another model.
    """
    try:
        info = EngineInfo.model_validate_json(content)
    except ValidationError as error:
        raise _not_described(error, f"{base_url}/engine/info") from None
    if info.served_model_name != served_name:
        raise _other_model([info.served_model_name], served_name, base_url)
    return info


def read_card(content: bytes, served_name: str, base_url: str) -> EngineInfo:
    """Return the little that a reply of ``/v1/models`` says of a model.

    Raises:
        EngineFault: it is no list of models, or does not list this one.
    """
    cards = _cards(content, base_url)
    card = next((card for name, card in cards if name == served_name), None)
    if card is None:
        raise _other_model([str(name) for name, _ in cards], served_name, base_url)
    try:
        return EngineInfo(served_model_name=served_name, max_model_len=card.get("max_model_len"))
    except ValidationError as error:
        raise _not_described(error, f"{base_url}/v1/models") from None


def read_names(content: bytes, base_url: str) -> list[str]:
    """Return the names in a reply of ``/v1/models``.

    Raises:
        EngineFault: it is no list of models.
    """
    return [str(name) for name, _ in _cards(content, base_url)]


def _cards(content: bytes, base_url: str) -> list[tuple[Any, dict[str, Any]]]:
    try:
        return [(each["id"], each) for each in orjson.loads(content)["data"]]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        raise EngineFault(f"{base_url}/v1/models is no list of models: correct 'urls'") from None


def _not_described(error: ValidationError, url: str) -> EngineFault:
    where, reason = first_problem(error)
    what = f"{where!r} {reason}" if where else reason
    return EngineFault(f"{url} does not describe an engine ({what}): correct 'urls'")


def _other_model(served: Sequence[str], wanted: str, base_url: str) -> EngineFault:
    return EngineFault(
        f"the engine at {base_url} does not serve {wanted!r} but "
        f"{', '.join(served[:_MAX_NAMES]) or 'nothing'}: correct 'model'"
    )
