"""One search from start to end: table, frontier, trials."""

import os
from dataclasses import replace

from torch import Tensor

from compression.calibration_text import WINDOW_TOKENS, calibration_windows
from compression.errors import SearchError
from compression.events import OnProgress, Progress
from compression.facts import CheckpointFacts, read_facts
from compression.plan import make_plan
from compression.prepare import prepare_recipe
from compression.recipe import Budget, Calibration, Recipe
from compression.schemes import Int4, Int8, Unquantized
from compression.search.allocation import Allocation, frontier
from compression.search.choice import TABLES, recipe_of
from compression.search.remembered import Costs, costs_path, recall, remember
from compression.search.search import (
    Found,
    Trial,
    cost_table,
    tables_options,
    within_budget,
)
from compression.search.sensitivity import Sensitivity, UnitErrors, unit_errors
from compression.search.units import units
from compression.source import resolve_source
from compression.tokenizer_file import load_tokenizer

PROBE_WINDOWS = 5
PROBE_TOKENS = 256


class Session:
    """A model, its cost table and its frontier.

    Raises:
        CompressionError: the model or the calibration text cannot be used.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        *,
        name: str,
        calibration: Calibration,
        on_progress: OnProgress,
    ) -> None:
        self._model = model
        self._revision = revision
        self._name = name
        self._calibration = calibration
        self._on_progress = on_progress
        directory = resolve_source(model, revision=revision, on_progress=on_progress)
        self._facts = read_facts(directory)
        self._menu = _menu(self._facts)
        self._tokenizer = load_tokenizer(directory)
        # Both are cut at once: too short a text is told before anything long begins.
        self._windows = self._cut(self._calibration, WINDOW_TOKENS)
        self._probe = self._cut(self._probe_calibration(), PROBE_TOKENS)[:PROBE_WINDOWS]
        costs = self._costs()
        self._units = list(units(self._facts.architecture))
        table = cost_table(self._units, costs, self._menu)
        table[TABLES] = tables_options(self._facts, costs.divergences[TABLES])
        self.points = frontier(table)
        self.trials: list[Trial] = []

    def find(self, budget: Budget) -> Found:
        """Return the smallest recipe that keeps the budget.

        Raises:
            SearchError: nothing keeps it.
        """
        best = within_budget(self.points, budget, self.attempt)
        # Later builds of what was found are held to what it was found for.
        recipe = best.recipe.model_copy(update={"budget": budget})
        return self._found(replace(best, recipe=recipe))

    def fit(self, max_bytes: int) -> Found:
        """Return the most faithful recipe whose weights take at most ``max_bytes`` in memory.

        Raises:
            SearchError: even the smallest takes more.
        """
        smallest = self._recipe(self.points[0])
        beside = self._bytes(smallest) - self.points[0].num_bytes
        fitting = [point for point in self.points if point.num_bytes + beside <= max_bytes]
        if not fitting:
            least = (self.points[0].num_bytes + beside) / 1e6
            raise SearchError(
                f"--max-bytes {max_bytes} is less than the smallest artifact, {least:.1f} MB: "
                "allow more"
            )
        return self._found(self.attempt(fitting[-1]))

    def attempt(self, allocation: Allocation) -> Trial:
        """Build the artifact of an allocation (or find it in the store) and measure it."""
        recipe = self._recipe(allocation)
        prepared = prepare_recipe(
            self._model, recipe, self._revision, self._on_progress, is_measured=True
        )
        manifest = prepared.manifest
        if manifest is None or manifest.fidelity is None:
            raise SearchError(f"{str(prepared.directory)!r} was not measured: build it again")
        trial = Trial(
            recipe=recipe,
            bytes_in_memory=manifest.bytes_in_memory,
            matrix_bytes=allocation.num_bytes,
            bytes_stored=manifest.bytes_stored,
            linear_bits_stored=manifest.linear_bits_stored,
            slices=manifest.fidelity,
        )
        self.trials.append(trial)
        return trial

    def _recipe(self, allocation: Allocation) -> Recipe:
        menu = {**self._menu, "none": Unquantized()}
        return recipe_of(
            allocation, self._units, menu, name=self._name, calibration=self._calibration
        )

    def _bytes(self, recipe: Recipe) -> int:
        return make_plan(self._facts, recipe).bytes_in_memory

    def _costs(self) -> Costs:
        """Return what every unit costs: remembered, or measured now."""
        texts = (self._windows, self._probe)
        path = costs_path(self._facts, self._menu, texts, self._on_progress)
        if (known := recall(path)) is not None:
            return known
        errors = self._unit_errors()
        costs = Costs(
            output_errors={each.unit.name: each.output_errors for each in errors},
            divergences=self._divergences(errors),
        )
        remember(path, costs)
        return costs

    def _unit_errors(self) -> list[UnitErrors]:
        workers = len(os.sched_getaffinity(0))
        menu = list(self._menu.values())
        return unit_errors(self._facts, self._windows, menu, workers, self._on_progress)

    def _divergences(self, errors: list[UnitErrors]) -> dict[str, float]:
        """Return each unit's measured KL divergence under the first scheme of the menu.

        That of the embedding and the output head is under int8.
        """
        found = {}
        with Sensitivity(self._facts, self._probe) as sensitivity:
            for done, each in enumerate(errors):
                self._on_progress(Progress("search", done, len(errors), "units"))
                found[each.unit.name] = sensitivity.divergence(each.unit.layer, each.probe)
            found[TABLES] = sensitivity.tables_divergence()
        return found

    def _cut(self, calibration: Calibration, width: int) -> Tensor:
        context = min(width, self._facts.architecture.max_position_embeddings)
        return calibration_windows(calibration, self._tokenizer, context)

    def _probe_calibration(self) -> Calibration:
        """Return the few windows of the same text that units are probed with."""
        tokens = max(512, PROBE_WINDOWS * PROBE_TOKENS)
        return Calibration(
            text=self._calibration.text,
            tokens=min(self._calibration.tokens, tokens),
            seed=self._calibration.seed + 1,
        )

    def _found(self, best: Trial) -> Found:
        return Found(
            best=best,
            trials=tuple(self.trials),
            expected=tuple((point.num_bytes, point.cost) for point in self.points),
        )


def _menu(facts: CheckpointFacts) -> dict[str, Int4 | Int8]:
    """Return the schemes to choose from, by label; the first one is probed.

    Raises:
        SearchError: no group size divides the columns of every module.
    """
    columns = {
        shape[1]
        for layer in range(facts.architecture.num_layers)
        for _, shape in facts.architecture.linears(layer)
    }
    schemes: list[Int4 | Int8] = [
        Int4(group_size=size, method="gptq")
        for size in (32, 64, 128)
        if not any(width % size for width in columns)
    ]
    if not schemes:
        raise SearchError(
            f"no group size of int4 divides {min(columns)} columns: use the recipe int8"
        )
    schemes.append(Int8(method="gptq"))
    return {scheme.label: scheme for scheme in schemes}
