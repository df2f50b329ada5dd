"""One reply that an operator asked to see through: what its engine noted of it, or why nothing."""

from collections.abc import Mapping
from typing import Any

from gateway.errors import InvalidRequest, NotSupportedByEngine
from gateway.protocol import EngineInfo
from gateway.shadow.candidate import MakeCapture
from gateway.shadow.records import Capture, Captured, TooLong
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient


class Note:
    """Has an engine note its answer; unlike the shadow's, its absence is an error."""

    def __init__(self, make_capture: MakeCapture) -> None:
        self._make_capture = make_capture
        self._capture: Capture | None = None
        self._name = ""

    def ask(
        self,
        fields: Mapping[str, Any],
        spec: VariantSpec,
        client: EngineClient,
        info: EngineInfo | None,
    ) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Return fields and headers to send to an engine.

        Raises:
            NotSupportedByEngine: it cannot tell what it saw.
        """
        self._name = spec.served_name
        self._capture = self._make_capture(info, spec)
        if self._capture is None:
            raise self._untold()
        return self._capture.fields(fields), self._capture.headers()

    def decline(self) -> None:
        """Take note that the engine refused to tell."""
        self._capture = None

    async def read(self, content: bytes, client: EngineClient) -> tuple[bytes, Captured]:
        """Return the reply as a client sees it, and what was noted of it.

        Raises:
            NotSupportedByEngine: the engine told nothing, or not all.
            InvalidRequest: the reply is longer than what is scored.
            ApiError: it failed.
        """
        if self._capture is None:
            raise self._untold()
        shown = self._capture.pass_on(content)
        try:
            captured = await self._capture.result(client)
        except TooLong:
            raise InvalidRequest(
                "prompt and answer have more tokens than are scored ('shadow.max_tokens'): "
                "ask for a shorter answer with 'max_tokens'",
                param="max_tokens",
            ) from None
        if captured is None or not captured.positions:
            raise self._untold()
        return shown, captured

    def _untold(self) -> NotSupportedByEngine:
        return NotSupportedByEngine(
            f"the engine of {self._name!r} does not tell the log-probabilities of what it serves: "
            "ask a variant on engine 'embedded' or 'vllm'",
            param="model",
        )
