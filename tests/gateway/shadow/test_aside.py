"""What looks at requests on their way fails at its own risk."""

import asyncio
import logging
from typing import Any, NoReturn

import pytest

from gateway.shadow.judge import Judge
from gateway.shadow.shadow import Shadow
from tests.gateway.harness import CHAT
from tests.gateway.shadow.test_routed_requests import chat, gateway, who


def broken(*_: Any, **__: Any) -> NoReturn:
    """Fail, as a defect would."""
    raise RuntimeError("a defect")


@pytest.mark.parametrize("place", ["the judge", "the draw", "the slices"])
def test_a_defect_beside_requests_costs_none(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Plain and streamed requests are answered, and the log tells of the defect once."""
    if place == "the slices":
        monkeypatch.setattr("gateway.api.engine_routes.slices_of", broken)
    else:
        kind, name = (Judge, "served") if place == "the judge" else (Shadow, "draw")
        monkeypatch.setattr(kind, name, broken)

    async def ask() -> None:
        async with gateway("turns:multi") as (_, client):
            for is_stream in (False, True, False):
                assert await who(client, CHAT, chat(stream=is_stream)) == "int4"

    with caplog.at_level(logging.WARNING):
        asyncio.run(ask())
    assert [each.getMessage() for each in caplog.records if "beside" in each.getMessage()] == [
        f"{place} failed beside a request; told once"
    ]
