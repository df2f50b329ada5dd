"""The verb: a checkpoint becomes a smaller one that any engine loads as it is."""

import time
from pathlib import Path
from typing import Literal

from torch import Tensor

from compression.evaluation import Window
from compression.events import OnProgress, Progress
from compression.facts import CheckpointFacts, read_facts
from compression.measurement import measure
from compression.pruning.cut import LayerCut
from compression.pruning.cutter import Cutter
from compression.pruning.leave_one_out import leave_one_out
from compression.pruning.record import LayerRecord, PruneRecord
from compression.pruning.rewrite import Rewriter
from compression.pruning.shape import Shape, pruned_shape
from compression.recipe import Prune

_COST_WINDOWS = 2


def prune_on(
    facts: CheckpointFacts,
    recipe: Prune,
    windows: Tensor | None,
    out_directory: Path,
    on_progress: OnProgress,
) -> PruneRecord:
    """Write the pruned checkpoint into ``out_directory``, which must be empty.

    ``windows`` are the token ids [B, T] of the calibration text; None where neither score nor
    refit needs them.

    Raises:
        RecipeError: this checkpoint cannot be pruned so.
    """
    start = time.perf_counter()
    architecture = facts.architecture
    shape = pruned_shape(recipe, architecture)
    head_scores = None
    if windows is not None and recipe.score == "leave-one-out" and _cuts_heads(recipe):
        head_scores = leave_one_out(facts.directory, architecture, recipe, windows, on_progress)
    records = []
    with (
        Rewriter(facts, shape, out_directory) as rewriter,
        Cutter(facts, recipe, shape, windows, head_scores) as cutter,
    ):
        for index in range(architecture.num_layers):
            on_progress(Progress("prune", index, architecture.num_layers, "steps"))
            cut = cutter.cut(index)
            rewriter.write_layer(index, cut)
            records.append(_layer_record(facts, cut))
        bytes_after = rewriter.finish()
    on_progress(Progress("prune", architecture.num_layers, architecture.num_layers, "steps"))
    some = None if windows is None else windows[:_COST_WINDOWS]
    return PruneRecord(
        architecture=shape.form.architecture,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        neurons=shape.neurons,
        score=recipe.score,
        compensation=_compensation(recipe, shape),
        reason=_reason(recipe),
        layers=tuple(records),
        bytes_before=facts.num_bytes,
        bytes_after=bytes_after,
        kld=None if some is None else _mean_kld(facts, out_directory, some, on_progress),
        kld_tokens=0 if some is None else some[:, 1:].numel(),
        seconds=time.perf_counter() - start,
    )


def _mean_kld(
    full: CheckpointFacts, pruned: Path, windows: Tensor, on_progress: OnProgress
) -> float:
    """Return the mean divergence of the written checkpoint from its source, nats a token."""
    text = [Window(tuple(row), first=1) for row in windows.tolist()]
    scores = measure(full, read_facts(pruned), None, {"calibration": text}, on_progress)
    return float(scores["calibration"].kld.mean())


def _cuts_heads(recipe: Prune) -> bool:
    return bool(recipe.query_heads or recipe.kv_groups)


def _layer_record(facts: CheckpointFacts, cut: LayerCut) -> LayerRecord:
    architecture = facts.architecture
    heads, kv_heads = range(architecture.num_heads), range(architecture.num_kv_heads)
    return LayerRecord(
        query_heads=tuple(sorted(set(heads) - set(cut.heads.query_heads))) if cut.heads else (),
        kv_heads=tuple(sorted(set(kv_heads) - set(cut.heads.kv_heads))) if cut.heads else (),
        neurons=architecture.intermediate_size - len(cut.down.kept) if cut.down else 0,
        attention_error=cut.output.error if cut.output else None,
        mlp_error=cut.down.error if cut.down else None,
    )


def _compensation(recipe: Prune, shape: Shape) -> Literal["none", "weights", "weights and biases"]:
    """Return what was refitted: a bias too, where the written family has one anyway."""
    if not recipe.compensate:
        return "none"
    has_bias = (_cuts_heads(recipe) and shape.form.output_bias) or (
        recipe.neurons > 0 and shape.form.mlp_bias
    )
    return "weights and biases" if has_bias else "weights"


def _reason(recipe: Prune) -> str:
    if recipe.score == "leave-one-out" and recipe.neurons:
        return "neurons are too many to leave out one by one: scored by fluctuation"
    return ""
