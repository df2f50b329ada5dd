"""A request → sampling parameters; what cannot be honoured is refused by name."""

from dataclasses import dataclass

from gateway.completion import DEFAULT_MAX_TOKENS, CompletionRequest
from gateway.engine.sequence import SamplingParams
from gateway.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from gateway.parameters import refuse_unknown
from gateway.protocol import ChatRequest

Request = ChatRequest | CompletionRequest

MAX_BIAS = 100
"""OpenAI's bound on a logit bias; enough to ban a token or to force it."""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a model can hold.

    ``max_model_len`` is in tokens, prompt and answer together; ``vocab_size`` is the width of its
    logits; ``kv_tokens`` is how many tokens of all sequences fit into its cache, None if no limit
    is known.
    """

    max_model_len: int
    vocab_size: int
    kv_tokens: int | None = None


def sampling_params(
    request: Request, *, limits: ModelLimits, num_prompt_tokens: int = 0
) -> SamplingParams:
    """Return how to sample the answers to a prompt of ``num_prompt_tokens``.

    ``max_tokens`` is capped to the room left in the context.

    Raises:
        InvalidRequest: a value does not fit this model.
        UnsupportedParameter: the request asks for something this engine cannot do.
        ContextLengthExceeded: so many answers can never be in the cache together.
    """
    _refuse_unsupported(request)
    name, wanted = _max_tokens(request)
    if wanted is not None and wanted > limits.max_model_len:
        raise InvalidRequest(
            f"{name!r} is {wanted}: this model's context holds {limits.max_model_len} tokens",
            param=name,
        )
    _check_cache(request, limits, num_prompt_tokens, wanted)
    room = limits.max_model_len - num_prompt_tokens
    max_tokens = room if wanted is None else min(wanted, room)
    stop = request.stop or []
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(0, request.top_k or 0),
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        logit_bias=_logit_bias(request, limits.vocab_size),
        seed=request.seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=_stop_token_ids(request, limits.vocab_size),
        ignore_eos=bool(request.ignore_eos),
        min_tokens=_min_tokens(request, name, wanted),
        top_logprobs=_top_logprobs(request),
        prompt_logprobs=_prompt_logprobs(request),
        returns_token_ids=bool(request.return_token_ids),
        keeps_end_logprob=isinstance(request, CompletionRequest),
    )


def _max_tokens(request: Request) -> tuple[str, int | None]:
    """Return the limit that counts, with the name under which it was sent."""
    if isinstance(request, CompletionRequest):
        given = request.max_tokens
        return "max_tokens", DEFAULT_MAX_TOKENS if given is None else given
    if request.max_completion_tokens is not None:
        return "max_completion_tokens", request.max_completion_tokens
    return "max_tokens", request.max_tokens


def _check_cache(
    request: Request, limits: ModelLimits, num_prompt_tokens: int, wanted: int | None
) -> None:
    count = request.num_choices
    most = limits.kv_tokens
    if most is None or count == 1:
        return
    needed = count * (num_prompt_tokens + (1 if wanted is None else wanted))
    if needed > most:
        raise ContextLengthExceeded(
            f"{count} answers need {needed} tokens of context, but the cache holds {most}: "
            "ask for fewer or shorter ones",
            param="n" if (request.n or 1) > 1 else "prompt",
        )


def _min_tokens(request: Request, name: str, wanted: int | None) -> int:
    found = request.min_tokens or 0
    if wanted is not None and found > wanted:
        raise InvalidRequest(
            f"'min_tokens' is {found}: must not exceed {name!r}, which is {wanted}",
            param="min_tokens",
        )
    return found


def _logit_bias(request: Request, vocab_size: int) -> tuple[tuple[int, float], ...]:
    pairs: list[tuple[int, float]] = []
    for key, bias in (request.logit_bias or {}).items():
        is_id = key.isascii() and key.isdigit() and len(key) < 10
        if not is_id or int(key) >= vocab_size:
            raise InvalidRequest(
                f"'logit_bias' has the key {key[:40]!r}: must be a token id, 0 to {vocab_size - 1}",
                param="logit_bias",
            )
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise InvalidRequest(
                f"'logit_bias' of token {key} is {bias}: must be -{MAX_BIAS} to {MAX_BIAS}",
                param="logit_bias",
            )
        pairs.append((int(key), bias))
    return tuple(pairs)


def _stop_token_ids(request: Request, vocab_size: int) -> frozenset[int]:
    ids = frozenset(request.stop_token_ids or ())
    if ids and max(ids) >= vocab_size:
        raise InvalidRequest(
            f"'stop_token_ids' holds {max(ids)}: the vocabulary ends at {vocab_size - 1}",
            param="stop_token_ids",
        )
    return ids


def _top_logprobs(request: Request) -> int | None:
    if isinstance(request, CompletionRequest):
        return request.logprobs
    return (request.top_logprobs or 0) if request.logprobs else None


def _prompt_logprobs(request: Request) -> int | None:
    asked = [request.prompt_logprobs]
    if isinstance(request, CompletionRequest) and request.echo:
        asked.append(request.logprobs)
    return max((count for count in asked if count is not None), default=None)


def _refuse_unsupported(request: Request) -> None:
    refuse_unknown(request)
    if request.prompt_logprobs is not None and request.stream:
        raise UnsupportedParameter(
            "'prompt_logprobs' is for plain replies only: leave out 'stream'",
            param="prompt_logprobs",
        )
    if isinstance(request, CompletionRequest):
        _refuse_of_completion(request)


def _refuse_of_completion(request: CompletionRequest) -> None:
    if request.suffix:
        raise UnsupportedParameter(
            "'suffix' is not supported: this engine writes on from a prompt, not into a gap",
            param="suffix",
        )
    if request.best_of not in (None, request.n or 1):
        raise UnsupportedParameter(
            f"'best_of' is {request.best_of}: this engine ranks no answers, so it must equal 'n'",
            param="best_of",
        )
