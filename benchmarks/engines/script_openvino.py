"""OpenVINO GenAI's continuous batching pipeline."""

import os
import sys
from collections.abc import Callable

import numpy as np
import openvino
import openvino_genai

from benchmarks.engines.script_pipes import answer_lines


class FirstToken(openvino_genai.StreamerBase):
    """Tells when tokens arrive."""

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__()
        self._tell = tell

    def write(self, token: object) -> openvino_genai.StreamingStatus:
        """Take what was decoded."""
        self._tell()
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Have nothing to flush."""


def main(directory: str) -> None:
    """Serve a converted model."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1
    scheduler.max_num_seqs = 16
    threads = len(os.sched_getaffinity(0))
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        directory, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
    )

    def generate(prompts: list[list[int]], tokens: int, first: Callable[[], None]) -> int:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        inputs = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
        streamer = FirstToken(first) if len(prompts) == 1 else None
        results = pipeline.generate(inputs, [config] * len(prompts), streamer)
        return min(len(result.m_generation_ids[0]) for result in results)

    answer_lines(generate, {"openvino-genai": openvino_genai.__version__})


main(sys.argv[1])
