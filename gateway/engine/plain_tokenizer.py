"""A tokenizer whose files say nothing out of the ordinary, read without transformers.

transformers takes a second to import, and for most checkpoints its tokenizer is the Rust library's
with names for a few tokens. Whatever could make it more than that is left to transformers.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from gateway.engine.chat_template import ChatTemplate, read_template

_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
NAMED_TOKENS = tuple(f"{name}_token" for name in _NAMED)

_EXTRA_TOKENS = frozenset({"additional_special_tokens", "extra_special_tokens"})
_WITHOUT_EFFECT = frozenset(
    {
        "backend",
        "clean_up_tokenization_spaces",
        "errors",
        "is_local",
        "legacy",
        "local_files_only",
        "model_input_names",
        "model_max_length",
        "name_or_path",
        "tokenizer_class",
        "use_default_system_prompt",
        "vocab_size",
    }
)
"""Entries of ``tokenizer_config.json`` that change no id and no text of what is asked here."""
_WITHOUT_EFFECT_IF_FALSE = frozenset(
    {"add_bos_token", "add_eos_token", "add_prefix_space", "split_special_tokens"}
)
_KNOWN = {*NAMED_TOKENS, *_EXTRA_TOKENS, "added_tokens_decoder", "chat_template"}
_LEGACY_FILES = ("added_tokens.json", "additional_chat_templates")
"""Beside ``tokenizer_config.json`` they can change added tokens or templates."""
_MISREAD_FAMILIES = ("mistral", "voxtral", "pixtral")
"""Some of their tokenizers are wrong, which transformers corrects or warns of."""
_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


class PlainTokenizer:
    """The Rust tokenizer, its special tokens by name, and the chat template."""

    def __init__(
        self,
        backend_tokenizer: RustTokenizer,
        named: Mapping[str, str],
        template: ChatTemplate | None,
    ) -> None:
        self.backend_tokenizer = backend_tokenizer
        self.added_tokens_decoder: Mapping[int, AddedToken] = MappingProxyType(
            backend_tokenizer.get_added_tokens_decoder()
        )
        eos = named.get("eos_token")
        self.eos_token_id = None if eos is None else backend_tokenizer.token_to_id(eos)
        self._template = template

    @property
    def chat_template(self) -> str | None:
        """Return the source of the template."""
        return None if self._template is None else self._template.source

    def get_vocab(self) -> dict[str, int]:
        """Return the id of each piece, added tokens included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        *,
        add_generation_prompt: bool,
    ) -> str:
        """Return a conversation as the template writes it.

        Raises:
            jinja2.TemplateError: the template refuses the messages.
            ValueError: there is no template, or no message.
        """
        if self._template is None:
            raise ValueError("there is no chat template")
        return self._template.render(messages, tools, add_generation_prompt=add_generation_prompt)


def read_plain_tokenizer(directory: Path) -> PlainTokenizer | None:
    """Return the tokenizer in ``directory``; None where transformers may read it differently.

    Damaged files are no error here either: what to say of them is for who reads them next.
    """
    if any((directory / name).exists() for name in _LEGACY_FILES):
        return None
    config = _read_json(directory / "tokenizer_config.json")
    names = _read_json(directory / "special_tokens_map.json")
    if config is None or names is None or not _is_plain(config):
        return None
    try:
        fast = RustTokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception:
        # The border to the Rust library, which raises bare exceptions for damaged files.
        return None
    named = {name: _content(config[name]) for name in NAMED_TOKENS if config.get(name) is not None}
    if not (
        _holds(fast, [*named.values(), *_extra_tokens(config)])
        and _declares_the_same(fast, config.get("added_tokens_decoder") or {})
        and _repeats(names, config, fast)
        and _adds_nothing(fast, config)
        and not _is_misread(directory)
    ):
        return None
    source = _template_source(directory, config)
    if source is None:
        return PlainTokenizer(fast, named, None)
    template = read_template(source, named) if isinstance(source, str) else None
    return None if template is None else PlainTokenizer(fast, named, template)


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file, an empty one where there is no file; None if it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_plain(config: Mapping[str, Any]) -> bool:
    others = config.keys() - _KNOWN - _WITHOUT_EFFECT
    return all(key in _WITHOUT_EFFECT_IF_FALSE and not config[key] for key in others)


def _content(token: Any) -> str:
    """Return the text of a token as a config names it; an empty one if that is not understood."""
    if isinstance(token, dict) and token.get("__type") == "AddedToken":
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _extra_tokens(config: Mapping[str, Any]) -> Iterable[str]:
    for key in sorted(_EXTRA_TOKENS & config.keys()):
        found = config[key]
        yield from map(_content, found if isinstance(found, list) else [found] if found else [])


def _holds(fast: RustTokenizer, tokens: Iterable[str]) -> bool:
    """Return whether each is a special token already, so that naming it changes nothing."""
    special = {token.content for token in fast.get_added_tokens_decoder().values() if token.special}
    return all(token in special for token in tokens)


def _declares_the_same(fast: RustTokenizer, declared: Any) -> bool:
    """Return whether the config's added tokens are the tokenizer's own, in every detail."""
    if not isinstance(declared, dict):
        return False
    own = {str(id_): token for id_, token in fast.get_added_tokens_decoder().items()}
    return all(
        id_ in own
        and isinstance(fields, dict)
        and {name: getattr(own[id_], name) for name in _FLAGS} == fields
        for id_, fields in declared.items()
    )


def _repeats(names: Mapping[str, Any], config: Mapping[str, Any], fast: RustTokenizer) -> bool:
    """Return whether an older file on special tokens has no word that is not said elsewhere.

    Whether it is read at all depends on the config, and on the version of transformers.
    """
    own = {token.content: token for token in fast.get_added_tokens_decoder().values()}
    extra = {*_extra_tokens(config)}

    def is_among(token: Any, said: set[str]) -> bool:
        fields = token if isinstance(token, dict) else {"content": token}
        content = fields.get("content")
        return (
            isinstance(content, str)
            and content in said & own.keys()
            and all(
                flag in _FLAGS and getattr(own[content], flag) == value
                for flag, value in fields.items()
            )
        )

    for name, found in names.items():
        is_list = name in _EXTRA_TOKENS
        if isinstance(found, list) != is_list:
            return False
        said = extra if is_list else {_content(config.get(name))}
        if not all(is_among(token, said) for token in (found if is_list else [found])):
            return False
    return True


def _adds_nothing(fast: RustTokenizer, config: Mapping[str, Any]) -> bool:
    """Return whether nothing cuts or fills texts, nor do config and tokenizer differ on their ends.

    Versions of transformers differ on what the config's word on that is worth.
    """
    if fast.truncation is not None or fast.padding is not None or fast.encode_special_tokens:
        return False
    ends, start = fast.post_processor, fast.pre_tokenizer
    is_said = bool({"add_bos_token", "add_eos_token"} & config.keys())
    if is_said and ends and json.loads(ends.__getstate__())["type"] != "ByteLevel":
        return False
    if "add_prefix_space" in config and start is not None:
        return b'"add_prefix_space":true' not in start.__getstate__()
    return True


def _is_misread(directory: Path) -> bool:
    family = str((_read_json(directory / "config.json") or {}).get("model_type"))
    return any(name in family for name in _MISREAD_FAMILIES)


def _template_source(directory: Path, config: Mapping[str, Any]) -> Any:
    """Return the chat template, of which a file of its own goes before the config's.

    It is None if there is none, and no text if it cannot be read or there are several.
    """
    try:
        return (directory / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        return config.get("chat_template")
    except (OSError, ValueError):
        return ()
