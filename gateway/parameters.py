"""Request fields that nobody here knows: which are harmless, which are refused or reported."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import quote

from gateway.completion import CompletionRequest
from gateway.errors import UnsupportedParameter
from gateway.protocol import ContentPart, Message, ToolCall
from gateway.wire import SamplingFields, StreamOptions, Wire

Policy = Literal["reject", "report"]
Path = tuple[str | int, ...]

MAX_SHOWN = 64
"""Characters of a name, and names of a request, that a reply repeats."""

WITHOUT_EFFECT = frozenset(
    {
        *("user", "metadata", "store", "safety_identifier", "prediction"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    }
)
"""Labels of the client's own, and hints on speed: no answer depends on them."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "service_tier": ("auto", "default"),
        "verbosity": ("medium",),
        "echo": (False,),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True,),
        "include_stop_str_in_output": (False,),
        "use_beam_search": (False,),
    }
)
"""Parameters that are not known, with the values that ask for nothing."""

PROMPT_SCORES = "prompt_logprobs"
"""Log-probabilities of a prompt, for which vLLM holds the logits of all its tokens at once."""

_WITHOUT_EFFECT_IN: Mapping[type[Wire], frozenset[str]] = MappingProxyType(
    {
        StreamOptions: frozenset({"include_obfuscation"}),
        Message: frozenset({"annotations"}),
        ContentPart: frozenset({"cache_control"}),
        ToolCall: frozenset({"index"}),
    }
)

_INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "functions": "send 'tools' instead",
        "function_call": "send 'tool_choice', and calls as 'tool_calls', instead",
        "audio": "answers are text",
        "modalities": 'answers are text: leave it out or send ["text"]',
        "web_search_options": "nothing is searched: leave it out",
        "service_tier": "there is one tier: leave it out or send 'auto'",
    }
)


def unknown_parameters(request: Wire, extra: Iterable[str] = ()) -> Iterator[Path]:
    """Return the paths of all fields that ask for something and are not known.

    ``extra`` are names that the engine knows besides, nested ones with dots and without numbers.
    """
    allowed = frozenset(extra)
    return (path for path in _unknown(request, ()) if _plain_name(path) not in allowed)


def refuse_unknown(request: Wire, extra: Iterable[str] = ()) -> None:
    """Refuse a request with an unknown field.

    Raises:
        UnsupportedParameter: names the first one and what to do.
    """
    path = next(unknown_parameters(request, extra), None)
    if path is None:
        return
    shown = dotted(path)
    remedy = _INSTEAD.get(str(path[-1]), "leave it out")
    raise UnsupportedParameter(f"{shown!r} is not supported: {remedy}", param=shown)


def apply_policy(
    policy: Policy,
    fields: dict[str, Any],
    request: Wire,
    extra: Iterable[str],
    *,
    may_score_prompts: bool = True,
) -> dict[str, str]:
    """Refuse unknown fields, or take them out of ``fields``; return the header that lists them.

    Where prompts must not be scored, fields that ask for it are treated alike, unless ``extra``
    has :data:`PROMPT_SCORES`.

    Raises:
        UnsupportedParameter: the policy is to reject, and there is one.
    """
    scoring = [] if may_score_prompts or PROMPT_SCORES in extra else _prompt_scores(request)
    if policy == "reject":
        refuse_unknown(request, extra)
        if scoring:
            raise UnsupportedParameter(
                f"{scoring[0]!r} would have this model's engine hold numbers for its whole "
                f"vocabulary at every token of the prompt: leave it out, or let the operator list "
                f"{PROMPT_SCORES!r} in extra_parameters",
                param=scoring[0],
            )
        return {}
    unknown = [*unknown_parameters(request, extra), *((name,) for name in scoring)]
    if not unknown:
        return {}
    for path in unknown:
        _remove(fields, path)
    names = [quote(dotted(path), safe=".") for path in unknown[:MAX_SHOWN]]
    if len(unknown) > MAX_SHOWN:
        names.append("...")
    return {"x-narrowgate-ignored-parameters": ", ".join(names)}


def dotted(path: Path) -> str:
    """Return a path as errors name it, cut short."""
    return ".".join(str(part) for part in path)[:MAX_SHOWN]


def _unknown(part: Wire, at: Path) -> Iterator[Path]:
    harmless = _WITHOUT_EFFECT_IN.get(type(part), WITHOUT_EFFECT if not at else frozenset())
    # A part that is no text belongs to engines that see or hear: its keys are theirs.
    if not (isinstance(part, ContentPart) and part.type != "text"):
        for name, value in (part.model_extra or {}).items():
            is_neutral = value is None or (not at and value in NEUTRAL.get(name, ()))
            if not is_neutral and name not in harmless:
                yield *at, name
    for name in type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, Wire):
            yield from _unknown(value, (*at, name))
        elif isinstance(value, list) and value and isinstance(value[0], Wire):
            for index, item in enumerate(value):
                yield from _unknown(item, (*at, name, index))


def _prompt_scores(request: Wire) -> list[str]:
    """Return the fields that ask for log-probabilities of the prompt; any number of them counts."""
    found: list[str] = []
    if isinstance(request, SamplingFields) and request.prompt_logprobs is not None:
        found.append(PROMPT_SCORES)
    if isinstance(request, CompletionRequest) and request.echo and request.logprobs is not None:
        found.append("echo")
    return found


def _plain_name(path: Path) -> str:
    return ".".join(part for part in path if isinstance(part, str))


def _remove(fields: dict[str, Any], path: Path) -> None:
    inner: Any = fields
    for part in path[:-1]:
        inner = inner[part]
    inner.pop(path[-1], None)
