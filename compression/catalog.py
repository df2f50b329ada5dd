"""The presets as a list: what each does, and what it makes of a model; free of torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from compression.checked_plan import plan_checked, plan_once_pruned
from compression.errors import CompressionError
from compression.facts import CheckpointFacts
from compression.kv.layers import bytes_per_token
from compression.presets import PRESETS
from compression.recipe import Recipe
from compression.schemes import Grouped, Int8, Nf4, Unquantized

_SIDE = 4096
"""Rows and columns of the weight for which bits are told where no model is given."""

_SIZES = ("MB in\nmemory", "MB in\nfiles", "of\nfull", "MB to\nbuild", "KV kB\na token")
Row = Mapping[str, Any]


def describe_presets(facts: CheckpointFacts | None) -> list[dict[str, Any]]:
    """Return one JSON-ready row a preset.

    ``bits`` are those of the linear layers in memory; with ``facts`` they are the model's, and
    ``bytes_in_memory``, ``bytes_stored``, ``bytes_before``, ``peak_bytes`` (the bound for the
    build's memory), ``kv_bytes_per_token`` (None for families that only other engines serve) and
    ``refused`` (None, or the reason) are there too; sizes are those of what pruning leaves.
    """
    return [_row(recipe, facts) for recipe in PRESETS.values()]


def describe_recipe(recipe: Recipe, facts: CheckpointFacts) -> dict[str, Any]:
    """Return the row of one recipe for a model.

    Raises:
        CompressionError: the recipe cannot be carried out on this checkpoint.
    """
    asked = plan_checked(facts, recipe)
    plan = plan_once_pruned(asked)
    weights = sum(tensor.num_weights for tensor in plan.linears)
    known = plan.facts.known
    return {
        "name": recipe.name,
        "deed": deed(plan.carried),
        "refused": None,
        "bits": 8 * sum(tensor.bytes_in_memory for tensor in plan.linears) / weights,
        "bytes_before": facts.num_bytes,
        "bytes_in_memory": plan.bytes_in_memory,
        "bytes_stored": plan.bytes_stored,
        "peak_bytes": asked.peak_bytes,
        "kv_bytes_per_token": known and bytes_per_token(recipe.kv_cache, known),
    }


def render_presets(rows: Sequence[Row], model: str | None) -> list[Table]:
    """Return the table of :func:`describe_presets`."""
    title = "recipes" if model is None else f"recipes for {escape(model)}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, caption_justify="left")
    table.add_column("recipe", style="bold", no_wrap=True)
    table.add_column("what it does", overflow="fold")
    table.add_column("linear\nbits", justify="right", no_wrap=True)
    if model is not None:
        for header in _SIZES:
            table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["name"], escape(_what(row)), _bits(row), *_sizes(row, model))
    table.caption = "'full' serves the model as it is; a YAML file is a recipe of your own."
    return [table]


def _row(recipe: Recipe, facts: CheckpointFacts | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": recipe.name, "deed": deed(recipe)}
    if facts is None:
        return row | {"bits": 8 * recipe.weights.memory_bytes(_SIDE, _SIDE, 2) / _SIDE**2}
    try:
        return describe_recipe(recipe, facts)
    except CompressionError as error:
        return row | {"refused": str(error), "bits": None}


def deed(recipe: Recipe) -> str:
    """Return in a few words what a recipe does."""
    parts = [_weights(recipe)]
    if recipe.activations != "none":
        parts.append("inputs int8 per token")
    if isinstance(recipe.embeddings, Int8):
        parts.append(f"embedding and head int8 ({recipe.embeddings.method})")
    if recipe.kv_cache.is_quantized:
        key, value = recipe.kv_cache.key.scheme, recipe.kv_cache.value.scheme
        parts.append(f"KV cache {key}" if key == value else f"keys {key}, values {value}")
    if recipe.prune.query_heads:
        parts.append(f"{recipe.prune.query_heads} query head fewer in each group")
    if recipe.prune.kv_groups:
        parts.append(f"{recipe.prune.kv_groups} key-value head fewer")
    if recipe.prune.neurons:
        parts.append(f"{100 * recipe.prune.neurons:g} % fewer neurons")
    return "; ".join(parts)


def _weights(recipe: Recipe) -> str:
    match recipe.weights:
        case Int8(method=method):
            text = f"weights int8 per row ({method})"
        case Grouped(scheme=name, group_size=group, symmetric=symmetric, method=method):
            kind = "symmetric" if symmetric else "asymmetric"
            text = f"weights {name} in groups of {group}, {kind} ({method})"
        case Nf4():
            text = "weights nf4 in blocks of 64 (bitsandbytes)"
        case Unquantized():
            text = "weights as they are"
    return f"{text}, by rules for some" if recipe.rules or recipe.keep else text


def _what(row: Row) -> str:
    return f"{row['deed']}. Not here: {row['refused']}" if row.get("refused") else str(row["deed"])


def _bits(row: Row) -> str:
    return "" if row["bits"] is None else f"{row['bits']:.2f}"


def _sizes(row: Row, model: str | None) -> list[str]:
    if model is None:
        return []
    if row["refused"]:
        return [""] * len(_SIZES)
    memory, stored, before = (row[f"bytes_{kind}"] for kind in ("in_memory", "stored", "before"))
    kv_bytes = row["kv_bytes_per_token"]
    return [
        f"{memory / 1e6:.1f}",
        f"{stored / 1e6:.1f}",
        f"{100 * memory / before:.0f} %",
        f"{row['peak_bytes'] / 1e6:.0f}",
        "" if kv_bytes is None else f"{kv_bytes / 1e3:.1f}",
    ]
