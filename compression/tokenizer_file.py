"""The tokenizer that lies beside a checkpoint's weights."""

from pathlib import Path

from tokenizers import Tokenizer

from compression.errors import SourceError


class TokenizerFile:
    """A fast tokenizer that gives plain ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids


def load_tokenizer(directory: Path) -> TokenizerFile:
    """Return the fast tokenizer of a checkpoint directory.

    Raises:
        SourceError: it has none, or it cannot be read.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise SourceError(
            f"{str(directory)!r} has no tokenizer.json, which calibration needs: save the "
            "tokenizer as a fast one, or use a recipe without calibration"
        )
    try:
        return TokenizerFile(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises bare Exception
        reason = str(error).splitlines()[0]
        raise SourceError(f"{str(path)!r} is no tokenizer ({reason}): fetch it again") from None
