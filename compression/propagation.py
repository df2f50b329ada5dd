"""Calibration on what the layers will see once they are served, one stage of a layer at a time.

Every module is quantized on the inputs that the already quantized modules before it give, as in
GPTQ (Frantar et al. 2022, arXiv 2210.17323), and towards what the full model's inputs would have
given: part of the error that has come so far is taken back. The target is that of GPTAQ (Li et al.
2025, arXiv 2504.02692) and of QEP (Arai & Ichikawa 2025, arXiv 2504.09629), whose strength between
0 and 1 keeps the correction from following chance in the text.
"""

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from compression.calibration import HELD_OUT, STAGES, all_processors
from compression.facts import CheckpointFacts
from compression.first_tokens import first_tokens
from compression.halves import AttentionHalf, Half, MlpHalf
from compression.layerwise import LayerStream, batches
from compression.plan import head_of, module_of
from compression.schemes import Int8, Unquantized
from compression.weights.quantizer import quantize
from compression.weights.statistics import InputStatistics, PairedMoments


class PropagatingCalibrator:
    """Moves a text through the full model and through what is served of it, side by side."""

    def __init__(
        self, facts: CheckpointFacts, windows: Tensor, embeddings: Int8 | Unquantized
    ) -> None:
        self._exact = LayerStream(facts)
        self._given = LayerStream(facts)
        self._embeddings = embeddings
        self._facts = facts
        held_out = len(windows) // HELD_OUT
        learned = windows[: len(windows) - held_out]
        self._texts = [learned, first_tokens(learned)]
        if held_out:
            self._texts.append(windows[len(learned) :])
        self._wanted: list[Tensor] = []
        self._served: list[Tensor] = []
        self._layer = nn.Module()
        self._prefix = ""

    def __enter__(self) -> Self:
        self._exact.__enter__()
        self._given.__enter__()
        self._wanted = [self._exact.embed(text) for text in self._texts]
        self._served = [self._embed(hidden) for hidden in self._wanted]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._given.__exit__(kind, error, trace)
        self._exact.__exit__(kind, error, trace)

    def stages(self, index: int) -> Iterator[dict[str, InputStatistics]]:
        """Yield the statistics of the modules of layer ``index``, in the order of their work.

        The output head is the layer behind all others. Each stage of one of these is to be
        answered by :meth:`serve` before the next one is asked for.
        """
        if index == self._facts.architecture.num_layers:
            yield {module_of(head_of(self._facts)): self._head_statistics()}
            return
        self._prefix = f"model.layers.{index}."
        exact, self._layer = self._exact.layer(index), self._given.layer(index)
        halves: list[tuple[Half, Half]] = [
            (AttentionHalf(exact), AttentionHalf(self._layer)),
            (MlpHalf(exact), MlpHalf(self._layer)),
        ]
        for (wanted, given), (entry, end) in zip(halves, (STAGES[:2], STAGES[2:]), strict=True):
            yield self._statistics(entry, self._at_entry(wanted, given))
            yield self._statistics(end, self._at_end(wanted, given))
            self._advance(given)
        self._exact.release(index)
        self._given.release(index)

    def serve(self, weights: Mapping[str, Tensor]) -> None:
        """Put float32 weights, by the names of their tensors, in the place of the full ones."""
        state = {name.removeprefix(self._prefix): weight for name, weight in weights.items()}
        self._layer.load_state_dict(state, strict=False, assign=True)

    def _head_statistics(self) -> InputStatistics:
        """Return the statistics of the output head's input.

        Texts of one token are left out: to the head a first token is one like any other.
        """
        moments = self._moments(self._wanted[0].shape[-1])
        texts = [0, 2][: len(moments)]
        with all_processors():
            for sums, text in zip(moments, texts, strict=True):
                pairs = zip(batches(self._wanted[text]), batches(self._served[text]), strict=True)
                for exact, served in pairs:
                    wanted = self._exact.final_norm(exact).flatten(0, 1)
                    sums.add(self._given.final_norm(served).flatten(0, 1), wanted)
        learned, *held_out = moments
        found = learned.statistics(held_out[0] if held_out else None)
        return found.of_tied_table() if self._facts.architecture.tied else found

    def _embed(self, hidden: Tensor) -> Tensor:
        """Return what the embedding gives once it is served."""
        if isinstance(self._embeddings, Unquantized):
            return hidden.clone()
        rows = hidden.flatten(0, 1)
        return quantize(rows, self._embeddings.at_load).dequantize().view_as(hidden)

    def _statistics(
        self, modules: tuple[str, ...], moments: list[PairedMoments]
    ) -> dict[str, InputStatistics]:
        learned, *held_out = moments
        found = learned.statistics(held_out[0] if held_out else None)
        return {f"{self._prefix}{module}": found for module in modules}

    def _at_entry(self, wanted: Half, given: Half) -> list[PairedMoments]:
        """Return the moments behind a half's norm."""
        columns = self._wanted[0].shape[-1]
        moments = self._moments(columns)
        with all_processors(), torch.no_grad():
            for sums, exact, served in self._in_pairs(moments):
                for one, other in zip(batches(exact), batches(served), strict=True):
                    sums.add(given.norm(other).flatten(0, 1), wanted.norm(one).flatten(0, 1))
        return moments

    def _at_end(self, wanted: Half, given: Half) -> list[PairedMoments]:
        """Return the moments before a half's projection, and move the full model through it."""
        moments = self._moments(given.projection.in_features)
        seen: list[Tensor] = []
        hooks = [
            half.projection.register_forward_pre_hook(
                lambda module, inputs: seen.append(inputs[0].flatten(0, 1))
            )
            for half in (wanted, given)
        ]
        try:
            with all_processors():
                for sums, exact, served in self._in_pairs(moments):
                    runs = (self._exact.run(wanted, exact), self._given.run(given, served))
                    start = 0
                    for output, _ in zip(*runs, strict=True):
                        expected, actual = seen
                        sums.add(actual, expected)
                        seen.clear()
                        exact[start : start + len(output)] = output
                        start += len(output)
        finally:
            for hook in hooks:
                hook.remove()
        return moments

    def _advance(self, given: Half) -> None:
        with all_processors():
            for hidden in self._served:
                start = 0
                for output in self._given.run(given, hidden):
                    hidden[start : start + len(output)] = output
                    start += len(output)

    def _moments(self, columns: int) -> list[PairedMoments]:
        """Return sums for what is learned from and, where there is some, for what is held out."""
        return [PairedMoments(columns) for _ in self._texts[1:]]

    def _in_pairs(
        self, moments: list[PairedMoments]
    ) -> Iterator[tuple[PairedMoments, Tensor, Tensor]]:
        """Yield each text's states in both models with the sums that they go into."""
        sums = [moments[0], *moments]
        yield from zip(sums, self._wanted, self._served, strict=True)
