"""The comparison: composition on tiny fakes, the real runner on a tiny checkpoint, the process."""

import html
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from compression.errors import EvaluationError, FidelityError, RecipeError
from compression.events import OnProgress, Progress, ignore
from compression.fidelity_statistics import STATISTICS
from compression.manifest import Manifest, SourceRecord
from compression.prepare import Prepared
from compression.presets import load_recipe
from compression.recipe import FULL
from gateway.comparisons.command import CompareCommand
from gateway.engine import side_by_side
from gateway.engine.compare import _parser, main
from gateway.engine.comparison import compare, recipe_names
from gateway.engine.decode_speed import decode_ms, decode_shape

SLICES = {
    "lower": "the quick brown fox jumps over the lazy dog " * 4,
    "upper": "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG " * 3,
}


class ByteTokenizer:
    """One token a byte."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(text.encode())


class BigramRunner:
    """A model whose logits depend on the last token only; ``damage`` changes some rows."""

    max_model_len = 64

    def __init__(self, weights_bytes: int = 2000) -> None:
        self.table = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
        self.weights_bytes = weights_bytes
        self.forwarded: list[int] = []
        self.decode_drift = 0.0

    def damage(self, rows: slice, size: float) -> "BigramRunner":
        noise = torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
        self.table[rows] += size * noise[rows]
        return self

    def hidden(self, ids: list[int], /) -> torch.Tensor:
        return torch.tensor(ids)

    def logits(self, hidden: torch.Tensor, /) -> torch.Tensor:
        return self.table[hidden]

    def new_cache(self, max_tokens: int, /) -> list[int]:
        return []

    def forward(self, batch: list[tuple[list[int], list[int], int]], /) -> torch.Tensor:
        for cache, ids, _ in batch:
            cache.extend(ids)
            self.forwarded.extend(ids)
        noise = torch.randn(256, generator=torch.Generator().manual_seed(2))
        rows = [self.table[cache[-1]] for cache, _, wanted in batch if wanted]
        logits = torch.stack(rows) if rows else torch.empty(0, 256)
        return logits + self.decode_drift * noise

    def info(self) -> dict[str, Any]:
        return {
            "weights_bytes": self.weights_bytes,
            "weight_bits": 16 * self.weights_bytes / 2000,
            "kernels": {"none": "bf16"},
        }


class Workshop:
    """Prepares directories that are only names, and loads runners by those names."""

    def __init__(self, make: dict[str, Callable[[], BigramRunner]]) -> None:
        self.make = make
        self.prepared: list[str] = []
        self.loaded: list[str] = []
        self.alive: weakref.WeakSet[BigramRunner] = weakref.WeakSet()
        self.most_alive = 0

    def prepare(
        self, model: str, recipe: str, revision: str | None, on_progress: OnProgress
    ) -> Prepared:
        self.prepared.append(recipe)
        return Prepared(Path("/nowhere") / recipe, manifest_of(recipe), cached=True)

    def load(self, directory: Path) -> BigramRunner:
        runner = self.make[directory.name]()
        self.loaded.append(directory.name)
        self.alive.add(runner)
        self.most_alive = max(self.most_alive, len(self.alive))
        return runner


def manifest_of(recipe: str) -> Manifest | None:
    """Return a manifest as the build writes it, or None for the full model."""
    if recipe == FULL:
        return None
    asked = load_recipe(recipe)
    return Manifest(
        recipe=asked,
        recipe_digest=asked.digest,
        source=SourceRecord(model="toy", architecture="Toy", digest="0" * 64),
        tensors=(),
        bytes_before=2000,
        bytes_stored=1000,
        bytes_in_memory=1000,
        bits_per_weight=8.0,
        seconds=0.0,
        peak_memory_bytes=0,
        versions={},
        files={},
    )


def run(
    workshop: Workshop,
    recipes: Sequence[str],
    *,
    memory_bytes: int = 1 << 30,
    on_progress: OnProgress = ignore,
    max_tokens: int | None = None,
    slices: dict[str, str] = SLICES,
) -> dict[str, Any]:
    """Compare on the fakes."""
    return compare(
        "toy",
        recipes,
        slices,
        prepare=workshop.prepare,
        load_runner=workshop.load,
        load_tokenizer=lambda directory: ByteTokenizer(),
        on_progress=on_progress,
        memory_bytes=memory_bytes,
        max_tokens=max_tokens,
    )


def workshop() -> Workshop:
    """Return a full model, a slightly damaged int8 and an int4 that is worst on upper case."""
    return Workshop(
        {
            FULL: BigramRunner,
            "int8": lambda: BigramRunner(1000).damage(slice(0, 256), 0.05),
            "int4": lambda: BigramRunner(600).damage(slice(65, 91), 1.5),
        }
    )


def test_report_keys_are_frozen() -> None:
    """Scripts may rely on these keys, and the report is plain JSON."""
    report = run(workshop(), ["int8"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report) == {
        "model", "text", "created", "window_tokens", "decode", "confidence", "recipes", "machine",
        "seconds",
    }  # fmt: skip
    (recipe,) = report["recipes"]
    assert set(recipe) == {
        "recipe", "recipe_digest", "bits_per_weight", "bytes", "bytes_full", "ms_per_token",
        "ms_per_token_full", "decode_path_kld", "decode_path_kld_full", "slices", "all",
        "worst_slice",
    }  # fmt: skip
    keys = {
        "kld_mean", "kld_mean_se", "kld_p99", "kld_max", "top1", "top1_se", "ppl_ratio",
        "ppl_ratio_se", "ppl_full", "tokens", "kld_mean_ci95", "top1_ci95", "ppl_ratio_ci95",
    }  # fmt: skip
    for statistic in STATISTICS:
        keys |= {statistic.key, f"{statistic.key}_se"} if statistic.has_error else {statistic.key}
    assert set(recipe["all"]) == keys
    assert all(set(measured) == keys for measured in recipe["slices"].values())
    assert set(report["machine"]) == {
        "cpu", "cores", "threads", "memory_gb", "system", "torch", "versions", "kernels",
    }  # fmt: skip


def test_values_come_from_where_they_are_true() -> None:
    """Names and digests are the recipe's, sizes the live runner's, windows fit the model."""
    report = run(workshop(), ["int8", "int4"])
    assert (report["model"], report["text"], report["window_tokens"]) == ("toy", "built-in", 64)
    assert report["decode"] == {"context_tokens": 1, "steps": 63}
    int8, int4 = report["recipes"]
    assert (int8["recipe"], int8["recipe_digest"]) == ("int8", load_recipe("int8").digest)
    assert (int4["bytes"], int4["bytes_full"], int4["bits_per_weight"]) == (600, 2000, 4.8)
    assert int8["ms_per_token"] > 0
    assert int8["ms_per_token_full"] > 0
    tokens = {name: len(text) - math.ceil(len(text) / 64) for name, text in SLICES.items()}
    assert {name: part["tokens"] for name, part in int8["slices"].items()} == tokens
    assert int8["all"]["tokens"] == sum(tokens.values())
    assert set(report["machine"]["kernels"]) == {FULL, "int8", "int4"}


def test_full_against_itself_is_exactly_nothing() -> None:
    """The A/A run gives 0, 1 and 1 exactly."""
    shop = workshop()
    (recipe,) = run(shop, [FULL])["recipes"]
    assert (recipe["recipe"], recipe["recipe_digest"]) == (FULL, None)
    assert shop.loaded == [FULL]
    for measured in (recipe["all"], *recipe["slices"].values()):
        assert (measured["kld_mean"], measured["kld_max"]) == (0.0, 0.0)
        assert (measured["top1"], measured["ppl_ratio"], measured["ppl_ratio_se"]) == (1.0, 1.0, 0)


def test_planted_damage_is_the_worst_slice() -> None:
    """Damage to upper-case letters shows on that slice; the other one hardly notices."""
    int8, int4 = run(workshop(), ["int8", "int4"])["recipes"]
    assert int4["worst_slice"] == "upper"
    assert int4["slices"]["lower"]["kld_mean"] == 0.0
    assert int4["slices"]["upper"]["kld_mean"] > 0.3
    assert int4["slices"]["upper"]["top1"] < 0.9
    assert 0 < int8["all"]["kld_mean"] < 0.01
    pooled = sum(part["kld_mean"] * part["tokens"] for part in int4["slices"].values())
    assert int4["all"]["kld_mean"] == pytest.approx(pooled / int4["all"]["tokens"])


def test_slices_come_worst_first() -> None:
    """Whatever the order of the texts, the worst slice is the first one of the report."""
    for recipe in run(workshop(), ["int8", "int4"])["recipes"]:
        means = [part["kld_mean"] for part in recipe["slices"].values()]
        assert means == sorted(means, reverse=True)
        assert next(iter(recipe["slices"])) == recipe["worst_slice"]


def test_blocks_of_positions_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits made of a few positions at a time give the statistics of whole windows."""
    whole = run(workshop(), ["int4"])["recipes"][0]["slices"]
    monkeypatch.setattr(side_by_side, "_BLOCK_ROWS", 10)
    assert run(workshop(), ["int4"])["recipes"][0]["slices"] == whole


def test_decoding_is_held_against_reading() -> None:
    """What only decoding changes shows as the divergence of a recipe from itself."""
    shop = workshop()
    (sound,) = run(shop, ["int8"])["recipes"]
    assert sound["decode_path_kld"] == {"mean": 0.0, "max": 0.0, "tokens": 96}
    assert sound["decode_path_kld_full"] == sound["decode_path_kld"]

    def drifting() -> BigramRunner:
        runner = BigramRunner(1000).damage(slice(0, 256), 0.05)
        runner.decode_drift = 0.3
        return runner

    shop.make["int8"] = drifting
    (drifted,) = run(shop, ["int8"])["recipes"]
    runner, text = drifting(), SLICES["lower"][:64].encode()
    one_pass = torch.log_softmax(runner.logits(runner.hidden(list(text[15:63]))).double(), -1)
    stepwise = torch.cat([runner.forward([([], [token], 1)]) for token in text[15:63]])
    divergence = (one_pass.exp() * (one_pass - torch.log_softmax(stepwise.double(), -1))).sum(-1)
    assert drifted["decode_path_kld"]["max"] >= float(divergence.max()) > 0.01
    lower = run(shop, ["int8"], slices={"lower": SLICES["lower"]})["recipes"][0]
    expected = {"mean": float(divergence.mean()), "max": float(divergence.max()), "tokens": 48}
    assert lower["decode_path_kld"] == pytest.approx(expected)
    assert drifted["decode_path_kld_full"] == sound["decode_path_kld"]
    assert drifted["slices"] == sound["slices"]


def test_a_text_too_short_to_decode_has_no_such_figure() -> None:
    """Windows of two tokens can be read but not decoded and scored."""
    pair = {"one": "ab", "two": "cd"}
    with pytest.raises(EvaluationError, match="too few"):
        run(workshop(), ["int8"], slices=pair)
    (recipe,) = run(workshop(), ["int8"], slices={"one": "abc"})["recipes"]
    assert recipe["decode_path_kld"]["tokens"] == 1


def test_scarce_memory_changes_no_number() -> None:
    """With little memory one recipe at a time stands beside the full model; figures are equal."""
    roomy, tight = workshop(), workshop()
    together = run(roomy, ["int8", "int4"], memory_bytes=2000)
    in_turns = run(tight, ["int8", "int4"], memory_bytes=1999)
    assert (roomy.most_alive, tight.most_alive) == (3, 2)
    for one, other in zip(together["recipes"], in_turns["recipes"], strict=True):
        assert one["slices"] == other["slices"]
        assert one["all"] == other["all"]


def test_recipes_are_prepared_before_any_is_loaded() -> None:
    """A recipe given twice is measured once, and the full model is loaded first."""
    shop = workshop()
    report = run(shop, ["int4", "int8", "int4"])
    assert [recipe["recipe"] for recipe in report["recipes"]] == ["int4", "int8"]
    assert shop.prepared == [FULL, "int4", "int8"]
    assert shop.loaded == [FULL, "int4", "int8"]


@pytest.mark.parametrize("memory_bytes", [1 << 30, 0])
def test_progress_ends_at_its_total(memory_bytes: int) -> None:
    """Progress never goes back and ends at the total that was announced first."""
    seen: list[Progress] = []
    run(workshop(), ["int8", "int4"], memory_bytes=memory_bytes, on_progress=seen.append)
    assert {progress.stage for progress in seen} == {"compare"}
    assert len({progress.total for progress in seen}) == 1
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[-1].done == seen[-1].total
    assert any("int4 on upper" in progress.detail for progress in seen)


def test_max_tokens_limits_each_slice() -> None:
    """A limit holds for every slice."""
    (recipe,) = run(workshop(), ["int8"], max_tokens=20)["recipes"]
    assert [part["tokens"] for part in recipe["slices"].values()] == [19, 19]


@pytest.mark.parametrize("broken", [FULL, "int4"])
def test_broken_logits_name_recipe_and_slice(broken: str) -> None:
    """A model that gives no number somewhere is refused with the place."""
    shop = workshop()
    sound = shop.make[broken]
    shop.make[broken] = lambda: sound().damage(slice(ord("Q"), ord("Q") + 1), math.nan)
    with pytest.raises(FidelityError, match=f"'{broken}' gives non-finite logits on slice 'upper'"):
        run(shop, ["int8", "int4"])


def test_unknown_recipe_is_refused_before_any_work(tmp_path: Path) -> None:
    """A misspelt recipe, or two of one name, cost no preparation."""
    shop = workshop()
    with pytest.raises(RecipeError, match="unknown recipe 'int6'"):
        run(shop, ["int4", "int6"])
    paths = [tmp_path / "mine.yaml", tmp_path / "other.yaml"]
    for path in paths:
        path.write_text("name: mine\nweights: {scheme: int8}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="both named 'mine': rename one"):
        run(shop, [str(path) for path in paths])
    assert shop.prepared == []


def test_recipe_files_go_by_their_names(tmp_path: Path) -> None:
    """A YAML recipe is prepared by its path and reported by its name."""
    path = tmp_path / "mine.yaml"
    path.write_text("weights: {scheme: int8}\n", encoding="utf-8")
    assert recipe_names(["int4", str(path), FULL]) == {
        "int4": "int4", "mine": str(path), FULL: FULL,
    }  # fmt: skip


def test_too_little_text_is_refused() -> None:
    """A limit that leaves nothing to predict names the slice."""
    with pytest.raises(EvaluationError, match="slice 'lower'"):
        run(workshop(), ["int8"], max_tokens=1)


def test_runners_take_turns_at_decoding() -> None:
    """Every runner decodes the same tokens after the same context, one at a time."""
    runners = [BigramRunner(), BigramRunner()]
    times = decode_ms(runners, list(range(50)), 10)
    assert len(times) == 2
    assert min(times) > 0
    assert [runner.forwarded for runner in runners] == [list(range(50))] * 2


@pytest.mark.parametrize(("length", "shape"), [(8192, (128, 64)), (150, (86, 64)), (2, (1, 1))])
def test_decoding_fits_the_model(length: int, shape: tuple[int, int]) -> None:
    """Context and steps shrink to what a model holds."""
    runner = BigramRunner()
    runner.max_model_len = length
    assert decode_shape(runner) == shape


@pytest.fixture
def _signals() -> Iterator[None]:
    """Put back the handlers that the process under test replaces."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def events(text: str) -> list[dict[str, Any]]:
    """Return the JSON lines of a standard output."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (["--recipe", "int6"], "RecipeError", "unknown recipe 'int6'"),
        (["--recipe", "int4", "--text", "/no/such"], "EvaluationError", "is no directory"),
        (["--recipe", "int4", "--json", "/no/such/x"], "ReportError", "does not exist"),
        (["--recipe", "int4", "--html", "/no/such/x"], "ReportError", "--html '/no/such/x'"),
        (["--recipe", "int4", "--png", "/"], "ReportError", "is a directory"),
        (["--recipe", "int4"], "ModelNotFound", "./nowhere"),
    ],
)
def test_refusals_are_one_event(
    capsys: pytest.CaptureFixture[str], options: list[str], kind: str, message: str
) -> None:
    """Bad input ends with an error event and exit code 2."""
    assert main(["--model", "./nowhere", *options]) == 2
    last = events(capsys.readouterr().out)[-1]
    assert (last["event"], last["kind"]) == ("error", kind)
    assert message in last["message"]


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_counts_must_be_positive(capsys: pytest.CaptureFixture[str], value: str) -> None:
    """A limit that is no positive number is refused by the command line."""
    with pytest.raises(SystemExit) as caught:
        main(["--model", "m", "--recipe", "int4", "--max-tokens", value])
    assert caught.value.code == 2
    assert f"--max-tokens: invalid positive number value: '{value}'" in capsys.readouterr().err


@pytest.mark.usefixtures("_signals")
def test_a_real_checkpoint_from_end_to_end(
    tiny_llama_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real build and runner: A/A is exactly 0, int8 is closer than int4, files are written."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, text in SLICES.items():
        (texts / f"{name}.txt").write_text(text, encoding="utf-8")
    options = ["--model", str(tiny_llama_dir), "--text", str(texts), "--max-tokens", "100"]
    for recipe in (FULL, "int8", "int4"):
        options += ["--recipe", recipe]
    files = {f"--{kind}": tmp_path / f"report.{kind}" for kind in ("json", "html", "png")}
    for option, path in files.items():
        options += [option, str(path)]
    assert main(options) == 0
    last = events(capsys.readouterr().out)[-1]
    assert last["event"] == "compared"
    assert last["report"] == json.loads(files["--json"].read_text(encoding="utf-8"))
    assert files["--png"].read_bytes().startswith(b"\x89PNG")
    command = last["report"]["command"]
    assert command == shlex.join(["narrowgate", "compare", *options])
    assert command in html.unescape(files["--html"].read_text(encoding="utf-8"))
    for recipe in last["report"]["recipes"]:
        # Random weights decode nearly as they read; another kernel still rounds otherwise.
        assert 0 <= recipe["decode_path_kld"]["mean"] < 0.01
        assert recipe["decode_path_kld"]["tokens"] == 96
    full, int8, int4 = last["report"]["recipes"]
    assert (full["all"]["kld_max"], full["all"]["top1"]) == (0.0, 1.0)
    assert 0 < int8["all"]["kld_mean"] < int4["all"]["kld_mean"]
    assert int4["bytes"] < int8["bytes"] < full["bytes"] == full["bytes_full"]
    assert last["report"]["text"] == str(texts)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interruption_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """A signal during the work ends the process with its code; no file is written."""
    code = (
        "import sys, time\n"
        "from gateway.engine import compare\n"
        "def work(options):\n"
        "    print('working', flush=True)\n"
        "    time.sleep(60)\n"
        "compare._run = work\n"
        "sys.exit(compare.main(sys.argv[1:]))\n"
    )
    options = ["--model", "m", "--recipe", "int4", "--json", str(tmp_path / "r.json")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "working\n"
        os.kill(child.pid, number)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert errors == ""
    assert list(tmp_path.iterdir()) == []


def test_the_process_knows_every_field_of_the_command() -> None:
    """What the command line and the service say comes over whole."""
    command = CompareCommand(
        model="m",
        recipe=("a", "b"),
        revision="r",
        text=Path("t"),
        json=Path("j"),
        html=Path("h"),
        png=Path("p"),
        max_tokens=1,
        threads=2,
        memory=3,
        engine="vllm",
        vllm_python=Path("v"),
    )
    found = vars(_parser().parse_args(command.words()[2:]))
    assert found == {**asdict(command), "recipe": ["a", "b"]}
