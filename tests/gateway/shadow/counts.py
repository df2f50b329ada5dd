"""What tests ask of a gateway's shadow."""

from collections.abc import Callable
from typing import Any

from tests.gateway.harness import Gateway


def counts(gateway: Gateway, model: str = "tiny") -> dict[str, Any]:
    """Return what became of a model's candidates."""
    found: dict[str, Any] = gateway.http.get("/admin/shadow").json()["models"][model]
    return found


def settled(
    gateway: Gateway, num_candidates: int, model: str = "tiny"
) -> Callable[[], dict[str, Any]]:
    """Return what gives the counts once so many candidates have ended, each exactly once."""

    def look() -> dict[str, Any]:
        found = counts(gateway, model)
        is_over = found["candidates"] == num_candidates and not found["in_flight"]
        if is_over:
            assert found["scored"] + sum(found["dropped"].values()) == num_candidates
        return found if is_over else {}

    return look
