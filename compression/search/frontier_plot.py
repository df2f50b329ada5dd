"""The picture of a search: what the table expects, and what was measured."""

from pathlib import Path

from matplotlib.figure import Figure

from compression.report.files import write_aside
from compression.search.budget import mean_kld, worst_kld
from compression.search.search import Found


def plot(found: Found, path: Path) -> None:
    """Draw the frontier and the trials as a PNG.

    Raises:
        ReportError: the file cannot be written.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    beside = found.trials[0].bytes_in_memory - found.trials[0].matrix_bytes
    sizes = [(size + beside) / 1e6 for size, _ in found.expected]
    axes.plot(sizes, [cost for _, cost in found.expected], color="0.6", label="sum of unit costs")
    measured = sorted(found.trials, key=lambda trial: trial.bytes_in_memory)
    memory = [trial.bytes_in_memory / 1e6 for trial in measured]
    axes.plot(memory, [mean_kld(trial.slices) for trial in measured], "o-", label="measured, mean")
    worst = [worst_kld(trial.slices) for trial in measured]
    axes.plot(memory, worst, "^--", label="measured, worst slice")
    best = found.best
    axes.plot([best.bytes_in_memory / 1e6], [mean_kld(best.slices)], "s", ms=11, mfc="none", c="k")
    axes.set_yscale("log")
    axes.set_xlabel("weights in memory, MB")
    axes.set_ylabel("KL divergence, nats a token")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    write_aside(path, lambda aside: figure.savefig(aside, format="png", dpi=150))
