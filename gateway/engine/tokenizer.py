"""The tokenizer of a checkpoint: chat template, text → ids, and what ids mean as bytes."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from compression.errors import CorruptCheckpoint
from gateway.engine.detokenizer import Vocabulary, from_byte_level, from_word_pieces
from gateway.engine.plain_tokenizer import PlainTokenizer, read_plain_tokenizer
from gateway.engine.tool_markup import CALL_END, CALL_START


class Tokenizer:
    """A fast tokenizer, ours or that of transformers, reduced to what serving needs."""

    def __init__(
        self, backend: PlainTokenizer | Any, *, eos_ids: frozenset[int], source: Path
    ) -> None:
        self.backend = backend
        self._fast: RustTokenizer = backend.backend_tokenizer
        self.eos_ids = eos_ids
        self.vocabulary = _make_vocabulary(backend, source)
        vocab = backend.get_vocab()
        # A text can be refused for its length without reading it all.
        self.longest_token_bytes = max(map(len, vocab), default=1)
        self.num_ids = max(vocab.values(), default=-1) + 1
        """One more than the highest token id."""

    @property
    def has_chat_template(self) -> bool:
        """Return whether the checkpoint says how a conversation becomes a prompt."""
        return bool(self.backend.chat_template)

    @cached_property
    def knows_tools(self) -> bool:
        """Return whether the chat template can offer tools and show their calls."""
        return "tools" in self._templates

    @cached_property
    def calls_are_marked_up(self) -> bool:
        """Return whether the chat template teaches calls as ``<tool_call>`` and JSON."""
        return CALL_START in self._templates

    def is_special(self, content: str) -> bool:
        """Return whether the text is one special token of this vocabulary."""
        added = self.backend.added_tokens_decoder.values()
        return any(token.special and token.content == content for token in added)

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the conversation as the chat template writes it, ready for the answer by default.

        Raises:
            jinja2.TemplateError: the template refuses the messages.
        """
        if isinstance(self.backend, PlainTokenizer):
            return self.backend.render(messages, tools, add_generation_prompt=add_generation_prompt)
        text: str = self.backend.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of ``text``; what the checkpoint adds at the ends only if asked to."""
        # The batch call is the one that lets other threads run meanwhile.
        found = self._fast.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = found[0].ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids``, special tokens included."""
        text: str = self._fast.decode(ids, skip_special_tokens=False)
        return text

    def pieces(self, ids: list[int]) -> list[str]:
        """Return the vocabulary's own spelling of each id."""
        return [self._fast.id_to_token(token_id) or "" for token_id in ids]

    def to_json(self) -> str:
        """Return the whole tokenizer as ``tokenizer.json`` has it, without limits on length."""
        fast = self._fast
        if fast.truncation is not None or fast.padding is not None:
            fast = RustTokenizer.from_str(fast.to_str())
            fast.no_truncation()
            fast.no_padding()
        return fast.to_str()

    @property
    def _templates(self) -> str:
        template = self.backend.chat_template or ""
        return template if isinstance(template, str) else json.dumps(template)


def load_tokenizer(directory: Path) -> Tokenizer:
    """Load the tokenizer of the checkpoint in ``directory``.

    Raises:
        CorruptCheckpoint: files are missing, damaged, or of a kind that cannot be served.
    """
    backend = read_plain_tokenizer(directory) or load_backend(directory)
    return Tokenizer(backend, eos_ids=_eos_ids(directory, backend), source=directory)


def load_backend(directory: Path) -> Any:
    """Return transformers' fast tokenizer of the checkpoint in ``directory``.

    Raises:
        CorruptCheckpoint: files are missing or damaged.
    """
    # Imported here, because it takes a second and is seldom needed. Not AutoTokenizer: finding the
    # class takes two more seconds, and a tokenizer.json says everything itself.
    from transformers import PreTrainedTokenizerFast

    if not (directory / "tokenizer.json").is_file():
        raise CorruptCheckpoint(
            f"no tokenizer.json in {directory}: save the tokenizer in its fast form there"
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    except Exception as error:
        # The border to the Rust library, which raises bare exceptions for damaged files.
        reason = " ".join(str(error).split())
        raise CorruptCheckpoint(f"cannot load the tokenizer in {directory}: {reason}") from error


def _eos_ids(directory: Path, backend: Any) -> frozenset[int]:
    """Return every id that ends an answer, whichever file names it."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if path.is_file():
            ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    if backend.eos_token_id is not None:
        found.add(backend.eos_token_id)
    return frozenset(found)


def _make_vocabulary(backend: Any, source: Path) -> Vocabulary:
    """Read from the tokenizer's own decoder how its pieces become bytes."""
    decoder = backend.backend_tokenizer.decoder
    description = b"" if decoder is None else decoder.__getstate__()
    if b'"ByteLevel"' in description:
        decode = from_byte_level
    elif b'"ByteFallback"' in description or b'"Metaspace"' in description:
        decode = from_word_pieces
    else:
        raise CorruptCheckpoint(
            f"the tokenizer in {source} is neither byte-level BPE nor SentencePiece: "
            "its answers cannot be streamed"
        )
    added = backend.added_tokens_decoder
    return Vocabulary(
        backend.backend_tokenizer.id_to_token,
        decode=decode,
        added={token_id: token.content for token_id, token in added.items()},
        # Calls of tools are part of an answer, whatever kind of token their marks are.
        special_ids=frozenset(
            token_id
            for token_id, token in added.items()
            if token.special and token.content not in (CALL_START, CALL_END)
        ),
    )
