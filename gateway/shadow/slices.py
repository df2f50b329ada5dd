"""The slices of traffic: closed vocabularies, and to which of them a request belongs."""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gateway.errors import SettingsError
from gateway.shadow.text_kind import domain_of, script_of

ALL = "all"
"""The slice of every request: the whole model."""

VOCABULARY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "length": ("0-127", "128-511", "512-2047", "2048+"),
        "turns": ("single", "multi"),
        "script": ("latin", "cjk", "cyrillic", "arabic", "devanagari", "other"),
        "domain": ("prose", "code", "math", "json"),
        "format": ("free", "json", "schema", "tools"),
        "sampling": ("greedy", "sampled"),
        "position": ("0-63", "64-255", "256+"),
    }
)
"""The values of each dimension; a slice's name is ``dimension:value``. Length is the prompt's."""

_LENGTHS = (128, 512, 2048)
_POSITIONS = (0, 64, 256)
MAX_OWN = 4
MAX_OWN_VALUES = 16
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_GUIDED = ("guided_json", "guided_regex", "guided_choice", "structured_outputs")


@dataclass(frozen=True, slots=True)
class OwnSlices:
    """An operator's own dimension: a key of the requests' ``metadata``, and its values.

    Any other value counts as ``other``; a request without the key is in none of these slices.
    """

    key: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        for word in (self.key, *self.values):
            if not _WORD.fullmatch(word):
                raise SettingsError(
                    f"own slices: {word[:40]!r} is no name: use 1 to 32 letters, digits, '_.-'"
                )
        if not 1 <= len(self.values) <= MAX_OWN_VALUES or "other" in self.values:
            raise SettingsError(
                f"own slices {self.key!r}: {len(self.values)} values: give 1 to {MAX_OWN_VALUES}, "
                "without 'other', which stands for all else"
            )

    def names(self) -> tuple[str, ...]:
        """Return the names of its slices."""
        return tuple(f"metadata.{self.key}:{value}" for value in (*self.values, "other"))

    def of(self, metadata: Mapping[str, Any]) -> str | None:
        """Return the slice of a request with these metadata."""
        if self.key not in metadata:
            return None
        value = metadata[self.key]
        return f"metadata.{self.key}:{value if value in self.values else 'other'}"


def all_slices(own: Sequence[OwnSlices] = ()) -> tuple[str, ...]:
    """Return the names of all slices, ``all`` first.

    Raises:
        SettingsError: too many dimensions of the operator's own, or one is there twice.
    """
    keys = [each.key for each in own]
    if len(keys) > MAX_OWN or len(set(keys)) < len(keys):
        raise SettingsError(
            f"own slices: {', '.join(keys)}: give at most {MAX_OWN} keys, each one once"
        )
    names = [f"{dimension}:{value}" for dimension, of in VOCABULARY.items() for value in of]
    return (ALL, *names, *(name for each in own for name in each.names()))


def require_slices(names: Iterable[str], known: Collection[str], *, setting: str) -> None:
    """Refuse names that are no slices.

    Raises:
        SettingsError: names the first of them, and the setting.
    """
    for name in names:
        if name not in known:
            raise SettingsError(
                f"{setting!r} names the slice {name[:80]!r}: use one of {', '.join(known)}"
            )


def slices_of(
    fields: Mapping[str, Any],
    *,
    num_prompt_tokens: int,
    answer: str = "",
    own: Sequence[OwnSlices] = (),
) -> tuple[str, ...]:
    """Return the slices that a whole request is in, from its body's fields and its answer.

    The body is one that was parsed: of a chat, or of a text completion. Without the answer, as
    before it is generated, the prompt alone tells script and domain. Positions are left out,
    because a request has tokens in several of them: see :func:`places_of`.
    """
    question = _question(fields)[-_MAX_TEXT:]
    text = answer[:_MAX_TEXT]
    form = _format(fields)
    domain = "json" if form == "json" else domain_of(question, text)
    names = [
        ALL,
        f"length:{VOCABULARY['length'][sum(num_prompt_tokens >= each for each in _LENGTHS)]}",
        f"turns:{_turns(fields)}",
        f"script:{script_of(text) or script_of(question) or 'other'}",
        f"domain:{domain}",
        f"format:{form}",
        f"sampling:{_sampling(fields)}",
    ]
    metadata = fields.get("metadata")
    if isinstance(metadata, Mapping):
        names += [name for each in own if (name := each.of(metadata)) is not None]
    return tuple(names)


@dataclass(frozen=True, slots=True)
class SliceScore:
    """What one request says of one of its slices: means and counts over the tokens it has there."""

    num_tokens: int
    divergence: float
    """Mean, nats a token; infinite where a position had no number."""
    num_agreeing: int
    delta_nll: float
    """Sum, nats: how much likelier the served tokens were to the engine than to the reference."""


def places_of(names: Iterable[str], num_tokens: int) -> dict[str, range]:
    """Return the positions of an answer that each of its slices holds, those of position too."""
    places = dict.fromkeys(names, range(num_tokens))
    ends = (*_POSITIONS[1:], num_tokens)
    for value, start, end in zip(VOCABULARY["position"], _POSITIONS, ends, strict=True):
        if start < num_tokens:
            places[f"position:{value}"] = range(start, min(end, num_tokens))
    return places


def by_slice(
    places: Mapping[str, range],
    *,
    divergences: Sequence[float],
    agreeing: Sequence[bool],
    delta_nlls: Sequence[float],
) -> dict[str, SliceScore]:
    """Return the scores of a request's slices; those without a token are left out.

    The sequences have one item for each scored token, in order.
    """
    parts = {
        held: _score(
            divergences[held.start : held.stop],
            agreeing[held.start : held.stop],
            delta_nlls[held.start : held.stop],
        )
        for held in set(places.values())
        if held
    }
    return {name: parts[held] for name, held in places.items() if held}


def is_known_before(name: str) -> bool:
    """Return whether a request can be told to be in a slice before it is answered."""
    return not name.startswith("position:")


_MAX_TEXT = 4096
"""Characters that tell script and domain; more of them would not tell more."""


def _score(
    divergences: Sequence[float], agreeing: Sequence[bool], delta_nlls: Sequence[float]
) -> SliceScore:
    mean = math.fsum(divergences) / len(divergences) if _are_finite(divergences) else math.inf
    delta = math.fsum(delta_nlls) if _are_finite(delta_nlls) else math.inf
    return SliceScore(len(divergences), mean, sum(agreeing), delta)


def _are_finite(numbers: Sequence[float]) -> bool:
    return all(map(math.isfinite, numbers))


def _turns(fields: Mapping[str, Any]) -> str:
    num_asked = sum(each.get("role") == "user" for each in _messages(fields))
    return "multi" if num_asked > 1 else "single"


def _messages(fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the messages; of a text completion nobody has checked that key."""
    found = fields.get("messages")
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


def _sampling(fields: Mapping[str, Any]) -> str:
    return "greedy" if fields.get("temperature") == 0 or fields.get("top_k") == 1 else "sampled"


def _format(fields: Mapping[str, Any]) -> str:
    if fields.get("tools") and fields.get("tool_choice") != "none":
        return "tools"
    kind = (fields.get("response_format") or {}).get("type")
    if kind == "json_schema" or any(fields.get(key) is not None for key in _GUIDED):
        return "schema"
    return "json" if kind == "json_object" else "free"


def _question(fields: Mapping[str, Any]) -> str:
    """Return the text of the last thing that the client said."""
    if "messages" not in fields:
        return _prompt(fields.get("prompt"))
    for message in reversed(_messages(fields)):
        if message.get("role") == "user":
            return _content(message.get("content"))
    return ""


def _content(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _prompt(prompt: object) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else ""
