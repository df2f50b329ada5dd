"""ONNX Runtime GenAI."""

import sys
from collections.abc import Callable

import numpy as np
import onnxruntime_genai as og

from benchmarks.engines.script_pipes import answer_lines


def main(directory: str) -> None:
    """Serve a converted model."""
    model = og.Model(directory)

    def generate(prompts: list[list[int]], tokens: int, first: Callable[[], None]) -> int:
        length = len(prompts[0]) + tokens
        params = og.GeneratorParams(model)
        # An end of the text must not end an answer.
        params.set_search_options(
            do_sample=False, min_length=length, max_length=length, batch_size=len(prompts)
        )
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        for _ in range(tokens):
            generator.generate_next_token()
            first()
        return min(len(generator.get_sequence(row)) for row in range(len(prompts))) - len(
            prompts[0]
        )

    answer_lines(generate, {"onnxruntime-genai": og.__version__})


main(sys.argv[1])
