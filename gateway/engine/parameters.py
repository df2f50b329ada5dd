"""A chat request → sampling parameters; what cannot be honoured is refused by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gateway.engine.sequence import SamplingParams
from gateway.errors import UnsupportedParameter
from gateway.protocol import ChatRequest

WITHOUT_EFFECT = frozenset({"user", "metadata", "store", "safety_identifier", "prompt_cache_key"})
"""Labels of the client's own; no engine could act on them."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "n": (1,),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "repetition_penalty": (1,),
        "min_p": (0,),
        "logit_bias": ({},),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "service_tier": ("auto", "default"),
        "verbosity": ("medium",),
        "echo": (False,),
    }
)
"""Parameters that this engine does not have, with the values that ask for nothing."""


def sampling_params(request: ChatRequest, *, room: int) -> SamplingParams:
    """Return how to sample; ``max_tokens`` is capped to the ``room`` left in the context.

    Raises:
        UnsupportedParameter: the request asks for something this engine cannot do.
    """
    _refuse_unsupported(request)
    limits = (request.max_completion_tokens, request.max_tokens)
    wanted = next((limit for limit in limits if limit is not None), room)
    stop = request.stop or []
    return SamplingParams(
        max_tokens=min(wanted, room),
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(0, request.top_k or 0),
        seed=request.seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


def _refuse_unsupported(request: ChatRequest) -> None:
    declared = {name: getattr(request, name) for name in NEUTRAL if hasattr(request, name)}
    for name, value in (declared | (request.model_extra or {})).items():
        is_neutral = value is None or name in WITHOUT_EFFECT or value in NEUTRAL.get(name, ())
        if not is_neutral:
            shown = name[:64]
            raise UnsupportedParameter(
                f"{shown!r} is not supported by this engine: leave it out", param=shown
            )
