"""Tables that are stored as numbers and rounded at load: the codes are chosen by GPTQ all the same.

An artifact holds embedding and output head in the checkpoint's own dtype, for engines that read
nothing else, and the embedded engine rounds their rows plainly when it loads them. So what is
chosen here are not codes but the stored numbers: each stays what it was where plain rounding finds
the chosen code by itself, and else is moved just over the edge between the two.
"""

import torch
from torch import Tensor

from compression.weights.codes import INT8, round_to
from compression.weights.gptq import Feedback, round_with_feedback
from compression.weights.rtn import choose_range


def round_table(rows: Tensor, feedback: Feedback) -> Tensor:
    """Return numbers ``[n, K]``, nearest to ``rows``, that plain rounding turns into GPTQ's codes.

    They have the dtype of ``rows``. The largest number of a row stays as it is, because the row's
    scale is found by it. A code that no number of this dtype rounds to is left to plain rounding;
    among bf16 numbers there is one for every code.

    Args:
        rows: float ``[n, K]``, finite.
        feedback: of the output head's inputs.
    """
    exact = rows.to(torch.float32)
    scale, zero = (each.squeeze(-1) for each in choose_range(exact.unsqueeze(1), INT8))
    largest = exact.abs().argmax(1)
    chosen = round_with_feedback(exact, scale, zero, INT8, feedback, held=largest)
    return _moved(rows, chosen, scale)


def _moved(rows: Tensor, chosen: Tensor, scale: Tensor) -> Tensor:
    """Return the numbers nearest to ``rows`` that round to the codes ``chosen [n, K]``."""
    plain = _nearest(rows, scale)
    edge = (chosen - 0.5 * (chosen - plain).sign()) * scale
    moved = edge.to(rows.dtype)
    further = torch.nextafter(moved, (chosen * scale).to(rows.dtype))
    moved = torch.where(_nearest(moved, scale) == chosen, moved, further)
    is_found = (chosen != plain) & (_nearest(moved, scale) == chosen)
    return torch.where(is_found, moved, rows)


def _nearest(rows: Tensor, scale: Tensor) -> Tensor:
    """Return the float32 codes to which plain rounding turns ``rows``."""
    return round_to(rows.to(torch.float32), scale, torch.zeros_like(scale), INT8)
