"""How the reply of an engine is captured, and whether its whole distributions are wanted."""

import logging

from gateway.protocol import EngineInfo
from gateway.shadow.embedded_capture import EmbeddedCapture, WholeRows
from gateway.shadow.records import Capture
from gateway.shadow.releases import Releases
from gateway.shadow.vllm_capture import MIN_TOP, VllmCapture
from gateway.shadow_settings import ShadowSettings
from gateway.specs import VariantSpec
from gateway.wire import MAX_TOP_LOGPROBS

logger = logging.getLogger(__name__)

_BYTES = 4  # of a logit


class Capturing:
    """Chooses by engine and settings."""

    def __init__(self, settings: ShadowSettings) -> None:
        self._settings = settings
        self.releases = Releases()
        self._warned: set[str] = set()

    def by_top(
        self, info: EngineInfo | None, spec: VariantSpec, whole: WholeRows | None = None
    ) -> Capture | None:
        """Return what takes note of one reply of an engine; None where it cannot be captured."""
        top = self._settings.top_k
        if info is not None and info.max_capture is not None:
            return EmbeddedCapture(min(top, info.max_capture), whole)
        if spec.settings.engine == "vllm":
            top = max(MIN_TOP, min(top, MAX_TOP_LOGPROBS))
            return VllmCapture(top=top, max_tokens=self._settings.max_tokens)
        return None

    def for_score(self, info: EngineInfo | None, spec: VariantSpec) -> Capture | None:
        """Return the same, with whole distributions where the score is to be exact."""
        whole = None
        if self.is_exact(spec):
            self._warn_of_room(info, spec)
            whole = WholeRows(self._settings.exact_tokens, self.releases)
        return self.by_top(info, spec, whole)

    def is_exact(self, spec: VariantSpec) -> bool:
        """Return whether a variant's replies are scored exactly."""
        return self._settings.estimator_of(spec.alias, spec.settings) == "exact"

    def _warn_of_room(self, info: EngineInfo | None, spec: VariantSpec) -> None:
        """Say once of a variant that its engine cannot keep the longest answers, or any."""
        if info is None or info.vocab_size is None or spec.served_name in self._warned:
            return
        row_bytes, room = _BYTES * info.vocab_size, info.row_memory_bytes
        longest = self._settings.exact_tokens
        if longest * row_bytes <= room:
            return
        self._warned.add(spec.served_name)
        which, remedy = "it is", "raise the one"
        if room >= row_bytes:
            which = f"answers of more than {room // row_bytes} tokens are"
            remedy += " or lower the other"
        logger.warning(
            "%s: %s never scored: its engine has 'shadow.exact_memory' of %d bytes, and an answer "
            "of 'shadow.exact_tokens' %d takes %d, %d a token: %s",
            spec.served_name,
            which,
            room,
            longest,
            longest * row_bytes,
            row_bytes,
            remedy,
        )
