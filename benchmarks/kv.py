"""What a quantized cache costs at 2,000 tokens of context, and what it saves.

``python -m benchmarks.kv`` rewrites ``benchmarks/results/kv.md`` and ``kv.json``. Weights stay in
bf16, and nothing but the cache differs. A context is one stretch of the evaluation's texts; its
last quarter is scored against the same model with a bf16 cache. ``--untimed`` leaves the
milliseconds out, for a machine that has other work to do: fidelity does not depend on it.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import describe
from compression.calibration_text import calibration_windows
from compression.demo_model import ensure_demo_model
from compression.evaluation import builtin_slices
from compression.facts import read_facts
from compression.fidelity import TokenScores, pool, score_tokens, summarize
from compression.kv.centred import CentredCodec
from compression.kv.centres import key_centres
from compression.kv.codec import KvCodec
from compression.kv.rotated import RotatedCodec
from compression.recipe import Calibration, KvCache
from compression.schemes import KvFp8, KvInt4, KvInt8
from compression.tokenizer_file import load_tokenizer
from gateway.engine.cache import LayerCodecs
from gateway.engine.decode_speed import decode_ms
from gateway.engine.kv_codecs import make_codecs
from gateway.engine.runner import Runner, load_runner

RESULTS = Path(__file__).parent / "results"
CONTEXT = 2000
SCORED_FROM = 1500
SPED = SCORED_FROM + 96
"""Tokens up to which the speed of decoding is taken."""
_INT8, _FP8 = KvInt8(), KvFp8()
_G32, _G64 = KvInt4(group_size=32), KvInt4(group_size=64)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to keep the cache."""

    name: str
    kv_cache: KvCache
    is_centred: bool = False
    is_rotated: bool = True


_K8V4 = KvCache(key=_INT8, value=_G64)
_K4V4 = KvCache(key=_G64, value=_G64)
INT8 = Variant("int8", KvCache(key=_INT8, value=_INT8))
K8V4 = Variant("K8V4, groups of 64", _K8V4)
DECODED = (Variant("bf16", KvCache()), INT8, K8V4)
VARIANTS = (
    INT8,
    Variant("int8, not rotated", INT8.kv_cache, is_rotated=False),
    Variant("int8, centred", INT8.kv_cache, is_centred=True),
    Variant("fp8", KvCache(key=_FP8, value=_FP8)),
    K8V4,
    Variant("K8V4, groups of 64, not rotated", _K8V4, is_rotated=False),
    Variant("K4V4, groups of 64, centred", _K4V4, is_centred=True),
    Variant("K4V4, groups of 64", _K4V4),
    Variant("K4V4, groups of 64, centred, not rotated", _K4V4, is_centred=True, is_rotated=False),
    Variant("K4V4, groups of 32, centred", KvCache(key=_G32, value=_G32), is_centred=True),
    Variant(
        "K4V4, groups of 32, centred, first and last layer kept",
        KvCache(key=_G32, value=_G32, keep_first=1, keep_last=1),
        is_centred=True,
    ),
)


def main() -> None:
    """Measure everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, default=2, help="stretches of text, at most 5")
    parser.add_argument("--threads", type=int, help="processors to use")
    parser.add_argument("--untimed", action="store_true", help="leave the speed of decoding out")
    options = parser.parse_args()
    directory = ensure_demo_model()
    tokenizer = load_tokenizer(directory)
    ids = chain.from_iterable(
        tokenizer.encode(text, add_special_tokens=False) for text in builtin_slices().values()
    )
    text = list(ids)
    contexts = [text[start : start + CONTEXT] for start in range(0, len(text), CONTEXT)]
    windows = calibration_windows(Calibration(), tokenizer, CONTEXT)
    centres = key_centres(read_facts(directory), windows)
    runner = load_runner(directory, threads=options.threads, max_model_len=None)
    results: dict[str, Any] = {
        "machine": describe(),
        "command": " ".join(["python -m benchmarks.kv", *sys.argv[1:]]),
        "context_tokens": CONTEXT,
        "scored_from": SCORED_FROM,
    }
    with f32_arithmetic(runner):
        results["variants"] = table(runner, contexts[: options.contexts], centres)
        reference = read(runner, contexts[0])
    runners = [with_cache(runner, variant) for variant in DECODED]
    results["decoding"] = decoding(reference, runners, contexts[0])
    if not options.untimed:
        laps = decode_ms(runners, contexts[0][:SPED], SCORED_FROM)
        for row, milliseconds in zip(results["decoding"], laps, strict=True):
            row["ms_per_token"] = milliseconds
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kv.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = render(results)
    (RESULTS / "kv.md").write_text(page, encoding="utf-8")
    print(page)


def with_cache(runner: Runner, variant: Variant, centres: tuple[Tensor, ...] = ()) -> Runner:
    """Return the same model with another cache."""
    found = centres if variant.is_centred else None
    codecs = make_codecs(variant.kv_cache, runner.decoder.architecture, found)
    if not variant.is_rotated:
        codecs = tuple(LayerCodecs(unrotated(each.key), unrotated(each.value)) for each in codecs)
    return replace(runner, codecs=codecs)


def unrotated(codec: KvCodec) -> KvCodec:
    """Return the same codec without its rotation."""
    match codec:
        case CentredCodec():
            return CentredCodec(unrotated(codec.inner), codec.centre)
        case RotatedCodec():
            return codec.inner
        case _:
            return codec


@contextmanager
def f32_arithmetic(runner: Runner) -> Iterator[None]:
    """Let every linear layer multiply in f32, so that nothing but the cache is rounded."""
    before = [(each, each.dense_dtype, each.dense_from) for each in runner.decoder.linears]
    for linear, _, _ in before:
        linear.dense_dtype, linear.dense_from = torch.float32, 1
    try:
        yield
    finally:
        for linear, dtype, rows in before:
            linear.dense_dtype, linear.dense_from = dtype, rows


def table(
    runner: Runner, contexts: list[list[int]], centres: tuple[Tensor, ...]
) -> list[dict[str, Any]]:
    """Score every variant against the bf16 cache."""
    runners = {variant.name: with_cache(runner, variant, centres) for variant in VARIANTS}
    parts: dict[str, list[TokenScores]] = {name: [] for name in runners}
    for ids in contexts:
        expected = read(runner, ids)
        for name, other in runners.items():
            parts[name].append(score_tokens(expected, read(other, ids), ids[SCORED_FROM:]))
            mean = float(parts[name][-1].kld.mean())
            print(f"{name}: {mean:.5f}", file=sys.stderr, flush=True)
    plain = runner.new_cache(1).bytes_per_token
    return [
        {
            "name": name,
            "bytes_per_token": runners[name].new_cache(1).bytes_per_token,
            "of_bf16": runners[name].new_cache(1).bytes_per_token / plain,
            "fidelity": asdict(summarize(pool(scores))),
        }
        for name, scores in parts.items()
    ]


@torch.inference_mode()
def read(runner: Runner, ids: list[int]) -> Tensor:
    """Return float32 logits of the scored positions, the text read at once."""
    hidden = runner.hidden(ids)
    return runner.decoder.logits(hidden[SCORED_FROM - 1 : -1])


def decoding(reference: Tensor, runners: list[Runner], ids: list[int]) -> list[dict[str, Any]]:
    """Compare what was decoded token by token with the f32 model; bf16 shows the noise."""
    rows = []
    for variant, other in zip(DECODED, runners, strict=True):
        fidelity = summarize(score_tokens(reference, step_through(other, ids), ids[SCORED_FROM:]))
        print(f"decoding {variant.name}: {fidelity.kld_mean:.5f}", file=sys.stderr, flush=True)
        rows.append({"name": variant.name, "fidelity": asdict(fidelity)})
    return rows


def step_through(runner: Runner, ids: list[int]) -> Tensor:
    """Return float32 logits of the scored positions, decoded one by one."""
    cache = runner.new_cache(len(ids))
    runner.forward([(cache, ids[: SCORED_FROM - 1], 0)])
    return torch.cat([runner.forward([(cache, [token], 1)]) for token in ids[SCORED_FROM - 1 : -1]])


def render(results: dict[str, Any]) -> str:
    """Return the results as a Markdown page."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    tokens = results["variants"][0]["fidelity"]["tokens"]
    lines = [
        "# The KV cache, measured",
        "",
        f"`{results['command']}` on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, Linux {machine['kernel']}; {versions}.",
        f"SmolLM2-135M-Instruct (channels reordered), bf16 weights, {results['context_tokens']} "
        f"tokens of context, positions from {results['scored_from']} on: {tokens} positions, "
        "against the same model with a bf16 cache, in f32 arithmetic.",
        "",
        "| cache | bytes a token | of bf16 | KLD mean | ± | KLD p99 | top-1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["variants"]:
        one = row["fidelity"]
        lines.append(
            f"| {row['name']} | {row['bytes_per_token']} | {row['of_bf16']:.3f} | "
            f"{one['kld_mean']:.5f} | {one['kld_mean_se']:.5f} | {one['kld_p99']:.4f} | "
            f"{one['top1']:.4f} |"
        )
    lines += [
        "",
        "The path that serves, one token at a time in bf16 arithmetic, first context, against the "
        "f32 model with a bf16 cache: what a row has more than that of bf16 is the cache's.",
        "",
        "| cache | KLD mean | ± | top-1 | ms a token |",
        "|---|---|---|---|---|",
    ]
    for row in results["decoding"]:
        one = row["fidelity"]
        speed = f"{row['ms_per_token']:.1f}" if "ms_per_token" in row else "not timed"
        lines.append(
            f"| {row['name']} | {one['kld_mean']:.5f} | {one['kld_mean_se']:.5f} | "
            f"{one['top1']:.4f} | {speed} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
