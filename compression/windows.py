"""Which layers' queries see a sliding window of the latest positions only: free of torch.

The rules are those of transformers' configs, what they take for an absent key included.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from compression.config_values import read_flag, refusal
from compression.errors import UnsupportedArchitecture

WindowRule = Literal["none", "all", "listed"]
"""No layer may have one; all have it; those that ``layer_types`` or ``max_window_layers`` name."""

_DEFAULT = 4096
_DEFAULT_FULL_LAYERS = 28
_FULL, _SLIDING = "full_attention", "sliding_attention"


def parse_windows(
    config: Mapping[str, Any], rule: WindowRule, *, num_layers: int, context: int, where: str
) -> tuple[int | None, ...]:
    """Return how many positions each layer's queries see, their own included; None for all.

    A window as wide as the ``context`` is none.

    Raises:
        UnsupportedArchitecture: a family without windows has one.
        CorruptCheckpoint: a value makes no sense.
    """
    given = config.get("sliding_window", None if rule == "none" else _DEFAULT)
    if given is not None and (type(given) is not int or given < 0):
        raise refusal("sliding_window", given, where, "a whole number or null")
    window = given if given and given < context else None
    by_default = rule != "listed" and "use_sliding_window" not in config
    is_used = read_flag(config, "use_sliding_window", where, default=by_default)
    if rule == "none" and is_used and window:
        raise UnsupportedArchitecture(
            f"{where}: sliding_window {window} is not supported: this family has full attention"
        )
    if rule != "listed":
        return (window if rule == "all" else None,) * num_layers
    types = _layer_types(config, num_layers, is_used=is_used and bool(given), where=where)
    return tuple(window if each == _SLIDING else None for each in types)


def _layer_types(
    config: Mapping[str, Any], num_layers: int, *, is_used: bool, where: str
) -> Sequence[str]:
    types = config.get("layer_types")
    if types is None:
        full = config.get("max_window_layers", _DEFAULT_FULL_LAYERS)
        if type(full) is not int or full < 0:
            raise refusal("max_window_layers", full, where, "a whole number")
        return [_SLIDING if is_used and layer >= full else _FULL for layer in range(num_layers)]
    known = {_FULL, _SLIDING} if is_used else {_FULL}
    is_list = isinstance(types, list) and len(types) == num_layers
    if not is_list or any(each not in (_FULL, _SLIDING) for each in types):
        wanted = f"a list of {num_layers} names, each {_FULL!r} or {_SLIDING!r}"
        raise refusal("layer_types", types, where, wanted)
    if not known.issuperset(types):
        wanted = f"{_FULL!r} in all layers, as there is no sliding_window"
        raise refusal("layer_types", types, where, wanted)
    return list(types)
