"""Values that no client should send, as hypothesis strategies."""

import json
from typing import Any

from hypothesis import strategies as st

RAW = st.sampled_from(
    ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 400, "-0", "1e-400"]
)
"""Numbers that JSON has no room for, or that no machine has; written into a body as they are."""

NAMES = st.sampled_from(
    [
        *("model", "messages", "prompt", "input", "tokens", "tools", "tool_choice", "functions"),
        *("temperature", "top_p", "top_k", "n", "seed", "stop", "stream", "stream_options"),
        *("max_tokens", "max_completion_tokens", "logit_bias", "logprobs", "top_logprobs"),
        *("response_format", "guided_json", "guided_regex", "structured_outputs", "user"),
        *("prompt_logprobs", "min_tokens", "stop_token_ids", "echo", "best_of", "suffix"),
        *("add_special_tokens", "return_token_strs", "metadata", "ignore_eos", "é\x00", ""),
    ]
)


class Raw(str):
    """A number as it stands in a body."""


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=20)  # half characters included
    | RAW.map(Raw),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
"""Any JSON, with values between and beyond what a machine holds."""

MUTATIONS = st.dictionaries(NAMES, JSON | st.integers(1, 400).map(_nested), min_size=1, max_size=3)
"""Fields to put into a request."""


def changed(body: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the body with its fields changed; the model mostly stays, or nothing else is tried."""
    return body | {name: value for name, value in changes.items() if name != "model" or not value}


def encoded(value: Any) -> bytes:
    """Return the value as JSON, or what only looks like it."""
    return _text(value).encode("utf-8", "surrogatepass")


def _text(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{_text(str(k))}:{_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return json.dumps(value, ensure_ascii=not isinstance(value, str) or len(value) % 2 == 0)
