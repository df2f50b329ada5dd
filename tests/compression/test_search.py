"""The search: allocation, budgets, and the whole of it on a tiny model."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import yaml

from compression.architecture import parse_architecture, read_config
from compression.errors import SearchError
from compression.events import Progress, ignore
from compression.facts import read_facts
from compression.fidelity_record import SliceFidelity
from compression.presets import load_recipe
from compression.recipe import Budget, Calibration
from compression.schemes import Unquantized
from compression.search.__main__ import write_recipe
from compression.search.allocation import Allocation, Option, frontier, most_faithful
from compression.search.budget import parse_budget, violations
from compression.search.frontier_plot import plot
from compression.search.menu import Engine, menu
from compression.search.search import MAX_TRIALS, Trial, within_budget
from compression.search.sensitivity import Sensitivity
from compression.search.session import Session
from compression.search.units import units
from tests.checkpoints import make_tiny_checkpoint

ENGINES: tuple[Engine, ...] = ("embedded", "vllm")
TABLE = {
    "a": [Option("s", 4, 8.0), Option("m", 5, 7.9), Option("l", 8, 1.0)],
    "b": [Option("s", 4, 0.5), Option("l", 8, 0.1)],
    "c": [Option("l", 8, 0.1), Option("s", 4, 3.0), Option("bad", 9, 4.0)],
}


def fidelity(kld: float, top1: float = 0.9, name: str = "english") -> SliceFidelity:
    """Return the record of one slice."""
    return SliceFidelity(
        name=name,
        kld_mean=kld,
        kld_mean_ci95=(kld, kld),
        kld_p99=kld,
        top1=top1,
        top1_ci95=(top1, top1),
        tokens=100,
    )


def test_frontier_is_the_best_for_each_of_its_sizes() -> None:
    """No other choice of the same size or a smaller one costs less."""
    every = [
        (sum(option.num_bytes for option in choice), sum(option.cost for option in choice))
        for choice in itertools.product(*TABLE.values())
    ]
    points = frontier(TABLE)
    assert [point.num_bytes for point in points] == [12, 16, 20, 24]
    for point in points:
        least = min(cost for size, cost in every if size <= point.num_bytes)
        assert point.cost == pytest.approx(least)
    assert points[1].choices["a"].scheme == "l"


def test_option_that_no_price_makes_best_is_never_chosen() -> None:
    """A point above the hull, and one that is larger and worse, are left out."""
    chosen = {option.scheme for point in frontier(TABLE) for option in point.choices.values()}
    assert chosen == {"s", "l"}
    with pytest.raises(ValueError, match="without options"):
        frontier({"a": []})


def test_what_a_size_has_left_is_used() -> None:
    """Where the next step does not fit, a smaller one does; a unit never skips a step."""
    table = {
        "a": [Option("s", 4, 8.0), Option("l", 10, 1.0), Option("xl", 11, 0.9)],
        "b": [Option("s", 4, 0.5), Option("l", 6, 0.1)],
    }
    found = {size: most_faithful(table, size) for size in (3, 8, 13, 14, 15, 16, 17, 99)}
    sizes = {size: each.num_bytes for size, each in found.items()}
    assert sizes == {3: 8, 8: 8, 13: 10, 14: 14, 15: 15, 16: 16, 17: 17, 99: 17}
    assert found[13].choices["b"].scheme == "l"
    for point in frontier(table):
        assert most_faithful(table, point.num_bytes) == point


def trial(cost: float, size: int) -> Trial:
    """Return a measured artifact."""
    recipe = load_recipe("int8")
    return Trial(recipe, size, size, cost, size, 8.0, (fidelity(cost),))


@pytest.mark.parametrize("strain", [0.5, 1.0, 2.7])
@pytest.mark.parametrize("allowed", [3.3, 4.6, 12.0, 40.0])
def test_bisection_finds_the_smallest_that_holds(strain: float, allowed: float) -> None:
    """However far the table is off, as long as it orders the points rightly."""
    points = frontier(TABLE)
    best = within_budget(
        points,
        Budget(kld=allowed),
        lambda point: trial(point.cost * strain, point.num_bytes),
    )
    expected = min(point.num_bytes for point in points if point.cost * strain <= allowed)
    assert best.bytes_in_memory == expected


@pytest.mark.parametrize("allowed", [0.0014, 0.002, 0.01])
def test_what_no_unit_costs_is_found_out(allowed: float) -> None:
    """A floor that the table does not know neither hides what holds nor wastes every trial."""
    table = {str(unit): [Option("s", 4, 0.05), Option("l", 8, 0.0)] for unit in range(200)}
    points = frontier(table)
    tried: list[int] = []

    def attempt(point: Allocation) -> Trial:
        tried.append(point.num_bytes)
        return trial(0.0012 + 0.5 * point.cost, point.num_bytes)

    best = within_budget(points, Budget(kld=allowed), attempt)
    assert not violations(Budget(kld=allowed), best.slices)
    least = min(point.num_bytes for point in points if 0.0012 + 0.5 * point.cost <= allowed)
    assert best.bytes_in_memory <= 1.01 * least
    assert len(tried) <= MAX_TRIALS


@pytest.mark.parametrize("share", [0.3, 0.45, 0.7])
def test_a_search_ends_where_nothing_is_left_to_save(share: float) -> None:
    """On a smooth frontier a few artifacts are enough, whatever the share of the sum of costs."""
    table = {
        str(unit): [Option("s", 4000 + unit, 0.01), Option("l", 8000, 0.0002 * unit / 400)]
        for unit in range(400)
    }
    points = frontier(table)
    tried: list[int] = []

    def attempt(point: Allocation) -> Trial:
        tried.append(point.num_bytes)
        return trial(share * point.cost**1.2, point.num_bytes)

    best = within_budget(points, Budget(kld=0.05), attempt)
    assert not violations(Budget(kld=0.05), best.slices)
    least = min(point.num_bytes for point in points if share * point.cost**1.2 <= 0.05)
    assert best.bytes_in_memory <= 1.006 * least
    assert len(tried) <= 4


def test_agreement_of_every_token() -> None:
    """A limit that allows no error at all is bisected like any other."""
    points = frontier(TABLE)

    def attempt(point: Allocation) -> Trial:
        slices = (fidelity(point.cost, 1.0 if point.cost < 2 else 0.9),)
        return replace(trial(point.cost, point.num_bytes), slices=slices)

    best = within_budget(points, Budget(top1=1), attempt)
    assert best.bytes_in_memory == min(each.num_bytes for each in points if each.cost < 2)


def test_nothing_holds_and_the_nearest_is_named() -> None:
    """The refusal says how near one can come."""
    with pytest.raises(SearchError, match=r"nearest, 0\.0 MB, has kld 1\.2000 > 0\.1: allow more"):
        within_budget(
            frontier(TABLE), Budget(kld=0.1), lambda point: trial(point.cost, point.num_bytes)
        )


def test_budget_as_users_write_it() -> None:
    """Terms in any order and spacing."""
    budget = parse_budget("worst_slice_kld <= 0.1,kld<=5e-2, top1>=0.9")
    assert budget == Budget(kld=0.05, worst_slice_kld=0.1, top1=0.9)
    slices = [fidelity(0.08, 0.95, "code"), fidelity(0.12, 0.7, "json")]
    assert violations(budget, slices) == [
        "kld 0.1000 > 0.05",
        "worst_slice_kld 0.1200 (json) > 0.1",
        "top1 0.8250 < 0.9",
    ]
    assert violations(Budget(kld=0.11), slices) == []
    assert violations(Budget(kld=1, top1=0.1), [fidelity(float("nan"), float("nan"))]) == [
        "kld nan > 1",
        "top1 nan < 0.1",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kld>=0.05", r"--budget 'kld>=0\.05' is not understood: write terms such as kld<=0\.05"),
        ("ppl<=1", r"--budget 'ppl<=1' is not understood"),
        ("", r"--budget '' is not understood"),
        ("kld<=0.05,", r"--budget '' is not understood"),
        ("kld<0.05", r"--budget 'kld<0\.05' is not understood"),
        ("KLD<=0.05", r"--budget 'KLD<=0\.05' is not understood"),
        ("kld<=nan", r"--budget 'kld<=nan' is not understood"),
        ("kld<=0,05", r"--budget '05' is not understood"),
        ("kld<=0.05; top1>=0.9", r"--budget 'kld<=0\.05; top1>=0\.9' is not understood"),
        ("kld<=0.05 worst_slice_kld<=0.1", r"is not understood"),
        ("kld<=0.0.5", r"--budget 'kld<=0\.0\.5': '0\.0\.5' is no number"),
        ("top1>=0", r"--budget 'top1>=0' is impossible: Input should be greater than 0"),
        ("kld<=1e", r"--budget 'kld<=1e': '1e' is no number"),
        ("kld<=-1", r"--budget 'kld<=-1' is impossible: Input should be greater than 0"),
        ("kld<=0.1,kld<=1", r"has two limits for kld: give one"),
        ("kld<=1e999", r"is impossible: Input should be a finite number"),
        ("top1>=1.5", r"is impossible: Input should be less than or equal to 1"),
    ],
)
def test_budget_that_makes_no_sense(text: str, expected: str) -> None:
    """One line with the term and the remedy."""
    with pytest.raises(SearchError, match=expected) as caught:
        parse_budget(text)
    assert "\n" not in str(caught.value)


def test_units_are_what_engines_fuse(tmp_path: Path) -> None:
    """q, k, v together and gate with up; every linear module once."""
    directory = make_tiny_checkpoint(tmp_path / "model")
    architecture = parse_architecture(read_config(directory), where="test")
    found = list(units(architecture))
    modules = [module for unit in found for module in unit.modules]
    assert len(found) == 4 * architecture.num_layers
    assert modules == [
        module
        for layer in range(architecture.num_layers)
        for module, _ in architecture.linears(layer)
    ]


def test_search_on_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chosen recipe is between the extremes, holds its budget, and is read back from YAML."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))
    directory = make_tiny_checkpoint(
        tmp_path / "model", hidden_size=128, intermediate_size=256, head_dim=32
    )
    seen: list[Progress] = []
    session = Session(
        str(directory),
        None,
        name="mine",
        calibration=Calibration(tokens=1024),
        on_progress=seen.append,
    )
    small, large = session.points[0], session.points[-1]
    assert large.cost == 0
    assert (small.choices["embeddings"].scheme, large.choices["embeddings"].scheme) == (
        "int8-rows",
        "none",
    )
    smallest = session.attempt(small)
    kld = sum(each.kld_mean for each in smallest.slices) / len(smallest.slices)
    found = session.find(Budget(kld=kld / 3))
    assert not violations(Budget(kld=kld / 3), found.best.slices)
    assert small.num_bytes < found.best.matrix_bytes < large.num_bytes
    write_recipe(found.best.recipe, tmp_path / "mine.yaml")
    assert load_recipe(str(tmp_path / "mine.yaml")) == found.best.recipe
    fields = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert fields["budget"] == {"kld": kld / 3}
    plot(found, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    told = [progress for progress in seen if progress.stage == "search"]
    assert {each.stage for each in seen} <= {"search", "hash"}
    assert [each.done for each in told[:-1]] == sorted(each.done for each in told[:-1])
    assert told[0].detail == "costs of layer 0 of 2"
    assert any(each.detail.startswith("artifact 2: measuring, ") for each in told)
    assert (told[-1].done, told[-1].total) == (100, 100)
    full = session.attempt(large)
    assert full.recipe.embeddings == Unquantized()
    assert all(each.kld_mean < 1e-9 for each in full.slices)
    fitting = session.fit(found.best.bytes_in_memory + 1)
    assert fitting.best.bytes_in_memory <= found.best.bytes_in_memory + 1
    with pytest.raises(SearchError, match=r"--max-bytes 1000 is less than the smallest artifact"):
        session.fit(1000)
    again = another_session(directory, Calibration(tokens=1024), monkeypatch)
    assert again.points == session.points
    digests = [trial.recipe.digest for trial in fitting.trials]
    assert digests[0] == smallest.recipe.digest
    assert digests[-2:] == [full.recipe.digest, fitting.best.recipe.digest]
    with pytest.raises(AssertionError, match="measured again"):
        _ = another_session(directory, Calibration(tokens=1024, seed=1), monkeypatch).points
    (remembered,) = (tmp_path / "home" / "search").iterdir()
    remembered.write_text(remembered.read_text()[:-9])
    with pytest.raises(AssertionError, match="measured again"):
        _ = another_session(directory, Calibration(tokens=1024), monkeypatch).points


def another_session(
    directory: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> Session:
    """Return a session that must find its costs in memory."""

    def fail(*_: object) -> NoReturn:
        raise AssertionError("measured again")

    monkeypatch.setattr("compression.search.session.measure_costs", fail)
    return Session(str(directory), None, name="x", calibration=calibration, on_progress=ignore)


@torch.no_grad()
def test_sensitivity_does_not_depend_on_what_was_asked_before(tmp_path: Path) -> None:
    """A unit is put back as it was: the same question has the same answer, and none costs none."""
    facts = read_facts(make_tiny_checkpoint(tmp_path / "model"))
    module = "model.layers.{}.mlp.down_proj"
    zeros = torch.zeros(facts.tensors[f"{module.format(0)}.weight"].shape)
    probe = torch.randint(3, 300, (2, 16), generator=torch.Generator().manual_seed(1))
    with Sensitivity(facts, probe) as sensitivity:
        asked = [
            sensitivity.divergence(layer, {module.format(layer): zeros}) for layer in (0, 1, 0)
        ]
        assert sensitivity.divergence(1, {}) == 0
        assert 0 < sensitivity.tables_divergence() < 0.1
    assert asked[0] == asked[2] > 1e-3
    assert asked[1] > 1e-3


def test_vllm_is_given_nothing_that_it_cannot_serve(tmp_path: Path) -> None:
    """Five bits are for the embedded engine; the scheme that is probed is the same."""
    facts = read_facts(make_tiny_checkpoint(tmp_path / "model"))
    embedded, vllm = (list(menu(facts, engine)) for engine in ENGINES)
    assert [label for label in embedded if label not in vllm] == [
        label for label in embedded if label.startswith("int5-")
    ]
    assert "int5-g32-asym" in embedded
    assert embedded[0] == vllm[0] == "int4-g32-asym"


def test_columns_that_no_group_divides(tmp_path: Path) -> None:
    """There is nothing to choose from, and the way out is told."""
    directory = make_tiny_checkpoint(tmp_path / "model", intermediate_size=72)
    with pytest.raises(
        SearchError, match=r"divides the columns of every module \(72\): use the recipe int8"
    ):
        Session(str(directory), None, name="x", calibration=Calibration(), on_progress=ignore)
    assert read_facts(directory).architecture.intermediate_size == 72
