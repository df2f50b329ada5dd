"""One search from start to end: table, frontier, trials."""

from dataclasses import replace
from functools import cached_property

from torch import Tensor

from compression.calibration_text import WINDOW_TOKENS, calibration_windows
from compression.errors import SearchError
from compression.events import OnProgress
from compression.facts import read_facts
from compression.plan import make_plan
from compression.prepare import prepare_recipe
from compression.recipe import Budget, Calibration, Recipe
from compression.schemes import Unquantized
from compression.search.allocation import Allocation, Option, frontier, most_faithful
from compression.search.choice import TABLES, recipe_of
from compression.search.costs import Costs, cost_table, tables_options
from compression.search.menu import Engine, menu
from compression.search.progress import TRIALS, SearchProgress
from compression.search.remembered import costs_path, recall, remember
from compression.search.search import Found, Trial, within_budget
from compression.search.sweep import is_complete, measure_costs
from compression.search.units import units
from compression.source import resolve_source
from compression.tokenizer_file import load_tokenizer

TABLE_TOKENS = 8192
"""Of the calibration text, on which units are rounded for the table at most."""
PROBE_WINDOWS = 10
"""On which units are probed: from so many places of the text, because documents differ more than
what stands in one of them."""
PROBE_TOKENS = 64


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
        engine: Engine = "embedded",
        on_progress: OnProgress,
    ) -> None:
        self._model = model
        self._revision = revision
        self._name = name
        self._calibration = calibration
        directory = resolve_source(model, revision=revision, on_progress=on_progress)
        self._facts = read_facts(directory)
        self._progress = SearchProgress(on_progress, self._facts.architecture.num_layers)
        self._menu = menu(self._facts, engine)
        self._tokenizer = load_tokenizer(directory)
        # Both are cut at once: too short a text is told before anything long begins.
        windows = self._cut(calibration, WINDOW_TOKENS)
        self._windows = windows[: -(-TABLE_TOKENS // windows.shape[1])]
        places = self._cut(self._probe_calibration(), PROBE_TOKENS)
        self._probe = places[:: max(1, len(places) // PROBE_WINDOWS)][:PROBE_WINDOWS]
        self._units = list(units(self._facts.architecture))
        self.trials: list[Trial] = []

    @cached_property
    def points(self) -> list[Allocation]:
        """Return the expected frontier, from the smallest allocation on."""
        return frontier(self._table)

    def find(self, budget: Budget) -> Found:
        """Return the smallest recipe that keeps the budget.

        Raises:
            SearchError: nothing keeps it.
        """
        self._progress.expect(TRIALS)
        best = within_budget(self.points, budget, self.attempt)
        # Later builds of what was found are held to what it was found for.
        recipe = best.recipe.model_copy(update={"budget": budget})
        return self._found(replace(best, recipe=recipe))

    def fit(self, max_bytes: int) -> Found:
        """Return the most faithful recipe whose weights take at most ``max_bytes`` in memory.

        Raises:
            SearchError: even the smallest takes more.
        """
        smallest = frontier(self._options(self._no_costs()))[0]
        beside = self._bytes(self._recipe(smallest)) - smallest.num_bytes
        if smallest.num_bytes + beside > max_bytes:
            raise SearchError(
                f"--max-bytes {max_bytes} is less than the smallest artifact, "
                f"{(smallest.num_bytes + beside) / 1e6:.1f} MB: allow more"
            )
        self._progress.expect(1)
        return self._found(self.attempt(most_faithful(self._table, max_bytes - beside)))

    def attempt(self, allocation: Allocation) -> Trial:
        """Build the artifact of an allocation (or find it in the store) and measure it."""
        recipe = self._recipe(allocation)
        self._progress.begin_trial()
        prepared = prepare_recipe(
            self._model, recipe, self._revision, self._progress.on_progress, is_measured=True
        )
        self._progress.end_trial()
        manifest = prepared.manifest
        if manifest is None or manifest.fidelity is None:
            raise SearchError(f"{str(prepared.directory)!r} was not measured: build it again")
        trial = Trial(
            recipe=recipe,
            bytes_in_memory=manifest.bytes_in_memory,
            matrix_bytes=allocation.num_bytes,
            expected_kld=allocation.cost,
            bytes_stored=manifest.bytes_stored,
            linear_bits_stored=manifest.linear_bits_stored,
            slices=manifest.fidelity,
        )
        self.trials.append(trial)
        return trial

    def _recipe(self, allocation: Allocation) -> Recipe:
        schemes = {**self._menu, "none": Unquantized()}
        return recipe_of(
            allocation, self._units, schemes, name=self._name, calibration=self._calibration
        )

    def _bytes(self, recipe: Recipe) -> int:
        return make_plan(self._facts, recipe).bytes_in_memory

    @cached_property
    def _table(self) -> dict[str, list[Option]]:
        return self._options(self._costs())

    def _options(self, costs: Costs) -> dict[str, list[Option]]:
        table = cost_table(self._units, costs, self._menu)
        table[TABLES] = tables_options(self._facts, costs.divergences[TABLES])
        return table

    def _no_costs(self) -> Costs:
        """Return costs of nothing, under which sizes alone tell options apart."""
        errors = {unit.name: dict.fromkeys(self._menu, 0.0) for unit in self._units}
        return Costs(output_errors=errors, divergences=dict.fromkeys([TABLES, *errors], 0.0))

    def _costs(self) -> Costs:
        """Return what every unit costs: remembered, or measured now."""
        texts = (self._windows, self._probe)
        path = costs_path(self._facts, self._menu, texts, self._progress.on_progress)
        costs = recall(path)
        if is_complete(costs, self._units):
            return costs
        known = sum(unit.name in costs.divergences for unit in self._units)
        self._progress.begin_table(known * self._facts.architecture.num_layers // len(self._units))

        def keep() -> None:
            remember(path, costs)
            self._progress.layer()

        measure_costs(self._facts, *texts, self._menu, costs, keep)
        return costs

    def _cut(self, calibration: Calibration, width: int) -> Tensor:
        context = min(width, self._facts.architecture.max_position_embeddings)
        return calibration_windows(calibration, self._tokenizer, context)

    def _probe_calibration(self) -> Calibration:
        """Return another draw from the same text, whose windows units are probed with."""
        return Calibration(
            text=self._calibration.text,
            tokens=min(self._calibration.tokens, TABLE_TOKENS),
            seed=self._calibration.seed + 1,
        )

    def _found(self, best: Trial) -> Found:
        self._progress.end()
        return Found(
            best=best,
            trials=tuple(self.trials),
            expected=tuple((point.num_bytes, point.cost) for point in self.points),
            units=self._table,
        )
