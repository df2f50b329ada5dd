"""Alerts about what is answered: verdicts, the evidence for them, and the ladder."""

from collections.abc import Iterator
from textwrap import indent

from grafana.alerting.query import SHORT, VARIANT, also, grown, told
from grafana.alerting.rule import Alert

_OF_MODEL = "?var-model={{ $labels.model | urlquery }}"
_FIDELITY = "/d/narrowgate-fidelity" + _OF_MODEL
_SHADOW = "/d/narrowgate-shadow" + _OF_MODEL
_WHERE = "{{ $labels.model }}@{{ $labels.variant }} at {{ $labels.instance }}"
_VALUE = f"{{{{ $value | printf {SHORT} }}}}"
_IS_ACTIVE = also("narrowgate_active_variant == 1")
_MODEL = ("job", "instance", "model")
_OVERDUE_S = 2.5 * 3600
"""With the alert's ``wait`` three hours: eight tries at most of an engine that does not read."""


def fidelity_alerts() -> Iterator[Alert]:
    """Yield the alerts about what is answered."""
    yield from _verdicts()
    yield from _evidence()
    yield from _cost()
    yield from _answers()
    yield Alert(
        name="LadderStepped",
        severity="info",
        expr=f"{grown('narrowgate_ladder_steps_total', '30m', 1800)} > 0",
        wait="0m",
        why="it happened; nothing makes it undone",
        summary="A model's ladder took a step.",
        description="{{ $labels.model }} at {{ $labels.instance }} went from {{ $labels.from }} to "
        "{{ $labels.to }} (reason: {{ $labels.reason }}), {{ $value | humanize }} times "
        "in 30 minutes.",
        dashboard=_FIDELITY,
    )


def _verdicts() -> Iterator[Alert]:
    where = (*VARIANT, "slice")
    # The bounds begin anew with the alarm; this is what raised it.
    mean = told("narrowgate_drift_alarm_mean_nats", *where)
    tolerance = told("narrowgate_drift_tolerance_nats", *where)
    evidence = (
        f"when that was shown, the mean KL divergence since its tests began was {mean} nats "
        f"a token, tolerance {tolerance}."
    )
    served = 'increase(narrowgate_requests_total{outcome!="rejected"}[1h]) > 0'
    # What does not serve keeps its verdict; only what serves is somebody's business.
    yield Alert(
        name="ModelDrift",
        severity="critical",
        expr=f'narrowgate_drift_state{{slice="all"}} == 2\n{_IS_ACTIVE}',
        wait="1m",
        why="the verdict is sure already; a ladder gets the time for its own step",
        summary="A served variant answers differently from the full model.",
        description=f"{_WHERE} drifts: {evidence}",
        dashboard=_FIDELITY,
    )
    yield Alert(
        name="SliceDrift",
        severity="warning",
        expr=_of_who_answers('narrowgate_drift_state{slice!="all"} == 2'),
        wait="5m",
        why="if the whole model drifts too, that alert comes first and silences this one",
        summary="A served variant answers one kind of request differently from the full model.",
        description=f"{_WHERE} drifts on {{{{ $labels.slice }}}}: {evidence}",
        dashboard=_FIDELITY,
    )
    yield Alert(
        name="DriftStale",
        severity="warning",
        expr=f'narrowgate_drift_state{{slice="all"}} == 3\n{_IS_ACTIVE}\n{also(served)}',
        wait="1h",
        why="a reference may load or rest; an hour without evidence is not ok",
        summary="A served variant has a verdict that nothing supports any more.",
        description=f"{_WHERE} is served, and none of its requests has been scored for an hour "
        "or more.",
        dashboard=_SHADOW,
    )
    stale = _of_who_answers('narrowgate_drift_state{slice!="all"} == 3')
    yield Alert(
        name="SliceStale",
        severity="warning",
        # Where the whole model is stale or drifts, that is told.
        expr=f"(\n{indent(stale, '  ')}\n)\n"
        f'unless on ({", ".join(VARIANT)}) narrowgate_drift_state{{slice="all"}} >= 2\n'
        f"{also(served)}",
        wait="1h",
        why="a slice may wait for its share of the budget; an hour without evidence is not ok",
        summary="Of one kind of request nothing is scored any more.",
        description=f"{_WHERE} is served, and none of its requests in {{{{ $labels.slice }}}} has "
        "been scored for an hour or more; others have.",
        dashboard=_SHADOW,
    )


def _of_who_answers(condition: str) -> str:
    """Return a condition on slices, held by whoever answers them.

    That is the active variant, or the one that a slice is routed to.
    """
    return (
        f"{condition}\n{_IS_ACTIVE}\n"
        f"unless on ({', '.join((*_MODEL, 'slice'))}) narrowgate_slice_routed == 1\n"
        f"or {condition}\n{also('narrowgate_slice_routed == 1', (*VARIANT, 'slice'))}"
    )


def _evidence() -> Iterator[Alert]:
    scored = "increase(narrowgate_shadow_scored_total[30m]) > 0"
    drawn = "increase(narrowgate_shadow_candidates_total[30m])"
    refused = 'increase(narrowgate_shadow_dropped_total{reason=~"private|unsupported"}[30m])'
    yield Alert(
        name="ShadowStarved",
        severity="warning",
        # What must not or cannot be scored is nobody's fault.
        expr=f"{drawn}\n- (sum without (reason) ({refused}) or {drawn} * 0) > 10\n"
        f"unless on ({', '.join(_MODEL)}) {scored}",
        wait="10m",
        why="a reference that has to be loaded first needs minutes",
        summary="Requests that could be scored are drawn, and none is.",
        description="{{ $value | humanize }} requests to {{ $labels.model }} at "
        "{{ $labels.instance }} that could be scored were drawn in 30 minutes; 0 were.",
        dashboard=_SHADOW,
    )
    yield Alert(
        name="ReferenceDown",
        severity="warning",
        # On demand it is down whenever it has nothing to do; failures tell the difference.
        expr="increase(narrowgate_shadow_reference_failures_total[30m]) > 1\n"
        f"{also('narrowgate_shadow_reference_up == 0', _MODEL)}",
        wait="10m",
        why="it is started again after pauses of up to 5 minutes",
        summary="The reference of a model fails, so nothing is scored.",
        description="The reference of {{ $labels.model }} at {{ $labels.instance }} is down and "
        "failed {{ $value | humanize }} times in 30 minutes.",
        dashboard=_SHADOW,
    )


def _cost() -> Iterator[Alert]:
    read = "sum without (model) (rate(narrowgate_shadow_reference_tokens_total[15m]))"
    yield Alert(
        name="ShadowOverBudget",
        severity="warning",
        expr=f"{read}\n/ (narrowgate_shadow_budget_tokens_per_second > 0) > 1.2",
        wait="15m",
        why="a minute's tokens may be read at once, and the noise floor reads some more",
        summary="References read more tokens than their budget.",
        description="References at {{ $labels.instance }} read {{ $value | humanize }} times "
        "their budget of tokens a second.",
        dashboard="/d/narrowgate-shadow",
    )
    yield Alert(
        name="ShadowExpensive",
        severity="info",
        expr="sum without (model) (rate(narrowgate_shadow_cpu_seconds_total[15m])) > 0.8",
        wait="30m",
        why="references run when nothing else does; half an hour of it is a habit",
        summary="References use most of a processor core all the time.",
        description='References at {{ $labels.instance }} use {{ $value | printf "%.3g" }} cores.',
        dashboard="/d/narrowgate-shadow",
    )


def _answers() -> Iterator[Alert]:
    checks = "narrowgate_fidelity_output_checks_total"
    failed = f'sum without (result) (increase({checks}{{result="failed"}}[30m]))'
    yield Alert(
        name="OutputBroken",
        severity="warning",
        expr=f"{failed}\n/ sum without (result) (increase({checks}[30m])) > 0.1\nand {failed} > 5",
        wait="5m",
        why="the window is half an hour; five minutes spare its edge",
        summary="Answers look broken by themselves.",
        description="{{ $value | humanizePercentage }} of the drawn answers of "
        f"{_WHERE} failed the check {{{{ $labels.check }}}}.",
        dashboard=_FIDELITY,
    )
    yield Alert(
        name="ChangedSinceBuild",
        severity="critical",
        expr='narrowgate_fixed_texts_check{result="changed"} == 1',
        wait="0m",
        why="one reading has thousands of tokens, and the next may be an hour away",
        summary="An engine does not compute what its artifact was built to.",
        description=f"An engine of {_WHERE} reads fixed texts further from what its build kept "
        "than a sound engine does: weights, kernels or the machine went wrong.",
        dashboard=_FIDELITY,
    )
    yield Alert(
        name="FixedTextsOverdue",
        severity="warning",
        expr=f"time() - narrowgate_fixed_texts_due_timestamp_seconds > {_OVERDUE_S:.0f}",
        wait="30m",
        why="after a sleep of the machine, or a step of its clock, engines are read first",
        summary="An engine has not been held against its build for hours.",
        description=f"An engine of {_WHERE} should have read fixed texts "
        "{{ $value | humanizeDuration }} ago, and has not: whether it still computes what its "
        "artifact was built to is not known.",
        dashboard=_FIDELITY,
    )
    yield Alert(
        name="ProbeChanged",
        severity="critical",
        # The last value of an engine that has gone says nothing of the next one.
        expr=f"narrowgate_probe_change_nats > 0.5\n{also('narrowgate_engine_up == 1')}",
        wait="3m",
        why="probes come once a minute; more than one must say so",
        summary="An engine says something else than when it started.",
        description=f"A first token's log-probability of {_WHERE} has changed by "
        '{{ $value | printf "%.3g" }} nats on a fixed prompt: weights, kernels or the machine went '
        "wrong.",
        dashboard=_FIDELITY,
    )
