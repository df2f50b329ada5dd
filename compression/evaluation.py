"""The text that fidelity is measured on: named slices, cut into windows of token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

from compression.errors import EvaluationError

WINDOW_TOKENS = 512
"""Tokens that a model sees at once, special tokens in front included."""

BUILTIN_NAMES = ("english", "german", "french", "chinese", "code", "json", "arithmetic")


class Tokenizer(Protocol):
    """The one method that is needed of a transformers tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of ``text``."""
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """Token ids that a model reads at once; ``first`` is the index of the first one predicted."""

    token_ids: tuple[int, ...]
    first: int

    @property
    def rows(self) -> slice:
        """Return the positions whose logits predict :attr:`targets`."""
        return slice(self.first - 1, len(self.token_ids) - 1)

    @property
    def targets(self) -> tuple[int, ...]:
        """Return the ids that really follow, one for each of :attr:`rows`."""
        return self.token_ids[self.first :]


def builtin_slices() -> dict[str, str]:
    """Return the texts that ship with the package, by slice name."""
    directory = resources.files("compression").joinpath("texts")
    return {
        name: directory.joinpath(f"{name}.txt").read_text(encoding="utf-8")
        for name in BUILTIN_NAMES
    }


def slices_from(directory: Path) -> dict[str, str]:
    """Return each regular file of ``directory`` as a slice named by its stem.

    Hidden files and sub-directories are left out.

    Raises:
        EvaluationError: no such directory, no file in it, or a file that is no text.
    """
    if not directory.is_dir():
        raise EvaluationError(f"--text {str(directory)!r} is no directory: give one of text files")
    slices: dict[str, str] = {}
    try:
        for path in sorted(directory.iterdir()):
            if path.name.startswith(".") or not path.is_file():
                continue
            if path.stem in slices:
                raise EvaluationError(
                    f"two files in {str(directory)!r} make the slice {path.stem!r}: rename one"
                )
            slices[path.stem] = _read(path)
    except OSError as error:
        place = error.filename or str(directory)
        raise EvaluationError(f"cannot read {place!r}: {error.strerror}") from None
    if not slices:
        raise EvaluationError(f"--text {str(directory)!r} holds no file: put one text per slice")
    return slices


def cut(
    name: str,
    text: str,
    tokenizer: Tokenizer,
    *,
    window_tokens: int = WINDOW_TOKENS,
    max_tokens: int | None = None,
) -> list[Window]:
    """Cut a slice into consecutive windows, each behind the tokenizer's own special tokens.

    ``max_tokens`` keeps only the first tokens of the text.

    Raises:
        EvaluationError: fewer than two tokens are left to predict.
    """
    token_ids = tokenizer.encode(text, add_special_tokens=False)[:max_tokens]
    prefix = special_prefix(tokenizer)
    first = max(len(prefix), 1)
    step = window_tokens - len(prefix)
    windows = [
        Window((*prefix, *token_ids[start : start + step]), first)
        for start in range(0, len(token_ids), step)
    ]
    windows = [window for window in windows if window.targets]
    if sum(len(window.targets) for window in windows) < 2:
        raise EvaluationError(
            f"slice {name!r} has {len(token_ids)} tokens: too few to predict, give more text"
        )
    return windows


def _read(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"{str(path)!r} is not UTF-8 (byte {error.start}): convert it or move it away"
        ) from None
    if not text.strip():
        raise EvaluationError(f"{str(path)!r} is empty: put text into it or move it away")
    return text


def special_prefix(tokenizer: Tokenizer) -> Sequence[int]:
    """Return what the tokenizer puts in front of any text, such as a begin-of-text token."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    marked = tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(marked)):
        if marked[start : start + len(plain)] == plain:
            return marked[:start]
    return []
