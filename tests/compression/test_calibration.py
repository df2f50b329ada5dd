"""What calibration observes, and what the methods that use it gain."""

from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compression.calibration import STAGES, Calibrator
from compression.calibration_text import calibration_windows
from compression.errors import CalibrationError
from compression.facts import read_facts
from compression.first_tokens import first_tokens
from compression.propagation import PropagatingCalibrator
from compression.recipe import Calibration
from compression.schemes import Int4, Int8, Unquantized
from compression.tensor_source import TensorSource
from compression.weights.quantizer import quantize, quantize_measured
from compression.weights.statistics import STRENGTH, InputStatistics, MomentSum, PairedMoments
from tests.checkpoints import make_tiny_checkpoint


def observed(columns: int, tokens: int = 400) -> InputStatistics:
    """Return statistics of inputs that are uneven and strongly correlated."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    rows = torch.randn(tokens, columns, generator=generator) @ mixing
    rows = rows * torch.linspace(0.1, 3, columns)
    sums = MomentSum(columns, whole=True)
    sums.add(rows[:100])
    sums.add(rows[100:])
    return sums.statistics()


def random_weight(rows: int, columns: int) -> torch.Tensor:
    """Return a weight with heavy tails."""
    generator = torch.Generator().manual_seed(4)
    return torch.randn(rows, columns, generator=generator) ** 3


def test_moments_do_not_depend_on_how_rows_come() -> None:
    """Sums over parts give the moments of the whole."""
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    sums = MomentSum(6, whole=True)
    for part in torch.split(rows, 7):
        sums.add(part)
    statistics = sums.statistics()
    assert statistics.tokens == 50
    torch.testing.assert_close(statistics.second_moment, rows.T @ rows / 50)
    torch.testing.assert_close(statistics.mean_square, rows.square().mean(0))
    diagonal = MomentSum(6, whole=False)
    diagonal.add(rows)
    assert diagonal.statistics().second_moment is None
    torch.testing.assert_close(diagonal.statistics().mean_square, statistics.mean_square)
    with pytest.raises(ValueError, match="GPTQ needs the whole second moments"):
        _ = diagonal.statistics().feedback


def test_output_error_is_that_of_the_outputs() -> None:
    """The quadratic form equals what the outputs say."""
    rows = torch.randn(80, 32, generator=torch.Generator().manual_seed(0))
    sums = MomentSum(32, whole=True)
    sums.add(rows)
    weight = random_weight(5, 32)
    changed = weight + 0.1
    expected = (rows @ (changed - weight).T).square().sum() / (rows @ weight.T).square().sum()
    assert sums.statistics().output_error(weight, changed) == pytest.approx(
        float(expected), rel=1e-4
    )


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("symmetric", [False, True])
def test_importance_pays_where_inputs_are_uneven(group_size: int, symmetric: bool) -> None:
    """rtn > mse > imatrix, measured on the output, where inputs are independent."""
    uneven = torch.linspace(0.1, 3, 192).square().diag()
    statistics = InputStatistics(uneven.diagonal(), uneven, 400)
    found = [
        quantize_measured(
            random_weight(48, 192),
            Int4.model_validate(
                {"group_size": group_size, "symmetric": symmetric, "method": method}
            ),
            statistics=statistics,
        ).output_error
        or 0.0
        for method in ("rtn", "mse", "imatrix")
    ]
    assert found == sorted(found, reverse=True), found


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("symmetric", [False, True])
def test_feedback_pays_where_inputs_are_correlated(group_size: int, symmetric: bool) -> None:
    """GPTQ errs far less than any rounding to nearest, and ``best`` finds it."""
    statistics = observed(192)
    weight = random_weight(48, 192)
    errors = {
        method: quantize_measured(
            weight,
            Int4.model_validate(
                {"group_size": group_size, "symmetric": symmetric, "method": method}
            ),
            statistics=statistics,
        )
        for method in ("rtn", "mse", "imatrix", "gptq", "best")
    }
    nearest = min(errors[name].output_error or 0 for name in ("rtn", "mse", "imatrix"))
    assert (errors["gptq"].output_error or 1) < 0.7 * nearest
    assert errors["best"].method == "gptq"
    assert torch.equal(errors["best"].codes.codes, errors["gptq"].codes.codes)


def test_gptq_without_correlations_is_rounding_to_nearest() -> None:
    """Where no input tells of another there is nothing to make up for."""
    statistics = InputStatistics(torch.ones(64), torch.eye(64), 100)
    weight = random_weight(16, 64)
    feedback = quantize(weight, Int4(method="gptq"), statistics=statistics)
    nearest = quantize(weight, Int4(method="imatrix"), statistics=statistics)
    assert torch.equal(feedback.codes, nearest.codes)
    assert torch.equal(feedback.scales, nearest.scales)


def test_gptq_helps_int8_too() -> None:
    """The same feedback on the int8 grid."""
    statistics = observed(96)
    weight = random_weight(32, 96)
    plain = quantize_measured(weight, Int8(), statistics=statistics)
    feedback = quantize_measured(weight, Int8(method="gptq"), statistics=statistics)
    assert feedback.codes.zeros is None
    assert torch.equal(feedback.codes.scales, plain.codes.scales)
    assert feedback.output_error is not None
    assert plain.output_error is not None
    assert feedback.output_error < 0.7 * plain.output_error


def test_a_column_that_is_never_used_does_no_harm() -> None:
    """Silent inputs leave a singular matrix, which damping covers."""
    sums = MomentSum(64, whole=True)
    rows = torch.randn(400, 64, generator=torch.Generator().manual_seed(3))
    rows[:, 5] = 0
    sums.add(rows)
    codes = quantize(random_weight(8, 64), Int4(method="gptq"), statistics=sums.statistics())
    assert torch.isfinite(codes.dequantize()).all()


def test_best_is_judged_on_text_that_was_not_learned_from() -> None:
    """Feedback learned from too few rows errs more on others, and ``best`` sees that."""
    generator = torch.Generator().manual_seed(5)
    learned, held_out = MomentSum(128, whole=True), MomentSum(128, whole=True)
    learned.add(torch.randn(24, 128, generator=generator))
    held_out.add(torch.randn(4000, 128, generator=generator))
    weight = random_weight(32, 128)
    alone = quantize_measured(weight, Int4(method="best"), statistics=learned.statistics())
    judged = quantize_measured(weight, Int4(method="best"), statistics=learned.statistics(held_out))
    assert alone.method == "gptq"
    assert judged.method in {"mse", "imatrix"}


@pytest.mark.parametrize("method", ["imatrix", "gptq", "best"])
def test_calibrated_method_without_statistics(method: str) -> None:
    """There is no silent fall back to a lesser method."""
    with pytest.raises(ValueError, match="needs the statistics"):
        quantize(random_weight(8, 32), Int4.model_validate({"method": method}))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("whole", [True, False])
def test_calibrator_sees_what_the_model_sees(tmp_path: Path, family: str, whole: bool) -> None:
    """The moments of each layer's inputs are those of transformers' own forward pass."""
    directory = make_tiny_checkpoint(tmp_path / "model", family=family)
    windows = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    expected: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: expected.setdefault(name, []).append(inputs[0])
            )
    with torch.no_grad():
        model(windows)
    with Calibrator(read_facts(directory), windows, whole=whole) as calibrator:
        for layer in range(model.config.num_hidden_layers):
            [inputs] = calibrator.stages(layer)
            for name, statistics in inputs.items():
                rows = expected[name][0].flatten(0, -2)
                moment = rows.T @ rows / 60
                torch.testing.assert_close(
                    statistics.mean_square, moment.diagonal(), rtol=1e-4, atol=1e-5
                )
                if whole:
                    torch.testing.assert_close(
                        statistics.second_moment, moment, rtol=1e-4, atol=1e-5
                    )
    assert len(expected) == 7 * model.config.num_hidden_layers


def inputs_of(model: torch.nn.Module, texts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the inputs ``[tokens, K]`` of every linear module over some texts."""
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0].flatten(0, -2))
        )
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]
    with torch.no_grad():
        for text in texts:
            model(text)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_stages_see_what_is_served_beside_the_full_model(tmp_path: Path, family: str) -> None:
    """Moments are of the served inputs, differences to the full model's, held-out text apart."""
    directory = make_tiny_checkpoint(tmp_path / "model", family=family)
    windows = torch.randint(0, 300, (16, 20), generator=torch.Generator().manual_seed(1))
    learned, held_out = windows[:14], windows[14:]
    full = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    served = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    noise = torch.Generator().manual_seed(2)
    seen = []
    with PropagatingCalibrator(read_facts(directory), windows, Unquantized()) as calibrator:
        for layer in range(full.config.num_hidden_layers):
            for stage in calibrator.stages(layer):
                seen += list(stage)
                texts = [learned, first_tokens(learned)]
                given, wanted = inputs_of(served, texts), inputs_of(full, texts)
                other = inputs_of(served, [held_out])
                weights = {}
                for name, statistics in stage.items():
                    x, exact, apart = given[name], wanted[name], other[name]
                    for found, expected in (
                        (statistics.second_moment, x.T @ x / len(x)),
                        (statistics.difference, (exact - x).T @ x / len(x)),
                        (statistics.held_out, apart.T @ apart / len(apart)),
                    ):
                        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
                    module = served.get_submodule(name)
                    changed = module.weight + 0.05 * torch.randn(
                        module.weight.shape, generator=noise
                    )
                    weights[f"{name}.weight"] = changed.detach()
                calibrator.serve(weights)
                for name, weight in weights.items():
                    served.get_parameter(name).data = weight
    assert seen == [
        f"model.layers.{layer}.{module}"
        for layer in range(full.config.num_hidden_layers)
        for modules in STAGES
        for module in modules
    ]


def test_the_served_embedding_is_seen(tmp_path: Path) -> None:
    """Its rounding is an error like any other, which the first layer can take back."""
    facts = read_facts(make_tiny_checkpoint(tmp_path / "model"))
    windows = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    differences = []
    for scheme in (Unquantized(), Int8()):
        with PropagatingCalibrator(facts, windows, scheme) as calibrator:
            first = next(iter(calibrator.stages(0)))["model.layers.0.self_attn.q_proj"]
            assert first.difference is not None
            differences.append(float(first.difference.abs().max()))
    assert differences[0] == 0
    assert differences[1] > 0


def test_a_part_of_the_error_so_far_is_taken_back() -> None:
    """With x* a linear function of x, outputs move towards W x* by the correction's strength."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 24, generator=generator)
    exact = x @ (torch.eye(24) + 0.1 * torch.randn(24, 24, generator=generator))
    moments = PairedMoments(24)
    moments.add(x[:1000], exact[:1000])
    moments.add(x[1000:], exact[1000:])
    statistics = moments.statistics()
    weight = random_weight(8, 24)
    before = (x - exact) @ weight.T
    after = x @ statistics.target(weight).T - exact @ weight.T
    ratio = float(after.norm() / before.norm())
    assert ratio == pytest.approx(1 - STRENGTH, abs=0.02)
    alone = InputStatistics(statistics.mean_square, statistics.second_moment, 4000)
    assert torch.equal(alone.target(weight), weight)


def test_builtin_text_serves_every_slice_alike(tmp_path: Path) -> None:
    """Windows are full, deterministic for a seed and different for another."""
    directory = make_tiny_checkpoint(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    windows = calibration_windows(Calibration(tokens=3000), tokenizer, 256)
    assert windows.shape == (12, 256)
    assert torch.equal(windows, calibration_windows(Calibration(tokens=3000), tokenizer, 256))
    other = calibration_windows(Calibration(tokens=3000, seed=1), tokenizer, 256)
    assert not torch.equal(windows, other)


def test_windows_begin_as_prompts_do() -> None:
    """A tokenizer's own begin-of-text token stands in front of every window."""

    class Marking:
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [1] * add_special_tokens + [ord(letter) % 97 + 3 for letter in text]

    windows = calibration_windows(Calibration(tokens=3000), Marking(), 256)
    assert windows.shape == (12, 256)
    assert (windows[:, 0] == 1).all()
    assert (windows[:, 1:] != 1).all()


def test_own_text(tmp_path: Path) -> None:
    """A file or a directory of files; hidden files are left out."""
    directory = make_tiny_checkpoint(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("The quick brown fox. " * 300)
    (text / ".hidden").write_bytes(b"\xff\xfe")
    from_file = calibration_windows(
        Calibration(text=str(text / "a.txt"), tokens=512), tokenizer, 8192
    )
    from_directory = calibration_windows(Calibration(text=str(text), tokens=512), tokenizer, 8192)
    assert from_file.shape == (1, 512)
    assert torch.equal(from_file, from_directory)


def test_text_that_cannot_be_used(tmp_path: Path) -> None:
    """Each refusal names the field, the value and the remedy."""
    directory = make_tiny_checkpoint(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    with pytest.raises(CalibrationError, match=r"short\.txt' has \d+ tokens, 1024 are asked for"):
        calibration_windows(Calibration(text=str(short), tokens=1000), tokenizer, 8192)
    with pytest.raises(CalibrationError, match=r"none\.txt' does not exist: give a text file"):
        calibration_windows(Calibration(text=str(tmp_path / "none.txt")), tokenizer, 8192)
    short.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(CalibrationError, match=r"cannot read .*short\.txt.*no UTF-8 text"):
        calibration_windows(Calibration(text=str(short)), tokenizer, 8192)


def test_rows_are_read_alone(tmp_path: Path) -> None:
    """Runs of rows and single ones come in the order asked for."""
    facts = read_facts(make_tiny_checkpoint(tmp_path))
    name = "model.embed_tokens.weight"
    with TensorSource(facts) as source:
        whole = source.read(name)
        for rows in ([3], [0, 1, 2], [5, 6, 2, 3, 9, 9, 1], list(range(len(whole)))):
            assert torch.equal(source.rows(name, torch.tensor(rows)), whole[rows])


def test_observing_keeps_nothing_of_the_files_in_memory(tmp_path: Path) -> None:
    """Pages of a mapped checkpoint would count as memory of the process."""
    facts = read_facts(make_tiny_checkpoint(tmp_path))
    windows = torch.arange(64).view(1, 64)
    with PropagatingCalibrator(facts, windows, Unquantized()) as calibrator:
        list(calibrator.stages(0))
        mapped = [entry.path for entry in psutil.Process().memory_maps()]
    assert not [path for path in mapped if path.startswith(str(tmp_path))]
