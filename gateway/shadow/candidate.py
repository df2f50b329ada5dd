"""One drawn request, beside its way through the gateway; nothing here may fail the request."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from gateway.protocol import EngineInfo
from gateway.shadow.answer import ReplyBytes
from gateway.shadow.free_run import FreeRun
from gateway.shadow.records import Capture
from gateway.shadow.tally import DropReason, Tally
from gateway.specs import VariantSpec
from gateway.streaming import FrameSplitter, Relay
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class MakeCapture(Protocol):
    """Chooses how the reply of an engine is captured."""

    def __call__(self, info: EngineInfo | None, spec: VariantSpec) -> Capture | None:
        """Return a capture; None where the engine cannot be captured."""


class Candidate:
    """Takes note of one request and its reply; ends once, as scored or as dropped."""

    def __init__(
        self,
        request_id: str,
        model: str,
        fields: Mapping[str, Any],
        *,
        tally: Tally,
        make_capture: MakeCapture,
        on_reply: Callable[["Candidate"], None],
        on_drop: Callable[["Candidate", DropReason], None],
        trace_id: str | None = None,
    ) -> None:
        self.request_id = request_id
        self.trace_id = trace_id
        self.model = model
        self.fields: Mapping[str, Any] = fields
        self.reply = ReplyBytes()
        self.spec: VariantSpec | None = None
        self.client: EngineClient | None = None
        self.capture: Capture | None = None
        self.recipe_digest: str | None = None
        self.free_run: FreeRun | None = None
        """What the reference is to answer itself after the score."""
        self.is_over = False
        self.has_told_slices = False
        self.num_prompt_tokens: int | None = None
        """None: nobody has counted them."""
        self._tally = tally
        self._make_capture = make_capture
        self._on_reply = on_reply
        self._on_drop = on_drop
        tally.begin(model)

    # -- in the request's own way -----------------------------------------------------------

    def ask(
        self,
        fields: Mapping[str, Any],
        spec: VariantSpec,
        client: EngineClient,
        info: EngineInfo | None,
    ) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Return fields and headers to send to an engine; each attempt asks anew."""
        if not self.is_over:  # its end has told it already
            self._forget()  # of an attempt before
        self.spec, self.client, self.capture = spec, client, None
        self.recipe_digest = info.recipe_digest if info is not None else None
        unchanged: tuple[Mapping[str, Any], Mapping[str, str]] = (fields, {})
        if self.is_over:
            return unchanged

        def prepare() -> tuple[Mapping[str, Any], Mapping[str, str]]:
            capture = self._make_capture(info, spec)
            if capture is None:
                return unchanged
            asked = capture.fields(fields), capture.headers()
            self.capture = capture
            return asked

        return self._isolated(prepare, unchanged)

    def decline(self) -> None:
        """Take note that the engine refused what it was asked for beside the request."""
        self.capture = None
        self.drop("no_capture")

    def watch(self, relay: Relay) -> Relay:
        """Return a relay that takes note of a stream on its way to ``relay``."""
        return relay if self.capture is None else _Watching(relay, self)

    def see(self, event: bytes) -> bytes:
        """Take note of an event or a whole body; return what the client may see of it.

        Also when the candidate is over: the engine goes on telling what it was asked for.
        """
        capture = self.capture
        if capture is None:
            return event
        shown = self._isolated(lambda: capture.pass_on(event), event)
        if not self.is_over:
            self.reply.take(shown)
        return shown

    def finish(self, *, is_complete: bool) -> None:
        """Hand the request over after its reply has ended."""
        if self.is_over:
            return
        if not is_complete:
            self.drop("unfinished")
        elif self.capture is None:
            self.drop("no_capture")
        else:
            self._isolated(lambda: self._on_reply(self), None)

    # -- afterwards -------------------------------------------------------------------------

    def capture_of(self) -> Capture:
        """Return the capture of the engine that answered.

        Raises:
            RuntimeError: there is none.
        """
        if self.capture is None:
            raise RuntimeError("no engine has been asked yet")
        return self.capture

    def drop(self, reason: DropReason) -> None:
        """End it without a score; safe to repeat."""
        if not self.is_over:
            self._on_drop(self, reason)
            self._end()
            self._tally.drop(self.model, reason)
            if self.free_run is not None:
                self.free_run.end("unscored")

    def score(self) -> None:
        """End it with a score; safe to repeat."""
        if not self.is_over:
            self._end()
            self._tally.score(self.model)

    def forget_text(self) -> None:
        """Keep nothing of what was asked and answered."""
        self.fields, self.reply = {}, ReplyBytes()

    def _end(self) -> None:
        self.is_over = True
        self.forget_text()
        self._forget()

    def _forget(self) -> None:
        """Have the engine forget what it keeps for the score."""
        capture, client = self.capture, self.client
        if capture is not None and client is not None:
            self._isolated(lambda: capture.forget(client), None)

    def _isolated(self, work: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return work()
        except Exception:
            # The border between a client's reply and the shadow: a defect costs the score alone.
            if not self.is_over:  # a stream has many events
                logger.exception("the shadow of request %s failed", self.request_id)
            self.drop("error")
            return otherwise


class _Watching:
    """Cuts a stream into events for the candidate, and passes on what it shows."""

    def __init__(self, relay: Relay, candidate: Candidate) -> None:
        self._relay = relay
        self._candidate = candidate
        self._splitter = FrameSplitter()

    @property
    def is_complete(self) -> bool:
        """Return whether the client was sent the end mark."""
        return self._relay.is_complete

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes for the client.

        Raises:
            EngineFault: the chunk is no stream of events.
        """
        frames = self._splitter.feed(chunk)
        return self._relay.feed(b"".join([self._candidate.see(frame) for frame in frames]))

    def finish(self) -> bytes:
        """Return the last bytes for the client after the engine has closed its stream.

        Raises:
            ApiError: the stream ended before the answer did.
        """
        rest = self._splitter.flush()
        head = self._relay.feed(self._candidate.see(rest)) if rest else b""
        return head + self._relay.finish()
