"""How the reply of an engine is captured, and whether its whole distributions are wanted."""

from gateway.protocol import EngineInfo
from gateway.shadow.embedded_capture import EmbeddedCapture, WholeRows
from gateway.shadow.records import Capture
from gateway.shadow.releases import Releases
from gateway.shadow.vllm_capture import MIN_TOP, VllmCapture
from gateway.shadow_settings import ShadowSettings
from gateway.specs import VariantSpec
from gateway.wire import MAX_TOP_LOGPROBS


class Capturing:
    """Chooses by engine and settings."""

    def __init__(self, settings: ShadowSettings) -> None:
        self._settings = settings
        self.releases = Releases()

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
            whole = WholeRows(self._settings.exact_tokens, self.releases)
        return self.by_top(info, spec, whole)

    def is_exact(self, spec: VariantSpec) -> bool:
        """Return whether a variant's replies are scored exactly."""
        return self._settings.estimator_of(spec.alias, spec.settings) == "exact"
