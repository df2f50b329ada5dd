"""What an expression gives: its labels and its dimension; and what is wrong with it."""

from typing import NamedTuple

import promql_parser as promql

from gateway.metrics.manifest import Row, manifest
from tests.grafana import dimension
from tests.grafana.dimension import OBSERVED, PURE, SECONDS, Dimension

FILTERS = {"instance": "INSTANCE", "model": "MODEL", "variant": "VARIANT"}
"""Labels that variables choose from, and what stands for a variable's value in these tests."""

COMPARISONS = {"==", "!=", ">", "<", ">=", "<="}
SETS = {"and", "or", "unless"}
RATES = {"rate", "increase", "irate"}
TARGET = frozenset({"instance", "job"})
PARTS = ("_bucket", "_sum", "_count")

_FAMILIES = {row.name: row for row in manifest()}
_NO_LABELS = frozenset[str]()
_OF_PROMETHEUS: dict[str, tuple[str, Dimension]] = {
    "up": ("gauge", PURE),
    "process_cpu_seconds_total": ("counter", SECONDS),
    "process_resident_memory_bytes": ("gauge", dimension.of("bytes")),
    "process_open_fds": ("gauge", PURE),
    "process_max_fds": ("gauge", PURE),
}


class Defect(Exception):
    """An expression is wrong."""


class Value(NamedTuple):
    """What an expression gives."""

    dimension: Dimension
    labels: frozenset[str]
    is_scalar: bool = False
    is_lifetime: bool = False
    """A counter that nobody took the gain of."""


def check(expr: str) -> Value:
    """Return what an expression gives.

    Raises:
        Defect: it is wrong.
    """
    try:
        return _value(promql.parse(expr))
    except ValueError as error:
        raise Defect(f"{error}: {expr}") from error


def labels_of(name: str) -> frozenset[str]:
    """Return the labels of a sample.

    Raises:
        Defect: there is no such sample.
    """
    return _sample(name)[2]


def _value(node: promql.Expr) -> Value:
    match node:
        case promql.ParenExpr() | promql.UnaryExpr():
            return _value(node.expr)
        case promql.NumberLiteral():
            return Value(PURE, _NO_LABELS, is_scalar=True)
        case promql.VectorSelector():
            return _selected(node, is_range=False)
        case promql.Call():
            return _called(node)
        case promql.AggregateExpr():
            return _aggregated(node)
        case promql.BinaryExpr():
            return _combined(node)
    raise Defect(f"{type(node).__name__} is not understood here")


def _selected(node: promql.VectorSelector, *, is_range: bool) -> Value:
    name = node.name or ""
    matchers = {matcher.name: matcher for matcher in node.matchers.matchers}
    kind, unit, labels = _sample(name)
    if unknown := matchers.keys() - labels:
        raise Defect(f"{name} has no label {', '.join(sorted(unknown))}")
    for label, chosen in FILTERS.items():
        found = [m for m in node.matchers.matchers if m.name == label]
        is_fixed = any(m.op == promql.MatchOp.Equal for m in found)
        if label in labels and not is_fixed and chosen not in {m.value for m in found}:
            raise Defect(f"{name}: ${label} does not choose")
    _check_values(name, node)
    if kind == "histogram":
        raise Defect(f"{name} is a histogram: take its _bucket, _sum or _count")
    if is_range and kind != "counter":
        raise Defect(f"{name} is a gauge under rate or increase")
    return Value(unit, labels, is_lifetime=kind == "counter")


def _sample(name: str) -> tuple[str, Dimension, frozenset[str]]:
    if name in _OF_PROMETHEUS:
        return (*_OF_PROMETHEUS[name], TARGET)
    if name in _FAMILIES:
        row = _FAMILIES[name]
        unit = dimension.of(row.unit)
        is_rate = name.endswith("_per_second")
        return row.type, unit.times(SECONDS, -1) if is_rate else unit, _labels(row)
    for part in PARTS:
        row_or_none = _FAMILIES.get(name.removesuffix(part))
        if name.endswith(part) and row_or_none is not None and row_or_none.type == "histogram":
            more = frozenset({"le"}) if part == "_bucket" else _NO_LABELS
            seen = dimension.of(row_or_none.unit) if part == "_sum" else OBSERVED
            return "counter", seen, _labels(row_or_none) | more
    raise Defect(f"no metric {name!r} in the manifest")


def _labels(row: Row) -> frozenset[str]:
    return TARGET | {label.name for label in row.labels}


def _check_values(name: str, node: promql.VectorSelector) -> None:
    row = next(
        (r for n, r in _FAMILIES.items() if name in (n, *(n + part for part in PARTS))), None
    )
    allowed = {label.name: label.values for label in row.labels} if row else {}
    for matcher in node.matchers.matchers:
        values = allowed.get(matcher.name)
        if matcher.name == "le" and row is not None:
            values = tuple(str(float(bound)) for bound in row.buckets)
        if wrong := set(matcher.value.split("|")) - set(values or matcher.value.split("|")):
            raise Defect(f"{name}: {matcher.name} is never {', '.join(sorted(wrong))}")


def _called(node: promql.Call) -> Value:
    name = node.func.name
    if name == "time":
        return Value(SECONDS, _NO_LABELS, is_scalar=True)
    if name in RATES:
        (window,) = node.args
        value = _selected(window.vector_selector, is_range=True)
        gained = value.dimension
        each = gained if name == "increase" else gained.times(SECONDS, -1)
        return Value(each, value.labels)
    if name == "timestamp":
        return Value(SECONDS, _value(node.args[0]).labels)
    if name == "histogram_quantile":
        return _quantile(node.args[1])
    if name in {"clamp_min", "clamp_max"}:
        return _value(node.args[0])
    if name == "sqrt":
        value = _value(node.args[0])
        try:
            return value._replace(dimension=value.dimension.averaged().root())
        except ValueError as error:
            raise Defect(str(error)) from None
    if name == "exp":
        value = _value(node.args[0])
        if value.dimension.averaged() not in (PURE, dimension.of("nats")):
            raise Defect(f"exp of {value.dimension}")
        return value._replace(dimension=PURE)
    raise Defect(f"{name}() is not understood here")


def _quantile(buckets: promql.Expr) -> Value:
    value = _value(buckets)
    if "le" not in value.labels:
        raise Defect("histogram_quantile has lost le")
    names: list[str] = []

    def note(node: promql.Expr) -> None:
        if isinstance(node, promql.VectorSelector):
            names.append(node.name or "")

    promql.walk(buckets, note)
    (name,) = names
    if not name.endswith("_bucket"):
        raise Defect(f"histogram_quantile of {name}")
    row = _FAMILIES[name.removesuffix("_bucket")]
    return Value(dimension.of(row.unit), value.labels - {"le"})


def _aggregated(node: promql.AggregateExpr) -> Value:
    value = _value(node.expr)
    if str(node.op) in {"topk", "bottomk"}:
        return value
    if node.modifier is None or node.modifier.type != promql.AggModifierType.By:
        raise Defect(f"{node.op} says not by what")
    by = frozenset(node.modifier.labels)
    if lost := by - value.labels:
        raise Defect(f"{node.op} by {', '.join(sorted(lost))}, which is not there")
    if "le" in value.labels - by and not _is_one_bucket(node.expr):
        raise Defect(f"{node.op} adds up buckets")
    return value._replace(labels=by)


def _is_one_bucket(node: promql.Expr) -> bool:
    found: list[bool] = []

    def note(each: promql.Expr) -> None:
        if isinstance(each, promql.VectorSelector):
            found.append(any(m.name == "le" for m in each.matchers.matchers))

    promql.walk(node, note)
    return all(found)


def _combined(node: promql.BinaryExpr) -> Value:
    left, right, op = _value(node.lhs), _value(node.rhs), str(node.op)
    if left.is_scalar or right.is_scalar:
        return _with_number(node, left, right, op)
    _check_matching(node, left, right)
    if op == "/" and not _is_guarded(node.rhs):
        raise Defect("a quotient whose divisor may be 0: say / (x > 0)")
    if op in {"+", "-", "or", *COMPARISONS} and left.dimension != right.dimension:
        raise Defect(f"{left.dimension} {op} {right.dimension}")
    if op == "unless" and _is_earlier(node.rhs, node.lhs):
        return left._replace(is_lifetime=False)
    if op in {"*", "/"}:
        together = left.dimension.times(right.dimension, 1 if op == "*" else -1)
        left = left._replace(dimension=together)
    is_both = op not in {"and", "unless"}
    return left._replace(is_lifetime=left.is_lifetime or (is_both and right.is_lifetime))


def _is_earlier(earlier: promql.Expr, now: promql.Expr) -> bool:
    """Return whether one is the other some time ago: what was not there then has just begun."""
    if not isinstance(earlier, promql.VectorSelector) or not isinstance(now, promql.VectorSelector):
        return False
    return earlier.name == now.name and earlier.offset is not None and now.offset is None


def _with_number(node: promql.BinaryExpr, left: Value, right: Value, op: str) -> Value:
    vector = right if left.is_scalar else left
    if op in {"+", "-"} and left.dimension != right.dimension:
        raise Defect(f"{left.dimension} {op} {right.dimension}")
    if op == "/" and left.is_scalar:
        raise Defect("a quotient whose divisor may be 0")
    if op in SETS:
        raise Defect(f"{op} of a number")
    return vector


def _check_matching(node: promql.BinaryExpr, left: Value, right: Value) -> None:
    matching = node.modifier.matching if node.modifier else None
    if matching is None:
        if left.labels != right.labels:
            sides = f"{sorted(left.labels)} against {sorted(right.labels)}"
            raise Defect(f"{node.op}: {sides} never match")
        return
    if matching.type != promql.LabelModifierType.Include:
        raise Defect(f"{node.op} ignoring: say on which labels")
    on = frozenset(matching.labels)
    if missing := (on - left.labels) | (on - right.labels):
        raise Defect(f"{node.op} on {', '.join(sorted(missing))}, which one side lacks")
    if str(node.op) in {"and", "unless"}:
        return
    if right.labels - on:
        raise Defect(f"{node.op}: several on the right for one on the left")


def _is_guarded(node: promql.Expr) -> bool:
    inner = node.expr if isinstance(node, promql.ParenExpr) else node
    return isinstance(inner, promql.BinaryExpr) and str(inner.op) == ">"
