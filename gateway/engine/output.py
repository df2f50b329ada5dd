"""The answer of one sequence as it grows: text, log-probabilities, and the reason it ends."""

from collections import deque

from gateway.engine.detokenizer import Detokenizer, Vocabulary
from gateway.engine.sequence import Delta, FinishReason, SamplingParams, TokenLogprob
from gateway.engine.stopping import StopStrings


class Output:
    """Turns chosen tokens into deltas.

    Every token counts against ``max_tokens``, the one that ends the answer too. A token's
    log-probability leaves with the text it belongs to, and not at all if a stop string cut it off.
    Nothing stops the first ``min_tokens`` tokens.
    """

    def __init__(
        self, params: SamplingParams, *, vocabulary: Vocabulary, eos_ids: frozenset[int]
    ) -> None:
        self._params = params
        self._end_ids = params.end_ids(eos_ids)
        self._detokenizer = Detokenizer(vocabulary)
        self._stops = StopStrings(params.stop)
        self._logprobs: deque[tuple[int, TokenLogprob]] = deque()
        self._token_ids: list[int] = []  # not handed over yet
        self._num_decoded = 0  # characters
        self._num_released = 0  # characters
        self.num_tokens = 0

    def push(self, token_id: int, logprob: TokenLogprob | None) -> Delta | None:
        """Return what the token adds to the answer, or None while text is held back."""
        self.num_tokens += 1
        if self._params.returns_token_ids:
            self._token_ids.append(token_id)
        if token_id in self._end_ids:
            if logprob is not None and self._params.keeps_end_logprob:
                self._logprobs.append((self._num_decoded, logprob))
            return self._finish(self._stops.flush(), "stop")
        if logprob is not None:
            self._logprobs.append((self._num_decoded, logprob))
        text = self._detokenizer.push(token_id)
        self._num_decoded += len(text)
        if self.num_tokens > self._params.min_tokens:
            text, is_stopped = self._stops.push(text)
            if is_stopped:
                return Delta(text, self._release(text), "stop", self._take_ids())
        if self.num_tokens >= self._params.max_tokens:
            return self._finish(text + self._stops.flush(), "length")
        return Delta(text, self._release(text), None, self._take_ids()) if text else None

    def nothing(self) -> Delta:
        """Return the end of an answer that may hold no token at all."""
        return self._finish("", "length")

    def _finish(self, text: str, reason: FinishReason) -> Delta:
        entries = tuple(entry for _, entry in self._logprobs)
        return Delta(text, entries, reason, self._take_ids())

    def _take_ids(self) -> tuple[int, ...]:
        if not self._token_ids:
            return ()
        taken, self._token_ids = tuple(self._token_ids), []
        return taken

    def _release(self, text: str) -> tuple[TokenLogprob, ...]:
        """Return the log-probabilities of all tokens that begin inside the text sent so far."""
        self._num_released += len(text)
        released: list[TokenLogprob] = []
        while self._logprobs and self._logprobs[0][0] < self._num_released:
            released.append(self._logprobs.popleft()[1])
        return tuple(released)
