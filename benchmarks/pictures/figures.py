"""Numbers as the dashboards' units write them."""

import math
from collections.abc import Mapping
from types import MappingProxyType

_SUFFIX = "suffix: "
_WORDS: Mapping[str, str] = MappingProxyType({"reqps": " req/s", "cps": " /s"})
_BYTES = ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"))
_TIMES = ((3600, 1 / 3600, " h"), (60, 1 / 60, " min"), (1, 1, " s"), (1e-3, 1e3, " ms"))
_LARGE = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def shown(value: float, unit: str) -> str:
    """Return a value in its unit, to three digits."""
    if math.isnan(value):
        return "none"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if unit == "percentunit":
        return f"{_digits(value * 100)} %"
    if unit == "bytes":
        size, word = next((each for each in _BYTES if abs(value) >= each[0]), (1, " B"))
        return _digits(value / size) + word
    if unit == "s":
        found = next((each for each in _TIMES if abs(value) >= each[0]), (0, 1e6, " µs"))
        return "0 s" if value == 0 else _digits(value * found[1]) + found[2]
    if unit.startswith(_SUFFIX):
        return f"{_large(value)} {unit.removeprefix(_SUFFIX)}"
    return _large(value) + _WORDS.get(unit, "")


def _large(value: float) -> str:
    size, letter = next((each for each in _LARGE if abs(value) >= 10 * each[0]), (1, ""))
    return _digits(value / size) + letter


def _digits(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
