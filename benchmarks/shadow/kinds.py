"""How far an undamaged artifact is from the full model in other traffic, beside a small damage.

``python -m benchmarks.shadow.kinds`` asks the demo model in int8, undamaged and with the scales of
one linear layer 10 % too large, in languages and forms that the texts behind the manifest's figures
do not have, and has the full model score the answers as the shadow does.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.machine import describe
from benchmarks.shadow.damage import RESULTS
from benchmarks.shadow.damaged import DAMAGES, write_damaged
from benchmarks.shadow.real_pair import BATCH, MAX_MODEL_LEN, Asked, answer, read
from benchmarks.shadow.scores import score_rows
from compression.events import ignore
from compression.prepare import prepare
from compression.recipe import FULL
from gateway.engine.runner import Runner, load_runner
from gateway.shadow.slices import ALL
from gateway.shadow.tolerance import ToleranceRules, Tolerances

ASKS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "Spanish": ("Explica qué es {} en una frase.", "Escribe un poema sobre {}."),
        "Russian": ("Объясни, что такое {}.", "Напиши короткое стихотворение про {}."),
        "Arabic": ("اشرح لي ما هو {}.", "اكتب جملة عن {}."),
        "Hindi": ("{} के बारे में एक वाक्य लिखो।", "{} क्या है?"),
        "Japanese": ("{}について一文で説明してください。", "{}に関する質問を書いてください。"),
        "role play": ("You are a pirate. Tell me about {}.", "Write a limerick about {}."),
        "JSON": (
            "Give me only a JSON object with three facts about {}.",
            "Return {} as a JSON array of strings, nothing else.",
        ),
        "SQL": (
            "Write a SQL query that counts {} by day.",
            "Write a regular expression that matches {}.",
        ),
        "Rust and bash": (
            "Write a Rust function about {}.",
            "Write a bash one-liner that counts {}.",
        ),
        "noise": ("asdkj qwe {} zzxv 8812 lkj", "{} {} {} !!! ???"),
    }
)
SUBJECTS = ("the sea", "bread", "rain", "tea", "clocks", "music", "a cat", "iron")
DAMAGE = "scale 10 %"


def asked(tokenizer: PreTrainedTokenizerBase, asks: Sequence[str]) -> list[Asked]:
    """Return every question about every subject, greedy first, then sampled."""
    found = []
    for temperature in (0, 1):
        for ask in asks:
            for subject in SUBJECTS:
                content = ask.replace("{}", subject)
                fields = {
                    "messages": [{"role": "user", "content": content}],
                    "temperature": temperature,
                }
                ids = tokenizer.apply_chat_template(
                    fields["messages"], add_generation_prompt=True, return_dict=False
                )
                found.append(Asked(fields, tuple(ids), is_greedy=not temperature))
    return found


def divergences(
    served: Runner, full: Runner, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Asked]
) -> list[float]:
    """Return each answer's mean divergence, in nats a token."""
    random = torch.Generator().manual_seed(0)
    found = []
    for start in range(0, len(batch), BATCH):
        part = list(batch[start : start + BATCH])
        replies = answer(served, part, tokenizer.eos_token_id, random)
        for each, (ids, logits) in zip(part, replies, strict=True):
            expected = read(full, each, ids, tokenizer.decode(ids))
            found.append(score_rows(expected, full, logits).mean_kl)
    return found


def row(kind: str, sound: Sequence[float], damaged: Sequence[float]) -> dict[str, Any]:
    """Return the figures of a kind: means and their standard errors, in nats a token."""
    return {
        "kind": kind,
        "requests": len(sound),
        "sound": statistics.fmean(sound),
        "sound_error": statistics.stdev(sound) / len(sound) ** 0.5,
        "damaged": statistics.fmean(damaged),
        "damaged_error": statistics.stdev(damaged) / len(damaged) ** 0.5,
    }


def render(results: Mapping[str, Any]) -> str:
    """Return the results as a page."""
    machine = results["machine"]
    lines = [
        "# How far an undamaged artifact is from the full model, by kind of traffic",
        "",
        f"`{results['command']}` on {machine['processor']}, {machine['cores']} cores, "
        f"Linux {machine['kernel']}; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        + ".",
        "",
        "Answers of up to 16 tokens that SmolLM2-135M-Instruct wrote in int8, half greedy, half "
        "sampled, scored by the full model.",
        "*Damaged*: the scales of one linear layer are 10 % too large. Nats a token, with standard "
        f"errors. 1.2 times the manifest's mean is {results['unfloored']:.4f};",
        f"the tolerance is {results['tolerance']:.4f}.",
        "",
        "| traffic | requests | undamaged | damaged |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {each['kind']} | {each['requests']} | {each['sound']:.4f} ± {each['sound_error']:.4f} "
        f"| {each['damaged']:.4f} ± {each['damaged_error']:.4f} |"
        for each in results["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    artifact = prepare("smollm2", "int8", None, ignore, is_measured=True)
    source = prepare("smollm2", FULL, None, ignore).directory
    tokenizer = AutoTokenizer.from_pretrained(source)

    def load(directory: Path) -> Runner:
        return load_runner(directory, threads=options.threads, max_model_len=MAX_MODEL_LEN)

    full, sound = load(source), load(artifact.directory)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "damaged"
        write_damaged(artifact.directory, DAMAGES[DAMAGE], place)
        damaged = load(place)
        for kind, asks in ASKS.items():
            batch = asked(tokenizer, asks)
            found = [divergences(each, full, tokenizer, batch) for each in (sound, damaged)]
            rows.append(row(kind, *found))
            print(json.dumps(rows[-1]), flush=True)
    fidelity = artifact.manifest.fidelity if artifact.manifest else None
    borne = [
        Tolerances(rules, fidelity).of(ALL)
        for rules in (ToleranceRules(), ToleranceRules(floor=1e-9))
    ]
    results = {
        "command": "python -m benchmarks.shadow.kinds",
        "machine": describe(),
        "tolerance": borne[0].nats if borne[0] else None,
        "unfloored": borne[1].nats if borne[1] else None,
        "rows": rows,
    }
    path = RESULTS / "shadow_kinds"
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    main()
