"""Our artifacts against other compressors: size and fidelity on the same checkpoint and text.

``make bench-peers`` lets the peers do their work (once; it takes long). ``python -m
benchmarks.frontier`` scores them and our artifacts and rewrites
``benchmarks/results/frontier.{md,json,png}``. ``--keep NAME`` takes a point from the results as
they are: what takes half an hour to build need not be built for another's sake.
It is refused where text or model is another one, and marked in the page.
"""

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.frontier_evaluator import Cut
from benchmarks.frontier_page import CHECKED, UNCHECKED, plot, render
from benchmarks.frontier_points import Point, artifact_point, peer_points
from benchmarks.frontier_scores import Scorer
from benchmarks.machine import describe
from benchmarks.peers.environments import WORK
from compression.demo_model import DEMO_MODEL, ensure_demo_model
from compression.evaluation import builtin_slices, cut
from compression.events import ignore
from compression.prepare import prepare_recipe
from compression.presets import load_recipe
from compression.recipe import Recipe
from compression.schemes import Int4, Int8

RESULTS = Path(__file__).parent / "results"
RECIPES = ("int4", "int4-fast", "int4-gptq", "int5", "int8", "int8-fast", "int8-gptq", "nf4")
METHODS = ("rtn", "mse", "imatrix", "gptq", "best")
"""Ways of choosing the codes of one format: int4, asymmetric, groups of 32."""


def main(words: Sequence[str]) -> None:
    """Score everything that is there and write the results."""
    options = parse(words)
    checkpoint = ensure_demo_model()
    windows = read_windows(checkpoint, options.max_tokens)
    scorer = Scorer(checkpoint, windows, options.work / "scores")
    results: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.frontier", *words]),
        "machine": describe(),
        "tokens": sum(len(each.targets) for parts in windows.values() for each in parts),
        "points": [],
    }
    results["digest"] = digest_of(checkpoint, windows)
    results["points"] = kept(options, results["tokens"], results["digest"])
    options.out.mkdir(parents=True, exist_ok=True)
    for point in points(options):
        results["points"].append(scorer.figures(point))
        # After each, because the whole takes long.
        write(results, options.out)
    print(render(results))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frontier", description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK, help="where the peers' results are")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--max-tokens", type=int, help="of each slice; default: all")
    parser.add_argument(
        "--recipe", action="append", help=f"a preset or a YAML file; default: {', '.join(RECIPES)}"
    )
    parser.add_argument(
        "--artifact", action="append", type=Path, default=[], help="an artifact that is built"
    )
    parser.add_argument(
        "--keep", action="append", default=[], metavar="NAME", help="a point of the last results"
    )
    parser.add_argument(
        "--method",
        action="append",
        choices=METHODS,
        default=[],
        help="also int4 in groups of 32 with this way of choosing the codes",
    )
    return parser.parse_args(words)


def digest_of(checkpoint: Path, windows: Cut) -> str:
    """Return what tells this text and this full model from all others."""
    text = {
        name: [(each.token_ids, each.first) for each in parts] for name, parts in windows.items()
    }
    digest = hashlib.sha256(repr(text).encode())
    for file in sorted([checkpoint / "config.json", *checkpoint.glob("*.safetensors")]):
        with file.open("rb") as opened:
            digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def kept(options: argparse.Namespace, tokens: int, digest: str) -> list[dict[str, Any]]:
    """Return the points that stay as they are in the last results, each marked as kept.

    Results without a digest may be of another text; what is kept of them says so for ever.

    Raises:
        SystemExit: there is no such point, or it was measured on another text or model.
    """
    if not options.keep:
        return []
    last = json.loads((options.out / "frontier.json").read_text(encoding="utf-8"))
    if last["tokens"] != tokens:
        raise SystemExit(f"--keep: the last results are of {last['tokens']} tokens, not {tokens}")
    if last.get("digest", digest) != digest:
        raise SystemExit("--keep: the last results are of another text or model: measure anew")
    if "digest" not in last:
        last["points"] = [{**point, "kept": UNCHECKED} for point in last["points"]]
    found = {point["name"]: point for point in last["points"]}
    if missing := [name for name in options.keep if name not in found]:
        raise SystemExit(f"--keep: the last results have no {', '.join(missing)}")
    return [{"kept": CHECKED, **found[name]} for name in options.keep]


def read_windows(checkpoint: Path, max_tokens: int | None) -> Cut:
    """Return the built-in slices, cut into windows."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return {
        name: cut(name, text, tokenizer, max_tokens=max_tokens)
        for name, text in builtin_slices().items()
    }


def points(options: argparse.Namespace) -> Iterator[Point]:
    """Yield what the peers left and our artifacts, built now where they are not in the store."""
    yield from peer_points(options.work)
    recipes = [load_recipe(name) for name in options.recipe or RECIPES]
    methods = [
        Recipe(name=f"int4-{each}", weights=Int4(method=each), embeddings=Int8())
        for each in options.method
    ]
    for recipe in (*recipes, *methods):
        prepared = prepare_recipe(DEMO_MODEL, recipe, None, ignore)
        yield artifact_point(prepared.directory, recipe.name)
    for directory in options.artifact:
        yield artifact_point(directory, directory.name)


def write(results: dict[str, Any], out: Path) -> None:
    """Write the results as data, page and plot."""
    text = json.dumps(results, indent=1) + "\n"
    (out / "frontier.json").write_text(text, encoding="utf-8")
    (out / "frontier.md").write_text(render(results), encoding="utf-8")
    plot(results["points"], out / "frontier.png")


if __name__ == "__main__":
    main(sys.argv[1:])
