"""The comparison with vLLM: a fake reader for its figures, a fake server for its process."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from compression.errors import ReaderError
from compression.events import Progress, ignore
from compression.fidelity_support import Told
from compression.recipe import FULL
from gateway.engine.compare import main
from gateway.engine.comparison import compare
from gateway.engine.vllm_runner import serve_reader
from tests.engine.test_compare import SLICES, BigramRunner, ByteTokenizer, Workshop, workshop

FAKE_VLLM = Path(__file__).with_name("fake_vllm.py")


class FakeReader:
    """A runner that tells of its likeliest tokens, as vLLM does."""

    version = "9.9"
    kernels: dict[str, str] = {"int8-rows": "FakeKernel"}  # noqa: RUF012
    numerics: dict[str, str] = {"int8-rows": "W8A8"}  # noqa: RUF012

    def __init__(self, runner: BigramRunner, top: int) -> None:
        self.runner = runner
        self.top = top
        self.texts: list[tuple[int, ...]] = []

    def read(self, token_ids: Sequence[int]) -> Told:
        """Return the likeliest tokens of each position, and the true one."""
        self.texts.append(tuple(token_ids))
        ids = list(token_ids)
        rows = torch.log_softmax(self.runner.logits(self.runner.hidden(ids))[:-1].double(), -1)
        told = []
        for row, following in zip(rows, ids[1:], strict=True):
            likely = [*row.topk(self.top).indices.tolist(), following]
            told.append({token: float(row[token]) for token in likely})
        return Told(told, rows.argmax(dim=-1).tolist())


class Serving:
    """Starts fake readers by the names of directories; ``lengths`` are the texts they were for."""

    def __init__(self, shop: Workshop, *, top: int = 20) -> None:
        self.shop = shop
        self.top = top
        self.started: list[str] = []
        self.lengths: list[int] = []
        self.running = 0

    @contextmanager
    def __call__(self, directory: Path, max_tokens: int) -> Iterator[FakeReader]:
        self.started.append(directory.name)
        self.lengths.append(max_tokens)
        assert self.running == 0
        self.running += 1
        yield FakeReader(self.shop.make[directory.name](), self.top)
        self.running -= 1


def run(
    shop: Workshop, serving: Serving, recipes: Sequence[str], seen: list[Progress] | None = None
) -> dict[str, Any]:
    """Compare on the fakes, with vLLM."""
    return compare(
        "toy",
        recipes,
        SLICES,
        prepare=shop.prepare,
        load_runner=shop.load,
        load_tokenizer=lambda directory: ByteTokenizer(),
        on_progress=ignore if seen is None else seen.append,
        memory_bytes=1 << 30,
        serve=serving,
    )


def test_each_recipe_is_run_by_vllm_alone() -> None:
    """One vLLM at a time, on the recipe's directory, for texts of the windows' length."""
    shop = workshop()
    serving = Serving(shop)
    seen: list[Progress] = []
    report = run(shop, serving, ["int8", "int4"], seen)
    assert serving.started == ["int8", "int4"]
    # The fake model's context is 64 tokens, of which vLLM needs one for the token it writes.
    assert serving.lengths == [63, 63]
    assert report["window_tokens"] == 63
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert seen[-1].done == seen[-1].total
    assert any(each.detail == "int8 on vLLM on upper" for each in seen)


def test_both_engines_stand_on_the_same_support() -> None:
    """Where vLLM computes what the embedded engine does, the two figures are equal."""
    shop = workshop()
    (recipe,) = run(shop, Serving(shop), ["int4"])["recipes"]
    on_vllm = recipe["vllm"]
    assert set(on_vllm) == {
        "version", "estimator", "top", "kernels", "numerics", "slices", "all", "worst_slice",
        "embedded",
    }  # fmt: skip
    assert (on_vllm["version"], on_vllm["estimator"], on_vllm["top"]) == ("9.9", "topk", 20)
    assert on_vllm["kernels"] == {"int8-rows": "FakeKernel"}
    assert on_vllm["numerics"] == {"int8-rows": "W8A8"}
    assert set(on_vllm["embedded"]) == {"slices", "all", "worst_slice"}
    for name, part in on_vllm["slices"].items():
        ours, whole = on_vllm["embedded"]["slices"][name], recipe["slices"][name]
        assert part["kld_mean"] == pytest.approx(ours["kld_mean"], rel=1e-6, abs=1e-9)
        assert part["top1"] == ours["top1"] == whole["top1"]
        assert part["tokens"] == whole["tokens"]
        assert part["ppl_ratio"] == pytest.approx(whole["ppl_ratio"], rel=1e-6)
        assert ours["kld_mean"] <= whole["kld_mean"] + 1e-9
    assert on_vllm["worst_slice"] == "upper"
    found, exact = on_vllm["all"]["kld_mean"], recipe["all"]["kld_mean"]
    assert 0.3 * exact < found < exact


def test_what_vllm_alone_does_worse_shows_there_alone() -> None:
    """Damage in vLLM's numbers changes vLLM's figures, not the embedded engine's."""
    shop = workshop()
    serving = Serving(shop)
    (sound,) = run(shop, serving, ["int8"])["recipes"]
    calls = iter(range(9))

    def loaded() -> BigramRunner:
        runner = BigramRunner(1000).damage(slice(0, 256), 0.05)
        # The embedded engine loads it first.
        return runner if next(calls) == 0 else runner.damage(slice(0, 256), 0.5)

    shop.make["int8"] = loaded
    (worse,) = run(shop, serving, ["int8"])["recipes"]
    assert worse["slices"] == sound["slices"]
    assert worse["vllm"]["all"]["kld_mean"] > 20 * sound["vllm"]["all"]["kld_mean"]
    assert worse["vllm"]["embedded"]["all"]["kld_mean"] < 0.01


def test_the_full_model_shows_what_the_engine_alone_changes() -> None:
    """Full on vLLM against full: the embedded engine beside it is at nothing."""
    shop = workshop()
    (recipe,) = run(shop, Serving(shop), [FULL])["recipes"]
    assert recipe["vllm"]["embedded"]["all"]["kld_max"] == 0
    assert recipe["vllm"]["all"]["kld_max"] < 1e-6


def test_a_quantized_cache_is_refused_before_any_work() -> None:
    """vLLM would read the text with a plain one, and the figure would be another recipe's."""
    shop = workshop()
    with pytest.raises(ReaderError, match="recipe 'w8-kv8' quantizes the KV cache"):
        run(shop, Serving(shop), ["int8", "w8-kv8"])
    assert shop.prepared == []


def test_without_vllm_nothing_is_said_of_it() -> None:
    """A plain comparison has no such key."""
    shop = workshop()
    report = compare(
        "toy",
        ["int8"],
        SLICES,
        prepare=shop.prepare,
        load_runner=shop.load,
        load_tokenizer=lambda directory: ByteTokenizer(),
        on_progress=ignore,
    )
    assert "vllm" not in report["recipes"][0]


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory that a vLLM may be started on; what a fake one says is kept apart."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))
    directory = tmp_path / "artifact"
    directory.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "head_dim": 64}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def script(path: Path, body: str) -> Path:
    """Return an executable that stands for an interpreter."""
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def fake_vllm(path: Path, *options: str) -> Path:
    """Return an interpreter whose vLLM is the fake one."""
    return script(path / "python", f'exec {sys.executable} {FAKE_VLLM} {" ".join(options)} "$@"')


def started(artifact: Path, python: Path, top: int = 3) -> Any:
    """Return the context of a vLLM started with this interpreter."""
    return serve_reader(artifact, 16, python=python, top=top, threads=2)


def test_a_process_is_read_and_ended(artifact: Path, tmp_path: Path) -> None:
    """A server that speaks as vLLM is started, read, asked for its kernels, and gone after.

    It reads one text at a time, in small steps, with room for the one token that must be written.
    """
    before = set(psutil.Process().children(recursive=True))
    with started(artifact, fake_vllm(tmp_path)) as reader:
        (child,) = set(psutil.Process().children(recursive=True)) - before
        words = child.cmdline()
        assert f"--model={artifact}" in words
        for word in ("--max-model-len=17", "--max-num-seqs=1", "--max-num-batched-tokens=256"):
            assert word in words
        assert "--max-logprobs=256" in words
        told = reader.read([5, 6, 7])
        assert list(told.top) == [6, 7]
        assert [dict(row) for row in told.logprobs] == [{6: -0.5, 0: -3.0}, {7: -0.5, 0: -3.0}]
        assert reader.kernels == {"int8-rows": "CPUInt8ScaledMMLinearKernel"}
        assert (reader.version, reader.top) == ("9.9", 3)
    assert set(psutil.Process().children(recursive=True)) <= before


def test_it_is_ended_when_the_work_is_interrupted(artifact: Path, tmp_path: Path) -> None:
    """An exit in the midst of the work leaves no process behind."""
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(SystemExit), started(artifact, fake_vllm(tmp_path)):
        sys.exit(143)
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_failure_while_reading_tells_the_cause(artifact: Path, tmp_path: Path) -> None:
    """vLLM's own error stands behind ours; warnings that quote one are not it."""
    with (
        started(artifact, fake_vllm(tmp_path, "--fail")) as reader,
        pytest.raises(ReaderError, match=r"^vLLM: .*status 500: AttributeError: no 'gemm'$"),
    ):
        reader.read([5, 6, 7])


def test_an_end_at_the_start_tells_the_cause(artifact: Path, tmp_path: Path) -> None:
    """The error of the innermost process, not what another makes of it."""
    dying = (
        f'case "$2" in narrowgate*) exec {sys.executable} {FAKE_VLLM} "$@";; esac\n'
        "echo '(Worker pid=5) ValueError: head size 16' >&2; echo 'RuntimeError: later' >&2; exit 3"
    )
    with (
        pytest.raises(ReaderError, match=r"ended with code 3 .*: ValueError: head size 16$"),
        started(artifact, script(tmp_path / "python", dying)),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vllm-python", "/x"], "--vllm-python needs --engine vllm"),
        (
            ["--engine", "vllm", "--vllm-python", "/no/such"],
            "'vllm_python' is '/no/such', which is no program",
        ),
    ],
)
def test_options_are_checked_before_any_work(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    """A wrong interpreter is refused before the model is looked for."""
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    assert main(["--model", "./nowhere", "--recipe", "int8", *options]) == 2
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["kind"], message in last["message"]) == ("ReaderError", True)
