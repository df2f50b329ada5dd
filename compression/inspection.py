"""An artifact's manifest as tables for a terminal; free of torch."""

import re
from collections.abc import Iterable
from statistics import fmean

from rich import box
from rich.markup import escape
from rich.table import Table

from compression.fixed_texts import ALL
from compression.manifest import KernelRecord, Manifest, TensorRecord
from compression.recipe import KvCache

_WIDE = 130
"""Columns from which on the table of tensors has one for every figure."""
_LAYER = re.compile(r"\.(\d+)\.")

_ERRORS = (
    "error: norm of the change over that of the weight; output error: the same of the layer's "
    "output on the calibration text"
)


def render_manifest(manifest: Manifest, *, width: int = 200) -> list[Table]:
    """Return what was asked for, what was done, what it runs on and how far it is off.

    ``width`` is the terminal's, in columns: a narrow one gets fewer columns with the same facts.
    """
    is_narrow = width < _WIDE
    tables = [_overview(manifest), _narrow_tensors(manifest) if is_narrow else _tensors(manifest)]
    if manifest.refusals:
        tables.append(_refusals(manifest))
    if manifest.kernels:
        tables.append(_kernels(manifest))
    if manifest.fidelity is not None:
        tables.append(_fidelity(manifest))
    return tables


def _overview(manifest: Manifest) -> Table:
    recipe, source = manifest.recipe, manifest.source
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    revision = "" if source.revision is None else f" at {source.revision[:12]}"
    rows = {
        "source": f"{source.model}{revision} ({source.architecture}), {source.digest[:12]}",
        "recipe": f"{recipe.name}, {manifest.recipe_digest[:12]}",
        "size": (
            f"{_megabytes(manifest.bytes_before)} -> {_megabytes(manifest.bytes_in_memory)} in "
            f"memory, {_megabytes(manifest.bytes_stored)} in files"
        ),
        "bits per weight": (
            f"{_bits(manifest.bits_per_weight)} in memory, "
            f"{_bits(manifest.bits_per_weight_stored)} in files; linear layers "
            f"{_bits(manifest.linear_bits)} and {_bits(manifest.linear_bits_stored)}"
        ),
        "kv cache": _kv(recipe.kv_cache),
        "activations": recipe.activations,
        "pruned": _pruned(manifest),
        "fidelity": "not measured" if manifest.fidelity is None else "below, worst slice first",
        "fixed texts": _fixed_texts(manifest),
        "build": (
            f"{manifest.seconds:.1f} s, grew by {_megabytes(manifest.peak_build_bytes)} of "
            f"{_megabytes(manifest.peak_declared_bytes)} declared"
        ),
        "versions": ", ".join(f"{name} {number}" for name, number in manifest.versions.items()),
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _fixed_texts(manifest: Manifest) -> str:
    kept = manifest.fixed_texts
    if kept is None:
        return "not kept"
    if kept.reading is None:
        return f"{kept.tokens} tokens kept, read by no engine"
    nats = kept.reading.distances[ALL]
    return f"{kept.tokens} tokens kept, a sound engine is {nats:.4f} nats off"


def _pruned(manifest: Manifest) -> str:
    record, asked = manifest.prune, manifest.recipe.prune
    if record is None:
        return "nothing"
    parts = {
        "query heads a group": asked.query_heads,
        "key-value groups": asked.kv_groups,
        "of the neurons": f"{100 * asked.neurons:g} %" if asked.neurons else 0,
    }
    gone = ", ".join(f"{amount} {what}" for what, amount in parts.items() if amount)
    return (
        f"{gone} by {record.score}, compensated by {record.compensation}; left are {record.heads} "
        f"heads, {record.kv_heads} key-value heads, {record.neurons} neurons a layer"
    )


def _tensors(manifest: Manifest) -> Table:
    """Return one row for each kind of tensor that was treated alike, over all layers."""
    table = _table("tensors")
    for header in ("what", "requested", "applied", "method"):
        table.add_column(header, overflow="fold")
    for header in ("count", "MB\nbefore", "MB in\nmemory", "error\nmean", "error\nmax"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("output\nerror", justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for (*words, reason), records in _kinds(manifest).items():
        errors = [each.relative_error for each in records if each.relative_error is not None]
        outputs = [each.output_error for each in records if each.output_error is not None]
        table.add_row(
            *(escape(word) for word in words),
            str(len(records)),
            f"{sum(each.bytes_before for each in records) / 1e6:.1f}",
            f"{sum(each.bytes_in_memory for each in records) / 1e6:.1f}",
            _mean(errors),
            f"{max(errors):.4f}" if errors else "",
            _mean(outputs),
            escape(reason),
        )
    table.caption = _ERRORS
    return table


def _narrow_tensors(manifest: Manifest) -> Table:
    """Return the same in fewer columns: scheme and method in one, the note below the name."""
    table = _table("tensors")
    table.add_column("what", overflow="fold", min_width=26)
    table.add_column("scheme", overflow="fold", min_width=14)
    for header in ("count", "MB in\nmemory", "error\nmean", "output\nerror"):
        table.add_column(header, justify="right", no_wrap=True)
    for (what, requested, applied, method, reason), records in _kinds(manifest).items():
        scheme = applied if applied == requested else f"{applied}, not {requested}"
        errors = [each.relative_error for each in records if each.relative_error is not None]
        outputs = [each.output_error for each in records if each.output_error is not None]
        table.add_row(
            escape(what.removeprefix("model.").removesuffix(".weight"))
            + (f"\n[dim]{escape(reason)}[/]" if reason not in {"", "no matrix"} else ""),
            escape(f"{scheme} {method}".strip()),
            str(len(records)),
            f"{sum(each.bytes_in_memory for each in records) / 1e6:.1f}",
            _mean(errors),
            _mean(outputs),
        )
    table.caption = _ERRORS
    return table


def _kinds(manifest: Manifest) -> dict[tuple[str, str, str, str, str], list[TensorRecord]]:
    """Return the tensors by what, requested, applied, method and reason, over all layers."""
    kinds: dict[tuple[str, str, str, str, str], list[TensorRecord]] = {}
    for record in manifest.tensors:
        what = _LAYER.sub(".*.", record.name)
        key = (what, record.requested, record.applied, record.method or "", record.reason)
        kinds.setdefault(key, []).append(record)
    return kinds


def _refusals(manifest: Manifest) -> Table:
    table = _table("requested, not done")
    for header in ("what", "requested", "reason"):
        table.add_column(header, overflow="fold")
    for refusal in manifest.refusals:
        table.add_row(escape(refusal.subject), escape(refusal.requested), escape(refusal.reason))
    return table


def _kernels(manifest: Manifest) -> Table:
    table = _table("kernels, one row of input")
    for header in ("scheme", "kernel"):
        table.add_column(header, overflow="fold")
    for header in ("shape", "layers", "µs", "µs\nbf16", "speed\nratio"):
        table.add_column(header, justify="right", no_wrap=True)
    for kernel in manifest.kernels:
        table.add_row(
            escape(kernel.scheme),
            escape(kernel.kernel),
            _shape(kernel),
            str(kernel.count),
            f"{kernel.microseconds:.0f}",
            f"{kernel.bf16_microseconds:.0f}",
            f"{kernel.bf16_microseconds / kernel.microseconds:.1f}x",
        )
    table.caption = "timed at the build on " + escape(manifest.processor)
    return table


def _shape(kernel: KernelRecord) -> str:
    timed = "" if kernel.timed_rows == kernel.rows else f" (timed {kernel.timed_rows} rows)"
    return f"{kernel.rows}x{kernel.columns}{timed}"


def _fidelity(manifest: Manifest) -> Table:
    table = _table("fidelity against the full model, 95 % intervals")
    table.add_column("slice", overflow="fold")
    for header in ("tokens", "KLD mean", "KLD p99", "top-1 %"):
        table.add_column(header, justify="right", no_wrap=True)
    for part in manifest.fidelity or ():
        low, high = part.kld_mean_ci95
        top_low, top_high = (100 * bound for bound in part.top1_ci95)
        table.add_row(
            escape(part.name),
            str(part.tokens),
            f"{part.kld_mean:.4f} ({low:.4f} to {high:.4f})",
            f"{part.kld_p99:.3f}",
            f"{100 * part.top1:.1f} ({top_low:.1f} to {top_high:.1f})",
        )
    return table


def _kv(kv_cache: KvCache) -> str:
    if not kv_cache.is_quantized:
        return "bf16"
    kept = kv_cache.keep_first + kv_cache.keep_last
    layers = f", {kept} outer layers bf16" if kept else ""
    return f"keys {kv_cache.key.scheme}, values {kv_cache.value.scheme}{layers} (requested)"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, caption_justify="left")


def _mean(values: Iterable[float]) -> str:
    numbers = list(values)
    return f"{fmean(numbers):.4f}" if numbers else ""


def _megabytes(num_bytes: int | None) -> str:
    return "?" if num_bytes is None else f"{num_bytes / 1e6:.1f} MB"


def _bits(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"
