"""``docs/metrics.md``: the manifest of metrics as a page."""

from collections.abc import Iterable

from gateway.metrics.engine import ENGINE_FAMILIES, ENGINE_PREFIX
from gateway.metrics.family import Label
from gateway.metrics.manifest import PATHS, Row, manifest

_HEAD = f"""\
# Metrics

Written by `python -m grafana` from the manifest, `gateway/metrics/`.

`{PATHS[0]}` has all of these. `{PATHS[1]}` has what engines say under the names of vLLM,
`{PATHS[2]}` durations and tokens under those of OpenTelemetry (`gen_ai_*`): the same numbers
again, so scrape one path. Beside them stand the `process_*` families of the client library, of the
gateway's process.

A label is a closed set, or bounded by the settings; nothing that a client sends becomes one.
"""


def metrics_page() -> str:
    """Return the page."""
    rows = manifest()
    engines = [row for row in rows if row.name.startswith(ENGINE_PREFIX) and _is_of_engine(row)]
    own = [row for row in rows if row not in engines]
    parts = [
        _HEAD,
        "\n## The gateway\n\n",
        *_table(own),
        "\n## Engines\n\nOf each engine that the gateway started, embedded or vLLM. What has no "
        "name of vLLM's comes\nfrom embedded engines alone.\n\n",
        *_table(engines, {ENGINE_PREFIX + each.name: each.vllm for each in ENGINE_FAMILIES}),
        "\n## Labels\n\n| label | values |\n|---|---|\n",
        *_labels(rows),
        "\n## Buckets\n\n| metric | upper bounds |\n|---|---|\n",
        *(
            f"| `{row.name}` | {', '.join(f'{bound:g}' for bound in row.buckets)} |\n"
            for row in rows
            if row.buckets
        ),
    ]
    return "".join(parts)


def _is_of_engine(row: Row) -> bool:
    return any(label.name == "replica" for label in row.labels)


def _table(rows: Iterable[Row], vllm: dict[str, str | None] | None = None) -> Iterable[str]:
    more = "" if vllm is None else " on `/metrics/vllm` |"
    yield f"| metric | type | unit | labels | what it says |{more}\n|---|---|---|---|---|"
    yield "\n" if vllm is None else "---|\n"
    for row in rows:
        names = ", ".join(f"`{label.name}`" for label in row.labels)
        line = f"| `{row.name}` | {row.type} | {row.unit} | {names} | {row.help} |"
        if vllm is not None:
            there = vllm[row.name]
            line += f" `vllm:{there}` |" if there else " |"
        yield line + "\n"


def _labels(rows: Iterable[Row]) -> Iterable[str]:
    """Yield a line for each label and set of values, with who has it where sets differ."""
    uses: dict[Label, list[str]] = {}
    for row in rows:
        for label in row.labels:
            uses.setdefault(label, []).append(row.name)
    names = [label.name for label in uses]
    for label, users in sorted(uses.items(), key=lambda each: each[0].name):
        values = ", ".join(f"`{value}`" for value in label.values) or label.bound
        is_shared = names.count(label.name) > 1
        where = f" of {', '.join(f'`{user}`' for user in users)}" if is_shared else ""
        yield f"| `{label.name}`{where} | {values} |\n"
