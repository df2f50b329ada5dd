"""CTranslate2's generator."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2

from benchmarks.engines.script_pipes import answer_lines


def main(directory: str) -> None:
    """Serve a converted model."""
    words = json.loads(Path(directory, "vocabulary.json").read_text(encoding="utf-8"))
    threads = len(os.sched_getaffinity(0))
    generator = ctranslate2.Generator(directory, device="cpu", intra_threads=threads)

    def generate(prompts: list[list[int]], tokens: int, first: Callable[[], None]) -> int:
        def tell(_: Any) -> bool:
            first()
            return False

        results = generator.generate_batch(
            [[words[token] for token in ids] for ids in prompts],
            max_length=tokens,
            min_length=tokens,
            include_prompt_in_result=False,
            sampling_topk=1,
            callback=tell,
        )
        return min(len(result.sequences_ids[0]) for result in results)

    answer_lines(generate, {"ctranslate2": ctranslate2.__version__})


main(sys.argv[1])
