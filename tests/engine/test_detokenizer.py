"""Tests of incremental text against the tokenizer's own decoding."""

import random

import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models

from gateway.engine.detokenizer import Detokenizer, Vocabulary, from_byte_level, from_word_pieces
from gateway.engine.tokenizer import Tokenizer
from tests.engine.fakes import make_toy_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return the tiny byte-level tokenizer."""
    return make_toy_tokenizer(tmp_path_factory.mktemp("tokenizer"))


TEXTS = [
    "plain words",
    "über façade",
    "日本語のテキスト",
    "👩‍👩‍👧 and 🇫🇷",
    "a\tb\n\n  c",
    "\u0301\u200d",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_to_the_text_without_half_characters(tokenizer: Tokenizer, text: str) -> None:
    """Tokens that split characters yield nothing until the character is whole."""
    detokenizer = Detokenizer(tokenizer.vocabulary)
    pieces = [detokenizer.push(token_id) for token_id in tokenizer.encode(text)]

    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_random_tokens_decode_as_the_tokenizer_does(tokenizer: Tokenizer) -> None:
    """Any ids, invalid bytes included, give what decoding all of them at once gives."""
    chooser = random.Random(0)
    raw = tokenizer._fast
    for _ in range(200):
        ids = [chooser.randrange(3, 320) for _ in range(chooser.randrange(1, 20))]
        ids += tokenizer.encode("end")  # so that no character stays unfinished
        detokenizer = Detokenizer(tokenizer.vocabulary)
        assert "".join(map(detokenizer.push, ids)) == raw.decode(ids)


def test_special_tokens_are_bytes_but_not_text(tokenizer: Tokenizer) -> None:
    """A special token adds nothing to an answer; its name is there for log-probabilities."""
    vocabulary = tokenizer.vocabulary

    assert vocabulary.text_bytes(2) == b""
    assert vocabulary.bytes_of(2) == b"<|im_end|>"
    assert vocabulary.bytes_of(10_000) == b""


def test_added_tokens_that_are_not_special_are_text() -> None:
    """Tokens such as <think> belong to the answer."""
    vocabulary = Vocabulary(
        {0: "a"}.get, decode=from_byte_level, added={1: "<think é>"}, special_ids=frozenset()
    )

    assert vocabulary.text_bytes(1) == "<think é>".encode()


def test_word_pieces_decode_as_the_tokenizer_does() -> None:
    """SentencePiece pieces with byte fallback give the tokenizers library's own text."""
    pieces = ["<unk>", "▁Hello", "▁wor", "ld", "<0xE2>", "<0x82>", "<0xAC>", "▁", "x"]
    raw = RawTokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    vocabulary = Vocabulary(
        raw.id_to_token, decode=from_word_pieces, added={}, special_ids=frozenset()
    )
    ids = [1, 2, 3, 7, 4, 5, 6, 8]
    detokenizer = Detokenizer(vocabulary)

    assert "".join(map(detokenizer.push, ids)) == raw.decode(ids) == " Hello world €x"
