"""Where each token of a text begins in it, in characters."""

from gateway.engine.detokenizer import Detokenizer, Vocabulary


class TextOffsets:
    """Follows the tokens through a text, of which the beginning may be known.

    A special token counts only if the known text has it there: what a tokenizer adds does not.
    """

    def __init__(self, vocabulary: Vocabulary, *, text: str = "") -> None:
        self._vocabulary = vocabulary
        self._detokenizer = Detokenizer(vocabulary)
        self._known = text
        self._position = 0

    def push(self, token_id: int) -> int:
        """Return where this token begins."""
        start = self._position
        if self._vocabulary.text_bytes(token_id):
            self._position += len(self._detokenizer.push(token_id))
        else:
            content = self._vocabulary.bytes_of(token_id).decode("utf-8", "replace")
            if content and self._known.startswith(content, start):
                self._position += len(content)
        return start
