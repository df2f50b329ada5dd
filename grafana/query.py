"""PromQL from the manifest: a name or a label that no family has is an error here."""

import re
from collections.abc import Iterable

from gateway.metrics.manifest import Row, manifest

STEP = "$__rate_interval"
RANGE = "$__range"
FILTERS = ("instance", "model", "variant")
"""Labels that the variables of a dashboard choose from, wherever a family has them."""

_TARGET_LABELS = ("instance", "job")
_PARTS = ("_bucket", "_sum", "_count")
_FAMILIES = {row.name: row for row in manifest()}


class UnknownMetric(ValueError):
    """A dashboard asks for a metric or a label that the manifest does not have."""


def family(name: str) -> Row:
    """Return the family that a sample's full name belongs to.

    Raises:
        UnknownMetric: there is none.
    """
    if name in _FAMILIES:
        return _FAMILIES[name]
    for part in _PARTS:
        row = _FAMILIES.get(name.removesuffix(part))
        if name.endswith(part) and row is not None and row.type == "histogram":
            return row
    raise UnknownMetric(f"{name}: no such metric in gateway/metrics/; correct the query")


def series(name: str, *matchers: str) -> str:
    """Return a selector of what the variables choose.

    The name goes without ``narrowgate_``. A matcher such as ``variant="full"`` takes the place of
    the label's variable, any other comes beside it.

    Raises:
        UnknownMetric: the manifest has no such name or label.
    """
    full_name = "narrowgate_" + name
    known = {*(label.name for label in family(full_name).labels), *_TARGET_LABELS, "le"}
    fixed = set()
    for matcher in matchers:
        label = re.split(r"[=!]", matcher, maxsplit=1)[0]
        if label not in known:
            raise UnknownMetric(f"{full_name}: no label {label!r}; correct {matcher!r}")
        if matcher.startswith(f'{label}="'):
            fixed.add(label)
    return _selector(full_name, (each for each in FILTERS if each in known - fixed), matchers)


def narrowed(name: str, *labels: str) -> str:
    """Return a selector of what the variables of these labels choose, and no other's."""
    return _selector(family("narrowgate_" + name).name, labels, ())


def _selector(full_name: str, labels: Iterable[str], matchers: Iterable[str]) -> str:
    chosen = ", ".join((*(f'{each}=~"${each}"' for each in labels), *matchers))
    return f"{full_name}{{{chosen}}}" if chosen else full_name


def total(name: str, by: str, *matchers: str) -> str:
    """Return a gauge's sum by labels."""
    return f"sum by ({by}) ({series(name, *matchers)})"


def highest(name: str, by: str, *matchers: str) -> str:
    """Return a gauge's maximum by labels."""
    return f"max by ({by}) ({series(name, *matchers)})"


def rate(name: str, by: str, *matchers: str) -> str:
    """Return what a counter gains each second, by labels."""
    return f"sum by ({by}) (rate({series(name, *matchers)}[{STEP}]))"


def recent(name: str, by: str, *matchers: str) -> str:
    """Return how often something rare happened around each point of a line, by labels."""
    return f"sum by ({by}) ({_risen(series(name, *matchers), STEP)})"


def happened(name: str, by: str, *matchers: str) -> str:
    """Return how often something rare happened in the time range of the dashboard, by labels."""
    return f"sum by ({by}) ({_risen(series(name, *matchers), RANGE)})"


def events(name: str, by: str, *matchers: str) -> str:
    """Return the moments at which something rare happened, by labels."""
    return f"sum by ({by}) ({_risen(series(name, *matchers), '2m')}) > 0"


def _risen(counter: str, window: str) -> str:
    """Return the gain of a counter whose series may begin with its first count.

    Such a series has no earlier value to rise from, so ``increase`` alone misses the first event.
    After a restart it is ``increase`` that knows more, so the larger one counts.
    """
    new, gain = f"({counter} unless {counter} offset {window})", f"increase({counter}[{window}])"
    return f"({new} > {gain}) or {gain} or {new}"


def gained(name: str, by: str, *matchers: str) -> str:
    """Return what a counter gained in the time range of the dashboard, by labels."""
    return f"sum by ({by}) (increase({series(name, *matchers)}[{RANGE}]))"


def quantile(share: float, name: str, by: str, *matchers: str) -> str:
    """Return a quantile of a histogram, by labels."""
    buckets = rate(name + "_bucket", f"{by}, le", *matchers)
    return f"histogram_quantile({share}, {buckets})"


def mean(name: str, by: str, *matchers: str) -> str:
    """Return the mean of what a histogram observed, by labels."""
    return ratio(rate(name + "_sum", by, *matchers), rate(name + "_count", by, *matchers))


def root_mean_square(squares: str, count: str) -> str:
    """Return the root of a sum of squares over their number."""
    return f"sqrt({ratio(squares, count)})"


def ratio(above: str, below: str) -> str:
    """Return a quotient that is absent where there is nothing to divide by."""
    return f"{above} / ({below} > 0)"


def against_full(compressed: str, full: str) -> str:
    """Return how many times what a model's variants have is what its full variant has."""
    return f"{compressed} / on (model) group_left () ({full} > 0)"


def gateways_own(template: str) -> str:
    """Return a query of metrics that every process has, for gateways alone.

    ``{filters}`` in the template becomes a selector of what the variables choose.
    """
    expr = template.replace("{filters}", '{instance=~"$instance"}')
    return f"({expr}) and on (instance, job) {series('build_info')}"
