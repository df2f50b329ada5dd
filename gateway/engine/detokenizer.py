"""Token ids → bytes → text, one token at a time and never half a character."""

import codecs
from collections.abc import Callable, Mapping
from types import MappingProxyType

BYTE_FALLBACK = "<0x"
WORD_BORDER = "\N{LOWER ONE EIGHTH BLOCK}"


def _byte_alphabet() -> Mapping[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(256 + index): byte for index, byte in enumerate(others)}
    return MappingProxyType(alphabet)


BYTE_ALPHABET = _byte_alphabet()
"""The byte behind each printable character of byte-level BPE, as GPT-2 defined it."""


def from_byte_level(piece: str) -> bytes:
    """Return the bytes of a byte-level BPE piece; characters outside its alphabet are literal."""
    try:
        return bytes([BYTE_ALPHABET[character] for character in piece])
    except KeyError:
        return piece.encode()


def from_word_pieces(piece: str) -> bytes:
    """Return the bytes of a SentencePiece piece: ``<0xE2>`` is a byte, ``▁`` is a space."""
    if len(piece) == 6 and piece.startswith(BYTE_FALLBACK) and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace(WORD_BORDER, " ").encode()


class Vocabulary:
    """The bytes of each token id; worked out at first use, then remembered."""

    def __init__(
        self,
        piece_of: Callable[[int], str | None],
        *,
        decode: Callable[[str], bytes],
        added: Mapping[int, str],
        special_ids: frozenset[int],
    ) -> None:
        self._piece_of = piece_of
        self._decode = decode
        self._special_ids = special_ids
        self._bytes = {token_id: content.encode() for token_id, content in added.items()}

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes a token stands for; special tokens are literal, unknown ids empty."""
        known = self._bytes.get(token_id)
        if known is None:
            piece = self._piece_of(token_id)
            known = self._bytes[token_id] = b"" if piece is None else self._decode(piece)
        return known

    def text_bytes(self, token_id: int) -> bytes:
        """Return what a token adds to an answer: nothing if it is special."""
        return b"" if token_id in self._special_ids else self.bytes_of(token_id)


class Detokenizer:
    """The growing text of one answer; constant work per token."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the characters that this token completes, maybe none.

        Bytes that can never become a character turn into U+FFFD; an unfinished character at the
        end of an answer stays unsaid.
        """
        return self._decoder.decode(self._vocabulary.text_bytes(token_id))
